"""Sources: one contract, whatever the bytes come from."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from range_server import range_server
from tiny_bundles import add, noise, symbols, weights, write_tiny, writer

from tersor.bundle.errors import (
    BundleFormatError,
    BundleNotFoundError,
    BundleReadError,
    BundleTruncatedError,
)
from tersor.bundle.location import (
    BundleUrl,
    file_name,
    location_text,
    parse_location,
)
from tersor.bundle.reader import BundleReader
from tersor.bundle.sources import ByteSource, FileSource, open_sequential, open_source
from tersor.bundle.sources.http import HttpSource
from tersor.bundle.sources.mapped import MappedSource
from tersor.bundle.sources.read_ahead import READ_AHEAD_BYTES, ReadAhead
from tersor.bundle.verify import verify

DATA = noise(100_000)
Open = Callable[[], ByteSource]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "data"
    path.write_bytes(DATA.tobytes())
    return path


@pytest.fixture(params=["file", "map", "http", "ahead"])
def opened(request: pytest.FixtureRequest, path: Path) -> Iterator[ByteSource]:
    with range_server({"/data": DATA.tobytes()}) as server:
        opens: dict[str, Open] = {
            "file": lambda: FileSource(path),
            "map": lambda: MappedSource(path),
            "http": lambda: HttpSource(server.url("/data")),
            "ahead": lambda: ReadAhead(HttpSource(server.url("/data"))),
        }
        source = opens[request.param]()
        yield source
        source.close()


def test_every_source_reads_by_position_from_many_threads(opened: ByteSource) -> None:
    assert opened.size == DATA.size
    assert opened.name.endswith("/data")

    def work(number: int) -> bool:
        offset, size = number * 997, number * 31 % 5000
        out = np.empty(size, np.uint8)
        with opened.using():
            opened.read_into(offset, out)
            loaded = opened.load(offset, size)
        wanted = DATA[offset : offset + size]
        return np.array_equal(out, wanted) and np.array_equal(loaded, wanted)

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(work, range(90)))


def test_every_source_says_where_it_ends(opened: ByteSource) -> None:
    out = np.empty(10, np.uint8)
    with opened.using():
        opened.read_into(DATA.size - 10, out)
        assert np.array_equal(out, DATA[-10:])
        with pytest.raises(BundleTruncatedError, match=f"expected data up to {DATA.size + 1}"):
            opened.read_into(DATA.size - 9, out)


def test_every_source_waits_for_its_users_and_then_refuses(opened: ByteSource) -> None:
    inside, leave = threading.Event(), threading.Event()

    def use() -> None:
        with opened.using():
            inside.set()
            leave.wait(10)

    with ThreadPoolExecutor(2) as pool:
        user = pool.submit(use)
        assert inside.wait(10)
        closing = pool.submit(opened.close)
        with pytest.raises(TimeoutError):
            closing.result(0.05)
        leave.set()
        user.result(10)
        closing.result(10)
    opened.close()
    with pytest.raises(BundleReadError, match="is closed; open the bundle again"), opened.using():
        pass


def test_opening_picks_the_source(path: Path) -> None:
    with range_server({"/data": DATA.tobytes()}) as server:
        for place, access, kind in (
            (path, "read", FileSource),
            (str(path), "read", FileSource),
            (path, "map", MappedSource),
            (server.url("/data"), "read", HttpSource),
            (BundleUrl.parse(server.url("/data")), "read", HttpSource),
        ):
            source = open_source(place, access=access)  # type: ignore[arg-type]  # of a tuple
            assert type(source) is kind
            source.close()
            assert open_source(source) is source
        sequential = open_sequential(server.url("/data"))
        assert type(sequential) is ReadAhead
        sequential.close()
    assert type(open_sequential(path)) is FileSource
    for wrong in (server.url("/data"), FileSource(path)):
        with pytest.raises(ValueError, match="only the path of a file can be mapped"):
            open_source(wrong, access="map")
    with pytest.raises(ValueError, match="access is 'mmap', expected 'read' or 'map'"):
        open_source(path, access="mmap")  # type: ignore[arg-type]


def test_a_map_reads_what_a_file_does(tmp_path: Path) -> None:
    path = tmp_path / "x.tersor"
    with writer(path) as target:
        add(target, "split", "bf16", weights((3000, 800)))
        add(target, "noise", "i8", symbols("i8", (6000, 800)))
        target.commit()
    with BundleReader.open(path) as read, BundleReader.open(path, access="map") as mapped:
        for entry in read.manifest.tensors:
            plane = entry.planes[0]
            for rows in (None, (100, 101), (0, 0), (1000, 2900)):
                expected = read.read_plane(plane, rows=rows)
                got = mapped.read_plane(plane, rows=rows)
                assert np.array_equal(got, expected)
                assert got.flags.writeable
                assert np.array_equal(mapped.fetch_plane(plane, rows=rows).decode(), expected)
    assert verify(path, access="map") == verify(path)


def test_what_was_fetched_from_a_map_copies_nothing_and_outlives_it(tmp_path: Path) -> None:
    path = tmp_path / "x.tersor"
    array = symbols("i8", (6000, 800))
    with writer(path) as target:
        add(target, "noise", "i8", array)
        target.commit()
    reader = BundleReader.open(path, access="map")
    encoded = reader.fetch_plane(reader.manifest.tensor("noise").planes[0])
    assert not encoded._stored.flags.writeable
    assert not encoded._stored.flags.owndata
    reader.close()
    del reader
    gc.collect()
    assert str(path) in Path("/proc/self/maps").read_text(encoding="utf-8")
    decoded = encoded.decode()
    assert np.array_equal(decoded, array)
    decoded[:] = 0  # the caller's own
    assert np.array_equal(encoded.decode(), array)
    del encoded
    gc.collect()
    assert str(path) not in Path("/proc/self/maps").read_text(encoding="utf-8")


def test_a_map_of_a_file_that_became_shorter_is_an_error(path: Path) -> None:
    source = MappedSource(path)
    with source.using():
        os.truncate(path, 50_000)
        assert source.view(49_990, 10).size == 10
        with pytest.raises(BundleTruncatedError, match="ends at byte 50000, expected data up to"):
            source.view(49_991, 10)
    source.close()


@pytest.mark.parametrize("access", ["read", "map"])
def test_what_cannot_be_opened(tmp_path: Path, access: str) -> None:
    def refuses(name: str, kind: type[Exception], message: str) -> None:
        with pytest.raises(kind, match=message):
            BundleReader.open(tmp_path / name, access=access)  # type: ignore[arg-type]  # of a list

    (tmp_path / "empty").touch()
    os.mkfifo(tmp_path / "pipe")
    refuses("none", BundleNotFoundError, "there is no file")
    refuses(".", BundleFormatError, "not a regular file")
    refuses("pipe", BundleFormatError, "not a regular file")
    refuses("x" * 300, BundleReadError, "cannot open")
    refuses("empty", BundleFormatError, "not a bundle: it starts with nothing")


def test_read_ahead_makes_few_requests_and_goes_back() -> None:
    data = noise(2 * READ_AHEAD_BYTES + 1000)
    with range_server({"/d": data.tobytes()}) as server:
        source = open_sequential(server.url("/d"))
        with source.using():
            for offset in range(0, data.size, 500_000):
                size = min(500_000, data.size - offset)
                assert np.array_equal(source.load(offset, size), data[offset : offset + size])
            assert len(server.requests) == 1 + 3
            server.requests.clear()
            # What lies behind is read alone, and what lies ahead is still there.
            assert np.array_equal(source.load(5000, 10), data[5000:5010])
            assert np.array_equal(source.load(data.size - 10, 10), data[-10:])
            assert server.asked == [(5000, 5009)]
            # Who goes on from there reads ahead again.
            assert np.array_equal(source.load(5000, 10), data[5000:5010])
            assert np.array_equal(source.load(5010, 10), data[5010:5020])
            assert server.asked[2:] == [(5010, 5010 + READ_AHEAD_BYTES - 1)]
            assert np.array_equal(source.load(1, data.size - 1), data[1:])
        source.close()


def test_locations() -> None:
    assert parse_location("a/b.tersor") == Path("a/b.tersor")
    assert parse_location("https:/x") == Path("https:/x")
    url = parse_location("HTTPS://Store.example:8443/a/Llama%203.tersor?sig=secret#part")
    assert isinstance(url, BundleUrl)
    assert parse_location(url) is url
    assert str(url) == location_text(url) == "HTTPS://Store.example:8443/a/Llama%203.tersor"
    assert url.whole.endswith("?sig=secret")
    assert "secret" not in repr(url)
    assert file_name(url) == "Llama 3.tersor"
    assert file_name(Path("a/b.tersor")) == "b.tersor"
    assert file_name(BundleUrl.parse("http://host")) == ""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("s3://bucket/x.tersor?k=secret", "s3://bucket/x.tersor: bundles are read from .* not s3"),
        ("file:///x.tersor", "not file; most object stores presign https URLs"),
        ("https:///x.tersor?k=secret", "names no host"),
        ("https://host:0/x", "names no host"),
        ("https://host:99999/x?k=secret", "its host or port is malformed"),
        ("https://[host/x?k=secret", "its host or port is malformed"),
        ("https://user:secret@host/x", "https://host/x: the URL holds a user name or a password"),
        ("https://host/a b?k=secret", "has spaces or control characters"),
        ("https://host/\x1b[31m?k=secret", r"'https://host/\\x1b\[31m' is not a URL"),
    ],
)
def test_urls_that_are_none_do_not_show_their_secret(text: str, message: str) -> None:
    with pytest.raises(BundleReadError, match=message) as caught:
        parse_location(text)
    assert "secret" not in str(caught.value)
    assert str(caught.value).isprintable()


SCRIPT = """
import sys
import tersor.bundle.reader, tersor.bundle.verify
tersor.bundle.reader.BundleReader.open(sys.argv[1]).close()
assert "urllib3" not in sys.modules
"""


def test_files_need_no_http_client(tmp_path: Path) -> None:
    write_tiny(tmp_path / "x.tersor")
    subprocess.run([sys.executable, "-c", SCRIPT, tmp_path / "x.tersor"], check=True)
