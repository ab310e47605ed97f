"""What an HTTP source makes of answers: retries, refusals, other versions, redirects."""

from __future__ import annotations

import random

import numpy as np
import pytest
from http_sources import DATA, Sleeps, read, redirect, source
from range_server import (
    Answer,
    RangeServer,
    answers,
    cut_after,
    hang_up,
    with_headers,
)
from tiny_bundles import noise

from tersor.bundle.errors import (
    BundleFormatError,
    BundleNotFoundError,
    BundleReadError,
    BundleTruncatedError,
)
from tersor.bundle.reader import BundleReader
from tersor.bundle.sources.http import HttpSource
from tersor.bundle.sources.http_settings import HttpSettings


def test_a_body_that_ends_early_is_resumed_where_it_stopped(server: RangeServer) -> None:
    opened = source(server)
    server.requests.clear()
    server.faults.extend([cut_after(300_000), hang_up, cut_after(0), cut_after(700_001)])
    assert np.array_equal(read(opened, 10_000, 2_000_000), DATA[10_000:2_010_000])
    starts = [10_000, 310_000, 310_000, 310_000, 1_010_001]
    assert server.asked == [(start, 2_009_999) for start in starts]
    opened.close()


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_what_passes_is_asked_again(server: RangeServer, status: int) -> None:
    server.faults.append(answers(status))
    opened = source(server)
    server.faults.append(answers(status))
    assert np.array_equal(read(opened, 9000, 9), DATA[9000:9009])
    assert len(server.requests) == 4
    opened.close()


def test_pauses_grow_are_drawn_and_end(server: RangeServer) -> None:
    def pauses(seed: int) -> list[float]:
        sleeps = Sleeps()
        opened = HttpSource(
            server.url("/data"),
            HttpSettings(max_attempts=9, backoff_seconds=1.0, max_backoff_seconds=20.0),
            chance=random.Random(seed),
            sleep=sleeps,
        )
        server.requests.clear()
        taken: list[float] = []

        def fail(answer: Answer) -> None:
            taken.append(sleeps.take())
            answers(503)(answer)

        server.every = fail
        with pytest.raises(
            BundleReadError,
            match=r"^cannot read at offset 9000: the server answers 503; gave up after 9 requests$",
        ):
            read(opened, 9000, 9)
        server.every = None
        assert len(server.requests) == 9
        assert sleeps.total == 0.0  # none after the last
        opened.close()
        return taken

    first = pauses(1)
    assert first[0] == 0.0
    for pause, longest in zip(first[1:], [1, 2, 4, 8, 16, 20, 20, 20], strict=True):
        assert longest / 2 <= pause <= longest
    assert pauses(1) == first
    assert pauses(2) != first


@pytest.mark.parametrize(
    ("headers", "least", "most"),
    [
        ({"Retry_After": "7"}, 7.0, 7.25),
        ({"Retry_After": "86400"}, 30.0, 30.25),
        (
            {
                "Retry_After": "Thu, 01 Jan 2026 00:00:12 GMT",
                "Date": "Thu, 01 Jan 2026 00:00:00 GMT",
            },
            12.0,
            12.25,
        ),
        ({"Retry_After": "Wed, 31 Dec 2025 00:00:00 GMT"}, 0.125, 0.25),
        ({"Retry_After": "-5"}, 0.125, 0.25),
        ({"Retry_After": "soon"}, 0.125, 0.25),
        ({"Retry_After": "9" * 5000}, 0.125, 0.25),
    ],
)
def test_retry_after_is_honoured_within_bounds(
    server: RangeServer, headers: dict[str, str], least: float, most: float
) -> None:
    sleeps = Sleeps()
    server.faults.append(answers(429, **headers))
    HttpSource(server.url("/data"), sleep=sleeps).close()
    assert least <= round(sleeps.total, 6) <= most


@pytest.mark.parametrize(
    ("status", "kind", "message"),
    [
        (404, BundleNotFoundError, r"there is no such object \(the server answers 404\)"),
        (410, BundleNotFoundError, r"there is no such object \(the server answers 410\)"),
        (401, BundleReadError, r"refuses access \(401\); presign the URL, or renew it"),
        (403, BundleReadError, r"refuses access \(403\); presign the URL, or renew it"),
        (200, BundleReadError, "does not support ranges: it answers 200 with the whole object"),
        (204, BundleReadError, "answers 204, expected 206"),
        (304, BundleReadError, "answers 304, expected 206"),
        (400, BundleReadError, "answers 400, expected 206"),
        (302, BundleReadError, "answers 302, expected 206"),  # without a Location
        (501, BundleReadError, "answers 501, expected 206"),
    ],
)
def test_what_does_not_pass_is_one_error(
    server: RangeServer, status: int, kind: type[Exception], message: str
) -> None:
    server.every = answers(status)
    with pytest.raises(kind, match=message) as caught:
        source(server)
    assert str(caught.value).startswith(f"{server.url('/data')}: the")
    assert len(server.requests) == 1
    server.every = None
    opened = source(server)
    server.every = answers(status)
    with pytest.raises(kind, match=message):
        read(opened, 9000, 9)
    assert len(server.requests) == 3
    opened.close()


