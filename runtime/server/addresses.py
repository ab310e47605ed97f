"""Where the server listens, checked before gRPC tries.

gRPC would say that a port is in use by a line of its own on stderr, with neither a reason code
nor a way to turn it off.
"""

from __future__ import annotations

import errno
import socket

from tersor.runtime.server.errors import AddressError


def check_free(purpose: str, option: str, host: str, port: int) -> None:
    """Raises AddressError, naming `purpose` and `option`, if nobody could listen there now."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise address_error(purpose, option, host, port, error) from error


def address_error(
    purpose: str, option: str, host: str, port: int, error: Exception
) -> AddressError:
    """What to tell people about a failed attempt to listen."""
    in_use = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
    reason = "the port is in use" if in_use else getattr(error, "strerror", None) or str(error)
    return AddressError(
        f"Cannot listen for {purpose} on {bracketed(host)}:{port}: {reason}. Choose another "
        f"address with --host or port with {option} (0 picks a free one)."
    )


def bracketed(host: str) -> str:
    """`host` as it stands before a colon and a port."""
    return f"[{host}]" if ":" in host else host
