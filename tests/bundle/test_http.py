"""Bundles over HTTP, against a real server: which requests are made, when, and how many."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from http_sources import DATA, read, source
from range_server import (
    Answer,
    RangeServer,
    answers,
    range_server,
)
from tiny_bundles import add, symbols, weights, write_tiny, writer

from tersor.bundle.container import HEADER_BYTES
from tersor.bundle.errors import (
    BundleCancelledError,
    BundleCorruptError,
    BundleReadError,
)
from tersor.bundle.manifest import Plane
from tersor.bundle.reader import BundleReader
from tersor.bundle.sources import read_ahead
from tersor.bundle.sources.http import HttpSource
from tersor.bundle.verify import verify


def chunk_bytes(plane: Plane, blocks: range) -> tuple[int, int]:
    """First and last byte of some blocks of a plane."""
    chunks = [stream.chunks[block] for block in blocks for stream in plane.streams]
    return min(c.offset for c in chunks), max(c.offset + c.stored_bytes for c in chunks) - 1


def test_a_url_reads_what_a_file_does(server: RangeServer, served_bundle: Path) -> None:
    path = served_bundle
    with BundleReader.open(path) as local, BundleReader.open(server.url("/x.tersor")) as remote:
        assert remote.manifest == local.manifest
        assert remote.name == server.url("/x.tersor")
        assert remote.file_bytes == path.stat().st_size
        for entry in local.manifest.tensors:
            for rows in (None, (1, 2), (0, 0)):
                expected = local.read_plane(entry.planes[0], rows=rows)
                assert np.array_equal(remote.read_plane(entry.planes[0], rows=rows), expected)
                fetched = remote.fetch_plane(entry.planes[0], rows=rows)
                assert np.array_equal(fetched.decode(), expected)
        assert remote.read_asset("text") == local.read_asset("text")
    assert verify(server.url("/x.tersor")) == verify(path)


def test_opening_takes_two_requests_and_reads_no_weights(server: RangeServer) -> None:
    size = len(server.objects["/x.tersor"])
    with BundleReader.open(server.url("/x.tersor")):
        assert server.asked == [(0, 4095), (size - (256 << 10), size - 1)]
    assert HEADER_BYTES < 4096


def test_a_manifest_larger_than_the_end_is_asked_for(
    server: RangeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tersor.bundle import reader

    monkeypatch.setattr(reader, "_REMOTE_TAIL_BYTES", 100)
    with BundleReader.open(server.url("/x.tersor")) as opened:
        assert len(server.requests) == 3
        assert opened.read_plane(opened.manifest.tensor("small").planes[0]).shape == (3,)


def test_consecutive_blocks_are_one_request(server: RangeServer) -> None:
    with BundleReader.open(server.url("/x.tersor"), threads=1) as reader:
        for name in ("split", "noise"):
            plane = reader.manifest.tensor(name).planes[0]
            assert len(plane.streams[0].chunks) > 4
            for load in (reader.read_plane, reader.fetch_plane):
                server.requests.clear()
                load(plane)
                assert server.asked == [chunk_bytes(plane, range(len(plane.streams[0].chunks)))]


def test_a_request_is_no_larger_than_a_threads_share_of_the_window(server: RangeServer) -> None:
    with BundleReader.open(server.url("/x.tersor"), threads=2, window_bytes=6 << 20) as reader:
        plane = reader.manifest.tensor("split").planes[0]
        server.requests.clear()
        reader.read_plane(plane)
        sizes = [last - first + 1 for first, last in filter(None, server.asked)]
        blocks = [
            sum(stream.chunks[block].stored_bytes for stream in plane.streams)
            for block in range(len(plane.streams[0].chunks))
        ]
        assert sum(sizes) == sum(blocks)
        assert max(blocks) < max(sizes) <= 3 << 20


def test_rows_request_only_the_bytes_of_their_blocks(server: RangeServer) -> None:
    with BundleReader.open(server.url("/x.tersor")) as reader:
        for name, first, last in (("split", 1, 2), ("noise", 2, 2)):
            plane = reader.manifest.tensor(name).planes[0]
            rows = (first * plane.rows_per_chunk + 5, (last + 1) * plane.rows_per_chunk - 1)
            server.requests.clear()
            got = reader.read_plane(plane, rows=rows)
            assert got.shape == (rows[1] - rows[0], 800)
            assert server.asked == [chunk_bytes(plane, range(first, last + 1))]


def test_shared_chunks_are_asked_for_once(tmp_path: Path) -> None:
    """Blocks that repeat, and bit planes of which half are the same zeros in every block.

    A plane's tables come first, in one request.
    """
    rows = symbols("u4", (512, 8192))
    arrays = {
        "nibbles": symbols("u8", (4096, 1024), seed=2) & 0x0F,
        "repeats": np.concatenate([rows, rows, symbols("u4", (512, 8192), seed=1), rows]),
    }
    path = tmp_path / "s.tersor"
    with writer(path) as target:
        for name, array in arrays.items():
            add(target, name, "u8", array)
        target.commit()
    with range_server({"/s": path.read_bytes()}) as server:
        for threads in (1, 3):
            with BundleReader.open(server.url("/s"), threads=threads) as reader:
                for name, array in arrays.items():
                    plane = reader.manifest.tensor(name).planes[0]
                    chunks = [chunk for stream in plane.streams for chunk in stream.chunks]
                    places = {chunk.offset: chunk.stored_bytes for chunk in chunks}
                    assert len(places) < len(chunks)
                    tables = {
                        stream.table.offset: stream.table.stored_bytes
                        for stream in plane.streams
                        if stream.table is not None
                    }
                    for load in (
                        reader.read_plane,
                        lambda plane: reader.fetch_plane(plane).decode(),
                    ):
                        server.requests.clear()
                        assert np.array_equal(load(plane), array)
                        sizes = [last - first + 1 for first, last in filter(None, server.asked)]
                        # Tables; the zeros, which the other plane may hold; and the rest.
                        assert len(sizes) <= 3
                        assert sum(sizes) == sum(places.values()) + sum(tables.values())
                        if tables:
                            assert sizes[0] == sum(tables.values())
                        rows_read = reader.read_plane(plane, rows=(1000, 2000))
                        assert np.array_equal(rows_read, array[1000:2000])
        assert verify(server.url("/s")) == verify(path)


def test_verifying_checks_parity_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "p.tersor"
    with writer(path, parity=0.1) as target:
        add(target, "w", "bf16", weights((6000, 800)))
        target.commit()
    data = bytearray(path.read_bytes())
    with range_server({"/p": bytes(data)}) as server:
        report = verify(server.url("/p"))
        assert report.ok
        assert report.parity is not None
        assert report == verify(path)
        assert len(server.requests) < 12
        for at in (10_000, len(data) - 100_000):  # in a chunk, in the parity
            damaged = bytearray(data)
            damaged[at] ^= 1
            path.write_bytes(damaged)
            server.objects["/p"] = bytes(damaged)
            report = verify(server.url("/p"))
            assert not report.ok
            assert report == verify(path)
        # What a server does not give is an error, not damage.
        monkeypatch.setattr(read_ahead, "READ_AHEAD_BYTES", 1 << 20)
        server.requests.clear()
        verify(server.url("/p"))
        count = len(server.requests)
        server.requests.clear()
        server.faults.extend([*[None] * (count - 1), answers(403)])
        with pytest.raises(BundleReadError, match="refuses access"):
            verify(server.url("/p"))
        assert len(server.requests) == count


def test_cancelled_while_pausing(server: RangeServer) -> None:
    stop = threading.Event()
    opened = HttpSource(server.url("/data"), sleep=lambda _: stop.set())
    server.every = answers(503, Retry_After="1000")
    with opened.using(), pytest.raises(BundleCancelledError):
        opened.read_into(9000, np.empty(9, np.uint8), cancelled=stop.is_set)
    assert len(server.requests) == 2
    opened.close()


def test_cancelled_inside_a_body(server: RangeServer) -> None:
    opened = source(server)
    out = np.zeros(2_000_000, np.uint8)
    with opened.using(), pytest.raises(BundleCancelledError):
        opened.read_into(9000, out, cancelled=lambda: bool(out[0] or out[1]))
    assert not out[1_000_000:].any()
    # Its connection is not used again; the source is none the worse for it.
    assert np.array_equal(read(opened, 9000, 2_000_000), DATA[9000:2_009_000])
    opened.close()


@pytest.mark.parametrize("threads", [1, 2])
def test_a_cancelled_load_makes_no_more_requests(server: RangeServer, threads: int) -> None:
    stop = threading.Event()

    def stopping(answer: Answer) -> None:
        stop.set()

    with BundleReader.open(
        server.url("/x.tersor"), threads=threads, window_bytes=threads << 20
    ) as reader:
        plane = reader.manifest.tensor("split").planes[0]
        for load in (reader.read_plane, reader.fetch_plane):
            stop.clear()
            server.requests.clear()
            server.faults.append(stopping)
            with pytest.raises(BundleCancelledError):
                load(plane, cancelled=stop.is_set)
            assert len(server.requests) <= threads
            server.faults.clear()
            assert load(plane) is not None


def test_damage_on_the_way_names_the_url_and_the_chunk(server: RangeServer) -> None:
    with BundleReader.open(server.url("/x.tersor") + "?sig=secret") as reader:
        plane = reader.manifest.tensor("split").planes[0]

        def damage(answer: Answer) -> None:
            answer.body = answer.body[:-1] + bytes([answer.body[-1] ^ 1])

        server.faults.append(damage)
        last = len(plane.streams[0].chunks) - 1
        with pytest.raises(BundleCorruptError) as caught:
            reader.read_plane(plane, rows=(last * plane.rows_per_chunk, 6000))
        assert str(caught.value).startswith(
            f"{server.url('/x.tersor')}: chunk {last} of stream 'mantissa0' of plane 'values'"
        )


def test_a_bundle_replaced_between_opening_and_reading(server: RangeServer, tmp_path: Path) -> None:
    with BundleReader.open(server.url("/x.tersor")) as reader:
        write_tiny(tmp_path / "y.tersor")
        server.objects["/x.tersor"] = (tmp_path / "y.tersor").read_bytes()
        with pytest.raises(
            BundleReadError, match=r"x\.tersor: the object was replaced while it was open"
        ):
            reader.read_plane(reader.manifest.tensor("split").planes[0])
