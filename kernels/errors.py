"""Errors of the layouts and operators."""


class LayoutError(ValueError):
    """A layout, its planes or an operand do not fit: the message says what, got and expected."""
