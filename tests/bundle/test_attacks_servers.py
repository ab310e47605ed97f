"""Hostile servers, numbered from 40: each ends in a BundleError, soon.

40  more bytes than were asked for           43  an object that is not the same twice
41  bytes of another place, or another size  44  answers that never end, or never begin
42  encodings and headers that contradict    45  redirects without end, or to nonsense
"""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from http_sources import DATA
from range_server import (
    Answer,
    Fault,
    RangeServer,
    answers,
    cut_after,
    hang_up,
    with_headers,
)
from tiny_bundles import write_tiny

from tersor.bundle.errors import (
    BundleError,
    BundleReadError,
)
from tersor.bundle.sources.http import HttpSource
from tersor.bundle.sources.http_settings import HttpSettings
from tersor.bundle.verify import verify

SIZE = len(DATA)


def open_data(server: RangeServer, **settings: Any) -> HttpSource:
    return HttpSource(server.url("/data"), HttpSettings(**settings), sleep=lambda _: None)


def read(source: HttpSource, first: int = 9000, size: int = 9000) -> bytes:
    with source.using():
        return source.load(first, size).tobytes()


def refused(server: RangeServer, fault: Fault, message: str, requests: int = 1) -> None:
    """Asserts that the fault is one error, both at opening and at a later read."""
    server.every = fault
    server.requests.clear()
    with pytest.raises(BundleReadError, match=message):
        open_data(server)
    assert len(server.requests) == requests
    server.every = None
    source = open_data(server)
    server.every = fault
    server.requests.clear()
    with pytest.raises(BundleReadError, match=message):
        read(source)
    assert len(server.requests) == requests
    server.every = None
    assert read(source) == DATA[9000:18000].tobytes()
    source.close()


@pytest.mark.parametrize("length", ["9999999999999", "9001", "0", "-1", "1, 2", "many"])
def test_40_a_length_that_is_not_that_of_the_range(server: RangeServer, length: str) -> None:
    refused(server, with_headers(Content_Length=length), r"contradicts? (itself|themselves)", 1)


def endless(answer: Answer) -> None:
    """A body without a length that never ends."""
    answer.headers |= {"Content-Length": "", "Connection": "close"}
    answer.body = bytes(1 << 16)
    answer.endless = True


def endless_chunks(answer: Answer) -> None:
    """The same in chunks."""
    answer.headers |= {"Content-Length": "", "Transfer-Encoding": "chunked"}
    answer.body = b"10000\r\n" + bytes(1 << 16) + b"\r\n"
    answer.endless = True


@pytest.mark.parametrize("fault", [endless, endless_chunks])
def test_40_no_more_is_read_than_was_asked_for(server: RangeServer, fault: Fault) -> None:
    source = open_data(server)
    server.sent_bytes = 0
    server.every = fault
    tracemalloc.start()
    assert read(source, 9000, 500_000) == bytes(500_000)  # the checksums of a bundle tell
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3 << 20
    source.close()
    # What the sockets hold comes on top.
    assert server.sent_bytes < 32 << 20
    server.every = None


@pytest.mark.parametrize("status", [200, 404, 503])
def test_40_the_body_of_another_answer_is_not_read(server: RangeServer, status: int) -> None:
    def change(answer: Answer) -> None:
        endless(answer)
        answer.status = status

    server.every = change
    with pytest.raises(BundleError):
        open_data(server)
    assert len(server.requests) == (6 if status == 503 else 1)
    assert server.sent_bytes < len(server.requests) * 16 << 20


@pytest.mark.parametrize(
    "content_range",
    [
        "", "bytes", "bytes */1048576", "bytes 0-4095/*", "bytes 9000-17999/-1",
        "items 9000-17999/1048576", "bytes 9000-17999/1048576x", "bytes=9000-17999/1048576",
        "bytes 9000-17999/" + "9" * 30, "bytes 9000-17999/" + "9" * 5000, "bytes ٩-٩/٩",
    ],
)  # fmt: skip
def test_41_a_content_range_that_is_none(server: RangeServer, content_range: str) -> None:
    message = r"answers with Content-Range .*, expected 'bytes \d+-\d+/SIZE'"
    raw = content_range.encode().decode("latin-1")
    refused(server, with_headers(Content_Range=raw), message)


@pytest.mark.parametrize(
    ("first", "last"), [(0, 8999), (9001, 18000), (9000, 17998), (9000, 18000)]
)
def test_41_bytes_of_another_place(server: RangeServer, first: int, last: int) -> None:
    source = open_data(server)
    server.every = with_headers(Content_Range=f"bytes {first}-{last}/{SIZE}")
    with pytest.raises(
        BundleReadError,
        match=f"answers with bytes {first} to {last} of {SIZE}, asked for 9000 to 17999",
    ):
        read(source)
    assert len(server.requests) == 2
    source.close()


@pytest.mark.parametrize("size", [1, 4095, 10**18, 9_999_999_999_999_999_999])
def test_41_an_object_of_another_size(server: RangeServer, size: int) -> None:
    server.faults.append(with_headers(Content_Range=f"bytes 0-4095/{size}"))
    if size < 4096:
        with pytest.raises(
            BundleReadError, match=r"contradicts itself|answers with bytes 0 to 4095"
        ):
            open_data(server)
        return
    source = open_data(server)
    assert source.size == size
    for first in (9000, size - 9):
        with pytest.raises(BundleReadError, match="was replaced while it was open"):
            read(source, first, 9)
    source.close()


