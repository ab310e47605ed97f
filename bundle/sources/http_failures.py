"""Errors of a connection, in words that show no secret."""

from __future__ import annotations

import socket
import ssl
from typing import TypeVar

from urllib3.exceptions import (
    HTTPError,
    InvalidHeader,
    NameResolutionError,
    ProxyError,
    SSLError,
)
from urllib3.exceptions import TimeoutError as HttpTimeoutError

from tersor.bundle.errors import BundleReadError

Found = TypeVar("Found", bound=BaseException)


class TransientError(Exception):
    """A request that is worth repeating. Never leaves the HTTP source."""

    def __init__(self, reason: str, *, retry_after_seconds: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after_seconds = retry_after_seconds  # what the server asked for


def connection_failure(error: HTTPError) -> TransientError | BundleReadError:
    """What a failed request means: asking again may help, or it cannot."""
    through = ""
    inner: BaseException = error
    if isinstance(error, ProxyError):
        through, inner = "the proxy: ", error.original_error
    if isinstance(inner, NameResolutionError):
        # Every other answer of a resolver is that the name is wrong.
        failure = _find(inner, socket.gaierror)
        if failure is None or failure.errno == socket.EAI_AGAIN:
            return TransientError(f"{through}the host name cannot be resolved now")
        return BundleReadError(f"{through}there is no host of this name")
    untrusted = _find(inner, ssl.SSLCertVerificationError)
    if untrusted is not None:
        return BundleReadError(
            f"{through}the server's certificate is not trusted: {untrusted.verify_message}"
        )
    if isinstance(inner, InvalidHeader):
        return BundleReadError("the headers of the server's answer contradict themselves")
    return TransientError(through + _words(inner))


def _words(error: BaseException) -> str:
    """Why a connection failed; urllib3's own text may quote the URL."""
    if isinstance(error, SSLError):
        return "TLS failed"
    system = _find(error, OSError)
    if system is not None and system.strerror:
        return system.strerror.lower()
    if isinstance(error, HttpTimeoutError):
        return "no answer in time"
    return "the connection broke off"


def _find(error: BaseException, kind: type[Found]) -> Found | None:
    """The first of `kind` among an error, what it was made of and what caused it."""
    seen: list[BaseException] = []
    waiting: list[BaseException | None] = [error]
    while waiting:
        item = waiting.pop(0)
        if isinstance(item, kind):
            return item
        if item is not None and not any(item is other for other in seen):
            seen.append(item)
            waiting += [arg for arg in item.args if isinstance(arg, BaseException)]
            waiting += [item.__cause__, item.__context__]
    return None
