"""Hostile servers, numbered on: 46, what a presigned URL must keep secret; 47, hostile bundles."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from http_sources import read
from range_server import (
    Answer,
    Fault,
    RangeServer,
    answers,
    cut_after,
    hang_up,
    with_headers,
)
from tiny_bundles import Json, chunk_of, forge

from tersor.bundle.errors import (
    BundleError,
    BundleFormatError,
)
from tersor.bundle.reader import BundleReader
from tersor.bundle.sources.http import HttpSource
from tersor.bundle.sources.http_settings import HttpSettings
from tersor.bundle.verify import verify

SECRET = "X-Signature=5ec%2br3t"


def malformed(answer: Answer) -> None:
    """Headers that urllib3 warns of, with the URL."""
    body = bytes(4096)
    answer.raw = (
        b'HTTP/1.1 206 OK\r\nETag: "a"\r\nContent-Range: bytes 0-4095/4096\r\nContent-Length: 4096'
        b"\r\nno header at all\r\n\r\n" + body
    )


@pytest.mark.parametrize(
    "fault",
    [
        answers(403), answers(404), answers(200), answers(500), hang_up, cut_after(5), malformed,
        with_headers(Content_Range="bytes 1-2/3"), with_headers(Content_Length="5"),
        with_headers(Content_Encoding="gzip"), answers(302, Location="/data?" + SECRET),
        answers(302, Location="ftp://x/?" + SECRET), answers(302, Location="http://[?" + SECRET),
    ],
)  # fmt: skip
def test_46_secrets_stay_secret(
    server: RangeServer, fault: Fault, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    texts: list[str] = []

    def attempt(work: Callable[[], object]) -> None:
        try:
            work()
        except BundleError as error:
            texts.extend([str(error), repr(error), *traceback.format_exception(error)])

    url = f"{server.url('/data')}?{SECRET}"
    no_wait = HttpSettings(backoff_seconds=0.0)
    server.every = fault
    attempt(lambda: HttpSource(url, no_wait).close())
    attempt(lambda: BundleReader.open(HttpSource(url, no_wait)))
    server.every = None
    source = HttpSource(url, no_wait)
    server.every = fault
    attempt(lambda: read(source, 9000, 9000))
    texts += [source.name, repr(source)]
    source.close()
    texts += [record.getMessage() for record in caplog.records]
    texts += [str(record.args) for record in caplog.records]
    assert len(texts) > 3
    found = [text for text in texts if "5ec" in text or "r3t" in text]
    assert found == []
    logger = logging.getLogger("urllib3.connectionpool")
    assert logger.filters == []


def test_46_what_urllib3_would_have_told(
    server: RangeServer, caplog: pytest.LogCaptureFixture
) -> None:
    """The warning is still there, without the query."""
    server.every = malformed
    source = HttpSource(f"{server.url('/data')}?{SECRET}")
    source.close()
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert any("Failed to parse headers" in text and "/data?..." in text for text in warnings)


def served(server: RangeServer, path: Path) -> str:
    server.objects["/x.tersor"] = path.read_bytes()
    return server.url("/x.tersor")


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (
            lambda value: value["planes"][0].update(shape=[8, 1 << 20], rows_per_chunk=8),
            BundleFormatError,
            "declares 128 raw bytes; its rows make 8388608",
        ),
        (
            lambda value: chunk_of(value).update(offset=1 << 40),
            BundleFormatError,
            "offset 1099511627776",
        ),
        (
            lambda value: value["planes"][0].update(shape=[1 << 41, 1]),
            BundleFormatError,
            "2199023255552",
        ),
    ],
)
def test_47_hostile_manifests_over_http(
    server: RangeServer,
    bundle: Path,
    change: Callable[[Json], object],
    kind: type[BundleError],
    message: str,
) -> None:
    """Refused as from a file, after two requests and without a weight."""
    forge(bundle, change)
    url = served(server, bundle)
    with pytest.raises(kind, match=message) as local:
        BundleReader.open(bundle)
    with pytest.raises(kind, match=message) as remote:
        BundleReader.open(url)
    assert str(remote.value) == str(local.value).replace(str(bundle), url)
    assert len(server.requests) == 2


def test_47_any_byte_flipped_on_the_way(server: RangeServer, bundle: Path) -> None:
    url = served(server, bundle)
    data = np.frombuffer(bundle.read_bytes(), np.uint8)
    assert verify(url).ok
    for at in range(7, data.size, 997):
        flipped = data.copy()
        flipped[at] ^= 0x10
        server.objects["/x.tersor"] = flipped.tobytes()
        try:
            report = verify(url)
        except BundleError:
            continue
        assert not report.ok, at
