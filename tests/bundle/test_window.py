"""The window: bytes in flight stay within it, whatever the threads do."""

from __future__ import annotations

import threading
import tracemalloc
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from tiny_bundles import add, writer

from tersor.bundle.decoding import Cancelled
from tersor.bundle.dtypes import ByteArray
from tersor.bundle.errors import BundleCancelledError
from tersor.bundle.manifest import Plane
from tersor.bundle.reader import BundleReader
from tersor.bundle.sources import FileSource
from tersor.bundle.window import ByteWindow

BLOCK = 1 << 20  # raw bytes of a block of `compressible`


def test_the_sum_stays_within_the_window_and_everybody_gets_in() -> None:
    window = ByteWindow(100)
    held = peak = 0
    lock = threading.Lock()

    def work(number: int) -> None:
        nonlocal held, peak
        size = 10 + 7 * (number % 9)
        with window.hold(size):
            with lock:
                held += size
                peak = max(peak, held)
            threading.Event().wait(0.001)
            with lock:
                held -= size

    with ThreadPoolExecutor(12) as pool:
        list(pool.map(work, range(120)))
    assert 66 < peak <= 100


def waiting(window: ByteWindow, count: int) -> None:
    """Returns once so many threads wait."""
    while len(window._waiting) < count:
        threading.Event().wait(0.001)


def test_first_come_first_served() -> None:
    """Small ones do not overtake a large one, although they would fit."""
    window = ByteWindow(100)
    order: list[int] = []

    def take(size: int) -> None:
        with window.hold(size):
            order.append(size)

    threads = [threading.Thread(target=take, args=(size,)) for size in (90, 20, 10)]
    with window.hold(50):
        for number, thread in enumerate(threads):
            thread.start()
            waiting(window, number + 1)
        assert order == []
    for thread in threads:
        thread.join()
    assert order[0] == 90
    assert sorted(order) == [10, 20, 90]


def test_what_is_larger_than_the_window_goes_alone() -> None:
    window = ByteWindow(100)
    entered = threading.Event()

    def take() -> None:
        with window.hold(1000):
            entered.set()

    thread = threading.Thread(target=take)
    with window.hold(1):
        thread.start()
        waiting(window, 1)
        assert not entered.wait(0.02)
    thread.join()
    assert entered.is_set()
    with window.hold(100):
        pass


def test_a_cancelled_wait_leaves_its_place_to_the_next() -> None:
    window = ByteWindow(100)
    stop = threading.Event()
    with ThreadPoolExecutor(2) as pool:

        def take(size: int, cancelled: Cancelled | None) -> int:
            with window.hold(size, cancelled):
                return size

        with window.hold(50):
            large = pool.submit(take, 90, stop.is_set)
            waiting(window, 1)
            small = pool.submit(take, 20, None)
            waiting(window, 2)
            stop.set()
            with pytest.raises(BundleCancelledError):
                large.result(10)
            assert small.result(10) == 20
    with window.hold(100):
        pass


def test_an_error_inside_gives_the_bytes_back() -> None:
    window = ByteWindow(10)
    with pytest.raises(KeyError), window.hold(10):
        raise KeyError
    with window.hold(10):
        pass


@pytest.mark.parametrize("size", [0, -1])
def test_a_window_has_at_least_a_byte(size: int) -> None:
    with pytest.raises(ValueError, match=f"window_bytes is {size}, expected at least 1"):
        ByteWindow(size)


def block_sizes(plane: Plane) -> list[int]:
    """Stored bytes of each block."""
    chunks = zip(*(stream.chunks for stream in plane.streams), strict=True)
    return [sum(chunk.stored_bytes for chunk in block) for block in chunks]


class CountingSource(FileSource):
    """Knows how many bytes of what was read are still alive, and the most there ever were."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.lock = threading.Lock()
        self.alive = self.peak = 0
        self.largest = 0

    def read_into(self, offset: int, out: ByteArray, *, cancelled: Cancelled | None = None) -> None:
        base = out if out.base is None else out.base
        size = out.size
        with self.lock:
            self.alive += size
            self.peak = max(self.peak, self.alive)
            self.largest = max(self.largest, size)
        weakref.finalize(base, self.freed, size)
        super().read_into(offset, out, cancelled=cancelled)
        threading.Event().wait(0.002)  # so that other threads would come in

    def freed(self, size: int) -> None:
        with self.lock:
            self.alive -= size


class CoalescingSource(CountingSource):
    is_remote = True


@pytest.fixture(scope="module")
def compressible(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plane of 32 blocks of bell-shaped numbers, without filter, tables or shared chunks."""
    path = tmp_path_factory.mktemp("window") / "c.tersor"
    array = np.random.default_rng(0).normal(0, 20, (32, BLOCK)).astype(np.int8)
    with writer(path, codec="zstd") as target:
        add(target, "w", "i8", array)
        (tensor,) = target.commit().tensors
    (stream,) = tensor.planes[0].streams
    assert {chunk.codec for chunk in stream.chunks} == {"zstd"}
    return path


@pytest.mark.parametrize(
    ("kind", "window", "at_once"), [(CountingSource, 5, 1), (CoalescingSource, 26, 3)]
)
def test_a_reader_holds_no_more_than_its_window(
    compressible: Path, kind: type[CountingSource], window: int, at_once: int
) -> None:
    """`window` in halves of a block; four threads would hold eight, or with runs 24 of them."""
    source = kind(compressible)
    with BundleReader.open(compressible) as reader:
        sizes = block_sizes(reader.manifest.tensor("w").planes[0])
        block = max(sizes)
        assert len(sizes) > 24
    window = window * block // 2
    with BundleReader.open(source, threads=4, window_bytes=window) as reader:
        plane = reader.manifest.tensor("w").planes[0]
        source.peak = source.largest = 0
        with ThreadPoolExecutor(3) as pool:  # three callers and the reader's own threads
            results = list(pool.map(lambda _: reader.read_plane(plane), range(3)))
        assert all(np.array_equal(result, results[0]) for result in results)
    assert at_once * block < source.peak <= window
    assert (at_once - 0.5) * block < source.largest <= at_once * block


def test_memory_beside_the_result_is_the_window_and_decoding(compressible: Path) -> None:
    with BundleReader.open(compressible, threads=4, window_bytes=BLOCK) as reader:
        plane = reader.manifest.tensor("w").planes[0]
        reader.read_plane(plane, rows=(0, 1))  # what is made once
        raw = plane.streams[0].chunks[0].raw_bytes
        tracemalloc.start()
        try:
            result = reader.read_plane(plane)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    # Only one block's stored bytes fit at a time, so only one is decoded at a time.
    assert peak - result.nbytes < 2 * (BLOCK + raw)


def test_a_block_larger_than_the_window_is_read_all_the_same(compressible: Path) -> None:
    source = CountingSource(compressible)
    with BundleReader.open(source, threads=4, window_bytes=1) as reader:
        plane = reader.manifest.tensor("w").planes[0]
        source.peak = 0
        assert reader.read_plane(plane).shape == (32, BLOCK)
        assert source.peak == max(block_sizes(plane))


def test_a_cancelled_read_does_not_wait_for_the_window(compressible: Path) -> None:
    with BundleReader.open(compressible, threads=1, window_bytes=1) as reader:
        plane = reader.manifest.tensor("w").planes[0]
        stop = threading.Event()
        with ThreadPoolExecutor(1) as pool, reader._loader._window.hold(1):
            read = pool.submit(reader.read_plane, plane, cancelled=stop.is_set)
            waiting(reader._loader._window, 1)
            stop.set()
            with pytest.raises(BundleCancelledError):
                read.result(10)
