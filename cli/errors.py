"""Errors of the command itself."""


class RemoteError(Exception):
    """The server answered with an error, or could not be reached."""


class InputError(Exception):
    """What a person gave to the command cannot be read."""
