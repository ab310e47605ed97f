"""Every serving error has a gRPC status, and nothing else reaches a client."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import grpc
import pytest

from tersor.runtime import errors
from tersor.runtime.errors import ServingError
from tersor.runtime.server.status import RETRY_AFTER_KEY, STATUS_CODES, status_of

LOG = logging.getLogger("test")


def subclasses(cls: type[ServingError]) -> Iterator[type[ServingError]]:
    for sub in cls.__subclasses__():
        yield sub
        yield from subclasses(sub)


def test_every_error_of_the_runtime_has_a_status() -> None:
    ours = [cls for cls in subclasses(ServingError) if cls.__module__.startswith("tersor.runtime")]
    assert len(ours) >= 10
    assert [cls for cls in ours if not any(kind in STATUS_CODES for kind in cls.__mro__)] == []


def test_the_table_is_that_of_the_error_tree() -> None:
    lines = (errors.__doc__ or "").splitlines()
    documented = {line.split()[1]: line.split()[-1] for line in lines if line[:1] in "├└" and line}
    assert documented == {cls.__name__: code.name for cls, code in STATUS_CODES.items()}


def test_the_message_is_the_errors_own() -> None:
    status = status_of(errors.InvalidRequestError("what, got, expected"), LOG)
    assert (status.code, status.message) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "what, got, expected",
    )


@pytest.mark.parametrize(("seconds", "hint"), [(1.5, "1500"), (0.0, "1"), (0.0004, "1")])
def test_overload_carries_a_retry_hint(seconds: float, hint: str) -> None:
    status = status_of(errors.OverloadedError("full", retry_after_seconds=seconds), LOG)
    assert status.code == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert status.trailing == ((RETRY_AFTER_KEY, hint),)


def test_a_defect_is_logged_under_the_id_that_the_client_gets(
    caplog: pytest.LogCaptureFixture,
) -> None:
    try:
        raise ZeroDivisionError("a secret of ours")
    except ZeroDivisionError as error:
        status = status_of(error, LOG)
    assert status.code == grpc.StatusCode.INTERNAL
    assert "secret" not in status.message
    identity = status.message.split()[2].rstrip(":")
    assert identity in caplog.text
    assert "a secret of ours" in caplog.text
