"""Errors before anything is served.

OSError
└── AddressError    the gRPC or metrics address cannot be bound
"""


class AddressError(OSError):
    """The server cannot listen on an address; the message says which and what to do."""