@pytest.mark.parametrize("encoding", ["gzip", "br", "identity, gzip", "x" * 5000])
def test_42_encoded_bytes(server: RangeServer, encoding: str) -> None:
    refused(
        server, with_headers(Content_Encoding=encoding), "encodes its answer as .*, expected id"
    )


@pytest.mark.parametrize("tag", ['"' + "x" * 2000 + '"', '"\x1b[31m"'])
def test_42_validators_that_are_not_sent_back(server: RangeServer, tag: str) -> None:
    server.every = with_headers(ETag=tag)
    with pytest.raises(BundleReadError, match="sends the ETag or Last-Modified") as caught:
        open_data(server)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "raw",
    [
        b"", b"\r\n\r\n", b"SSH-2.0-OpenSSH_9.6\r\n", b"HTTP/1.1 999999 x\r\n\r\n",
        b"HTTP/1.1 206\r\n" + b"a: b\r\n" * 1000, b"HTTP/1.1 206 OK\r\nX: " + b"x" * 100_000,
        b"HTTP/1.1 206 OK\r\nContent-Range: bytes 0-4095/1048576\r\nETag: \"a\"\r\n"
        b"Content-Length: 4096\r\n\r\n",
        b"HTTP/1.1 206 OK\r\nContent-Range: bytes 0-4095/1048576\r\nETag: \"a\"\r\n"
        b"Transfer-Encoding: chunked\r\n\r\nnonsense\r\n",
    ],
)  # fmt: skip
def test_42_what_is_not_http(server: RangeServer, raw: bytes) -> None:
    def change(answer: Answer) -> None:
        answer.raw = raw

    server.every = change
    with pytest.raises(
        BundleReadError, match=r"cannot read at offset \d+: .*; gave up after 6 req"
    ):
        open_data(server)
    assert len(server.requests) == 6


@pytest.mark.parametrize("step", [0, 1, 2])
def test_43_every_answer_is_of_another_version(server: RangeServer, step: int) -> None:
    """Tag, date or size change with every answer, whatever the request was conditional on."""
    count = 0

    def change(answer: Answer) -> None:
        nonlocal count
        count += 1
        changes = (
            {"ETag": f'"{count}"'},
            {"ETag": "", "Last-Modified": f"Thu, 01 Jan 2026 00:00:{count:02} GMT"},
            {"Content-Range": answer.headers.get("Content-Range", "")[:-1] + str(count)},
        )
        answer.headers |= changes[step]

    server.every = change
    source = open_data(server)
    for attempt in range(3):
        with pytest.raises(BundleReadError, match="was replaced while it was open"):
            read(source)
        assert len(server.requests) == 2 + attempt
    source.close()


def test_43_verifying_stops_when_the_object_is_replaced(
    server: RangeServer, tmp_path: Path
) -> None:
    write_tiny(tmp_path / "x.tersor")
    server.objects["/x.tersor"] = (tmp_path / "x.tersor").read_bytes()
    server.faults.extend([None, with_headers(ETag='"other"')])
    with pytest.raises(BundleReadError, match=r"/x\.tersor: the object was replaced"):
        verify(server.url("/x.tersor"))


def test_44_a_byte_at_a_time(server: RangeServer) -> None:
    """Every request gives one byte more, which is progress, but not for ever."""
    source = open_data(server)
    server.requests.clear()
    server.every = cut_after(1)
    with pytest.raises(BundleReadError, match=r"cannot read at offset 9006: .*after 6 requests"):
        read(source)
    assert [asked and asked[0] for asked in server.asked] == list(range(9000, 9006))
    source.close()


@pytest.mark.parametrize("fault", [hang_up, cut_after(0), answers(503, Retry_After="99999999")])
def test_44_nothing_ever_comes(server: RangeServer, fault: Fault) -> None:
    refused(server, fault, "cannot read at offset .*; gave up after 6 requests", 6)


def test_44_a_body_that_trickles_is_given_up(server: RangeServer) -> None:
    """Never idle, so no timeout of a socket ends it. A fast clock stands for a slow server."""
    now, step = 0.0, 100.0

    def clock() -> float:
        nonlocal now
        now += step
        return now

    source = HttpSource(
        server.url("/data"), HttpSettings(max_attempts=2), clock=clock, sleep=lambda _: None
    )
    server.requests.clear()
    with pytest.raises(
        BundleReadError, match="slower than 16384 bytes a second; gave up after 2 requests"
    ):
        read(source, 9000, 1_000_000)
    # One read of the socket was enough to tell, and what it brought was kept.
    assert 9000 < (server.asked[1] or (0, 0))[0] <= 9000 + (256 << 10)
    step = 0.0
    assert read(source, 9000, 1_000_000) == DATA[9000:1_009_000].tobytes()
    source.close()


def test_45_redirects_without_end(server: RangeServer) -> None:
    server.every = answers(302, Location="/data?again")
    with pytest.raises(BundleReadError, match="redirects more than 5 times"):
        open_data(server)
    assert len(server.requests) == 6
    server.requests.clear()
    with pytest.raises(BundleReadError, match="redirects more than 0 times"):
        open_data(server, max_redirects=0)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "location",
    [
        "ftp://host/x", "file:///etc/passwd", "javascript:1", "http://user:pw@host/",
        "http://host:port/", "http://[/", "http://h\x01/", "https:///x", "data:,x", "http://a b/",
    ],
)  # fmt: skip
def test_45_redirects_to_nonsense(server: RangeServer, location: str) -> None:
    server.every = answers(302, Location=location)
    with pytest.raises(
        BundleReadError, match="redirects to what is not an http or https URL"
    ) as caught:
        open_data(server)
    assert str(caught.value).isprintable()
    assert len(server.requests) == 1
