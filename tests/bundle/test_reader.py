"""Reading: concurrent, cancellable, timed, and safe when the file changes under it."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from tiny_bundles import add, symbols, weights, write_tiny, writer

from tersor.bundle.errors import (
    BundleCancelledError,
    BundleCorruptError,
    BundleFormatError,
    BundleNotFoundError,
    BundleReadError,
    BundleTruncatedError,
)
from tersor.bundle.phases import PhaseTimes
from tersor.bundle.reader import BundleReader


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """Two planes of several chunks each, one of them raw."""
    path = tmp_path / "large.tersor"
    with writer(path) as target:
        add(target, "split", "bf16", weights((3000, 800)))
        add(target, "noise", "i8", symbols("i8", (6000, 800)))
        target.commit()
    return path


def test_many_threads_read_one_reader(large: Path) -> None:
    expected = {"split": weights((3000, 800)), "noise": symbols("i8", (6000, 800))}
    with BundleReader.open(large, threads=3) as reader, ThreadPoolExecutor(8) as pool:
        planes = {entry.name: entry.planes[0] for entry in reader.manifest.tensors}

        def work(number: int) -> bool:
            name = "split" if number % 2 else "noise"
            rows = (number * 50, number * 50 + 900)
            result = reader.read_plane(planes[name], rows=rows)
            return np.array_equal(result, expected[name][rows[0] : rows[1]])

        assert all(pool.map(work, range(40)))


def test_phases_partition_the_load(large: Path) -> None:
    times = PhaseTimes()
    whole = PhaseTimes()
    with whole.measure("load"), BundleReader.open(large, times=times) as reader:
        for entry in reader.manifest.tensors:
            reader.read_plane(entry.planes[0], times=times)
    assert set(times.seconds) == {"open", "read", "verify", "decode"}
    assert all(seconds > 0 for seconds in times.seconds.values())
    assert sum(times.seconds.values()) <= whole.seconds["load"]


def test_phases_use_the_given_clock_and_count_failures() -> None:
    ticks = iter(range(100))
    times = PhaseTimes(clock=lambda: float(next(ticks)))
    with times.measure("read"):
        pass
    with pytest.raises(KeyError), times.measure("read"):
        raise KeyError
    assert times.seconds == {"read": 2.0}


@pytest.mark.parametrize("threads", [1, 2])
def test_a_cancelled_read_stops_between_chunks(large: Path, threads: int) -> None:
    calls = 0
    lock = threading.Lock()

    def after_five() -> bool:
        nonlocal calls
        with lock:
            calls += 1
            return calls > 5

    with BundleReader.open(large, threads=threads) as reader:
        plane = reader.manifest.tensor("split").planes[0]
        encoded = reader.fetch_plane(plane)
        with pytest.raises(BundleCancelledError, match="cancelled"):
            encoded.decode(cancelled=after_five)
        assert calls < 5 + len(plane.streams[0].chunks)
        with pytest.raises(BundleCancelledError):
            reader.fetch_plane(plane, cancelled=lambda: True)
        # The reader is none the worse for it.
        assert np.array_equal(reader.read_plane(plane), weights((3000, 800)))


def test_a_closed_reader_says_so_but_fetched_planes_still_decode(large: Path) -> None:
    reader = BundleReader.open(large, threads=2)
    plane = reader.manifest.tensor("split").planes[0]
    encoded = reader.fetch_plane(plane)
    reader.close()
    reader.close()
    assert np.array_equal(encoded.decode(), weights((3000, 800)))
    with pytest.raises(BundleReadError, match="is closed; open the bundle again"):
        reader.read_plane(plane)


def test_close_waits_for_reads_in_progress(large: Path) -> None:
    reader = BundleReader.open(large, threads=1)
    plane = reader.manifest.tensor("noise").planes[0]
    reading, go_on = threading.Event(), threading.Event()
    calls = iter(range(100))

    def blocks_at_its_second_call() -> bool:
        # The first comes before the file is in use.
        if next(calls) == 1:
            reading.set()
            go_on.wait(10)
        return False

    with ThreadPoolExecutor(2) as pool:
        fetch = pool.submit(reader.fetch_plane, plane, cancelled=blocks_at_its_second_call)
        assert reading.wait(10)
        closing = pool.submit(reader.close)
        with pytest.raises(TimeoutError):
            closing.result(0.05)
        go_on.set()
        assert fetch.result(10).stored_bytes == 4_800_000
        closing.result(10)


def test_raw_planes_become_the_array_without_a_copy_only_when_given_away(large: Path) -> None:
    with BundleReader.open(large) as reader:
        plane = reader.manifest.tensor("noise").planes[0]
        assert {chunk.codec for chunk in plane.streams[0].chunks} == {"raw"}
        encoded = reader.fetch_plane(plane)
        first, second = encoded.decode(), encoded.decode()
        first[:] = 0
        assert np.array_equal(second, symbols("i8", (6000, 800)))
        assert np.array_equal(encoded.decode(), second)


def test_a_file_truncated_while_open_is_an_error_not_a_crash(large: Path) -> None:
    with BundleReader.open(large) as reader:
        os.truncate(large, 8192)
        with pytest.raises(BundleTruncatedError, match="truncated while open"):
            reader.read_plane(reader.manifest.tensor("noise").planes[0])


def test_damage_names_the_file_plane_and_chunk(large: Path) -> None:
    with BundleReader.open(large) as reader:
        plane = reader.manifest.tensor("split").planes[0]
        chunk = plane.streams[1].chunks[2]
        with large.open("r+b") as file:
            file.seek(chunk.offset + 5)
            byte = file.read(1)
            file.seek(chunk.offset + 5)
            file.write(bytes([byte[0] ^ 1]))
        with pytest.raises(
            BundleCorruptError,
            match=r"large\.tersor: chunk 2 of stream 'mantissa0' of plane 'values' is damaged",
        ):
            reader.read_plane(plane)
        # Rows of other chunks are still there.
        assert reader.read_plane(plane, rows=(0, 10)).shape == (10, 800)


def test_things_that_are_not_files(tmp_path: Path) -> None:
    with pytest.raises(BundleNotFoundError, match="there is no file"):
        BundleReader.open(tmp_path / "none.tersor")
    with pytest.raises(BundleFormatError, match="not a regular file"):
        BundleReader.open(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BundleFormatError, match="not a regular file"):
        BundleReader.open(tmp_path / "pipe")
    with pytest.raises(BundleReadError, match="cannot open"):
        BundleReader.open(tmp_path / ("x" * 300))


def test_a_missing_asset_lists_those_there_are(tmp_path: Path) -> None:
    path = tmp_path / "x.tersor"
    write_tiny(path)
    with (
        BundleReader.open(path) as reader,
        pytest.raises(BundleNotFoundError, match=r"it has: tokenizer\.json, licences/LICENSE"),
    ):
        reader.read_asset("config.json")


def test_opening_starts_no_thread_and_closing_leaves_none(large: Path) -> None:
    before = threading.active_count()
    with BundleReader.open(large, threads=2) as reader:
        assert threading.active_count() == before
        reader.read_plane(reader.manifest.tensor("split").planes[0])
        assert threading.active_count() == before + 2
    assert threading.active_count() == before