def test_a_server_without_ranges(server: RangeServer) -> None:
    server.ranges = False
    with pytest.raises(BundleReadError, match="does not support ranges"):
        BundleReader.open(server.url("/x.tersor"))


def test_an_empty_object_and_a_short_one(server: RangeServer) -> None:
    server.objects |= {"/empty": b"", "/short": b"short"}
    with pytest.raises(BundleFormatError, match="the object is empty; expected a bundle"):
        BundleReader.open(server.url("/empty"))
    with pytest.raises(BundleFormatError, match="not a bundle: it starts with 73 68 6f 72 74"):
        BundleReader.open(server.url("/short"))
    with BundleReader.open(server.url("/x.tersor")) as reader:
        data = server.objects["/x.tersor"]
        server.objects["/cut"] = data[: reader.file_bytes // 2]
    with pytest.raises(BundleTruncatedError, match="the file is truncated"):
        BundleReader.open(server.url("/cut"))


@pytest.mark.parametrize("conditions", [True, False])
@pytest.mark.parametrize("size", [len(DATA), len(DATA) - 100_000, len(DATA) + 1])
def test_a_replaced_object_is_one_error(
    server: RangeServer, size: int, *, conditions: bool
) -> None:
    """Also where the server ignores what the request is conditional on."""
    server.conditions = conditions
    opened = source(server)
    read(opened, 9000, 9)
    server.objects["/data"] = noise(size, seed=1).tobytes()
    for _ in range(2):
        with pytest.raises(
            BundleReadError, match=r"^the object was replaced while it was open; open .* again$"
        ):
            read(opened, len(DATA) - 9, 9)
    opened.close()


@pytest.mark.parametrize("conditions", [True, False])
def test_replaced_in_the_middle_of_a_body(server: RangeServer, *, conditions: bool) -> None:
    """What arrived before is not joined with what comes after."""
    server.conditions = conditions
    opened = source(server)

    def replace(answer: Answer) -> None:
        cut_after(1000)(answer)
        server.objects["/data"] = noise(len(DATA), seed=1).tobytes()

    server.faults.append(replace)
    with pytest.raises(BundleReadError, match="was replaced while it was open"):
        read(opened, 9000, 9000)
    opened.close()


def test_last_modified_is_enough_and_a_weak_tag_too(server: RangeServer) -> None:
    other = "Fri, 02 Jan 2026 00:00:00 GMT"
    for headers, changed in (
        ({"ETag": ""}, {"ETag": "", "Last_Modified": other}),
        ({"ETag": 'W/"a"'}, {"ETag": 'W/"b"'}),
        ({"ETag": 'W/"a"', "Last_Modified": ""}, {"ETag": 'W/"b"'}),
    ):
        server.every = with_headers(**headers)
        opened = source(server)
        assert np.array_equal(read(opened, 9000, 9), DATA[9000:9009])
        server.every = with_headers(**changed)
        with pytest.raises(BundleReadError, match="was replaced"):
            read(opened, 9000, 9)
        opened.close()
    server.every = with_headers(ETag="", Last_Modified="")
    with pytest.raises(BundleReadError, match="sends neither ETag nor Last-Modified"):
        source(server)


def test_requests_name_the_version_and_no_encoding(server: RangeServer) -> None:
    opened = source(server)
    read(opened, 9000, 9)
    first, second = (request.headers for request in server.requests)
    assert "If-Match" not in first
    assert second["If-Match"].startswith('"')
    assert second["Accept-Encoding"] == "identity"
    server.every = with_headers(ETag="")
    opened.close()
    opened = source(server)
    read(opened, 9000, 9)
    assert server.requests[-1].headers["If-Unmodified-Since"] == "Thu, 01 Jan 2026 00:00:00 GMT"
    opened.close()


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_followed_and_remembered(server: RangeServer, status: int) -> None:
    server.objects["/signed"] = server.objects.pop("/data")
    server.objects["/data"] = b"never read"
    redirect(server, "/hop?a=1", f"{server.address}/signed?token=1", status=status)
    opened = source(server)
    assert [request.path for request in server.requests] == ["/data", "/hop", "/signed"]
    assert np.array_equal(read(opened, 9000, 9), DATA[9000:9009])
    last = server.requests[-1]
    assert (last.path, last.query) == ("/signed", "token=1")
    assert opened.name == server.url("/data")
    opened.close()


def test_a_redirected_address_that_expired_is_asked_for_again(server: RangeServer) -> None:
    server.objects["/signed"] = server.objects["/data"]
    redirect(server, "/signed?token=1")
    opened = source(server)
    server.requests.clear()
    server.faults.append(answers(403))
    redirect(server, "/signed?token=2")
    assert np.array_equal(read(opened, 9000, 9), DATA[9000:9009])
    assert [(r.path, r.query) for r in server.requests] == [
        ("/signed", "token=1"), ("/data", ""), ("/signed", "token=2"),
    ]  # fmt: skip
    server.every = answers(403)
    with pytest.raises(BundleReadError, match="refuses access"):
        read(opened, 9000, 9)
    opened.close()
