"""Hostile sizes with valid digests, numbered on from the hostile manifests.

21  many tensors that share a plane of many chunks
22  chunks that are larger at rest than in memory, blocks that are too wide
23  planes that declare more memory than there is
29  shapes that hold nothing, and are too large to count
30  rows of a coded chunk that are declared longer than the chunk
"""

from __future__ import annotations

import json
import resource
import struct
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from call_count import calls_of
from tiny_bundles import (
    Json,
    add,
    asset_of,
    chunk_of,
    forge,
    manifest_text,
    noise,
    read_all,
    refuses,
    symbols,
    writer,
)

from tersor.bundle import limits
from tersor.bundle import reader as reader_module
from tersor.bundle.codecs import (
    CODEC_NAMES,
    MAX_RATIOS,
    RawCodec,
    StreamShape,
    ZstdCodec,
    default_codecs,
)
from tersor.bundle.container import pack_manifest
from tersor.bundle.decoding import BlockDecoder
from tersor.bundle.errors import BundleCorruptError, BundleFormatError, BundleLimitError
from tersor.bundle.reader import BundleReader
from tersor.bundle.verify import verify


@pytest.fixture
def many_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One tensor whose plane has 3000 chunks of a byte."""
    path = tmp_path / "chunks.tersor"
    monkeypatch.setattr(limits, "TARGET_BLOCK_RAW_BYTES", 1)
    monkeypatch.setattr(limits, "MAX_TARGET_BLOCK_RAW_BYTES", 1)
    with writer(path, codec="raw") as target:
        add(target, "w", "u8", symbols("u8", (3000, 1)))
        target.commit()
    return path


def share(path: Path, tensors: int) -> None:
    """Lets that many tensors use the first plane."""

    def change(value: Json) -> None:
        first = {**value["tensors"][0], "sources": []}
        names = [f"t{index}" for index in range(tensors)]
        value["tensors"] = [{**first, "name": name} for name in names]
        value["groups"] = [{"name": "embedding", "tensors": names}]

    forge(path, change)


def test_21_a_shared_plane_is_checked_once(many_chunks: Path) -> None:
    share(many_chunks, 1)
    one = calls_of(lambda: BundleReader.open(many_chunks).close())
    share(many_chunks, 300)
    many = calls_of(lambda: BundleReader.open(many_chunks).close())
    # A tensor costs its own fields, not its plane's chunks.
    assert one > 3000
    assert many - one < 299 * 300


def test_21_the_size_of_a_shared_plane_is_summed_once(many_chunks: Path) -> None:
    share(many_chunks, 300)
    with BundleReader.open(many_chunks) as reader:
        planes = [tensor.planes[0] for tensor in reader.manifest.tensors]
        sizes: list[int] = []
        calls = calls_of(lambda: sizes.extend(plane.stored_bytes for plane in planes))
        assert sizes == [3000] * 300
        assert calls < 300 * 20


@pytest.mark.parametrize("codec", CODEC_NAMES[1:])
@pytest.mark.parametrize("stored", [129, 1 << 40])
def test_22_chunks_that_are_larger_at_rest(bundle: Path, codec: str, stored: int) -> None:
    forge(bundle, lambda value: chunk_of(value).update(codec=codec, stored_bytes=stored))
    least = -(-128 // MAX_RATIOS[codec])
    refuses(bundle, f"128 raw bytes in {stored} bytes of {codec}; expected {least} to 128")


def test_22_an_asset_that_is_larger_at_rest(bundle: Path) -> None:
    """The file is made long enough for what the chunk declares, at no cost: it is sparse."""
    text, footer = manifest_text(bundle.read_bytes())
    value = json.loads(text)
    size = 1 << 40
    asset_of(value, 1).update(stored_bytes=size, codec="zstd")
    end = asset_of(value, 1)["offset"] + size
    stored, forged = pack_manifest(json.dumps(value).encode(), end, ZstdCodec())
    with bundle.open("r+b") as file:
        file.truncate(end)
        file.seek(end)
        file.write(stored + forged.pack())
    assert forged.file_bytes > size > footer.file_bytes
    for use in (read_all, verify):
        with pytest.raises(BundleFormatError, match=r"asset 'licences/LICENSE' cannot hold 4 raw"):
            use(bundle)


@pytest.mark.parametrize("codec", CODEC_NAMES)
@pytest.mark.parametrize("size", [*range(1, 20), 1000, 100_000])
def test_22_the_writer_stores_raw_what_does_not_shrink(
    tmp_path: Path, codec: str, size: int
) -> None:
    with writer(tmp_path / "x.tersor", codec=codec) as target:
        add(target, "noise", "u8", noise(size))
        add(target, "floats", "bf16", symbols("bf16", (size,)))
        target.add_asset("noise", noise(size).tobytes(), "application/octet-stream")
        manifest = target.commit()
    planes = [tensor.planes[0] for tensor in manifest.tensors]
    chunks = [chunk for plane in planes for stream in plane.streams for chunk in stream.chunks]
    for chunk in (*chunks, manifest.assets[0].chunk):
        assert (chunk.codec, chunk.stored_bytes) == ("raw", chunk.raw_bytes)


def test_22_a_block_wider_than_any_the_writer_makes(bundle: Path) -> None:
    shape = [4, (1 << 27) + 1]  # f64 rows of a gibibyte and eight bytes, each stream an eighth

    def change(value: Json) -> None:
        value["planes"][0].update(dtype="f64", shape=shape, rows_per_chunk=1)
        streams = value["planes"][0]["streams"]
        names = ["exponent", *(f"mantissa{byte}" for byte in range(6, -1, -1))]
        value["planes"][0]["streams"] = [
            {"name": name, "chunks": streams[0]["chunks"] * 4} for name in names
        ]

    forge(bundle, change)
    refuses(bundle, "has blocks of 1073741832 raw bytes", BundleLimitError)


BOMB_BYTES = 1 << 27


@pytest.fixture
def bomb(tmp_path: Path) -> Path:
    """A file of a few KiB whose only plane is 128 MiB: each MiB of it repeats 251 bytes."""
    path = tmp_path / "bomb.tersor"
    cycle = np.arange(251, dtype=np.uint8)
    with writer(path, codec="zstd") as target:
        add(
            target,
            "w",
            "u8",
            np.stack([np.resize(cycle + np.uint8(n), 1 << 20) for n in range(128)]),
        )
        target.commit()
    assert path.stat().st_size < 1 << 17
    return path


TIGHT = """
import resource, sys
from tersor.bundle.errors import BundleLimitError
from tersor.bundle.reader import BundleReader
with BundleReader.open(sys.argv[1], threads=1) as reader:
    plane = reader.manifest.tensors[0].planes[0]
    encoded = reader.fetch_plane(plane)
    pages = int(open("/proc/self/statm").read().split()[0])
    limit = pages * resource.getpagesize() + (1 << 25)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for read in (lambda: reader.read_plane(plane), encoded.decode):
        try:
            read()
        except BundleLimitError as error:
            print(error)
    print(len(reader.read_plane(plane, rows=(7, 9))))
"""


def test_23_a_plane_that_declares_more_than_there_is(bomb: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", TIGHT, bomb], capture_output=True, text=True, check=True, timeout=60
    )
    read, decode, rows = done.stdout.splitlines()
    message = f"plane 'values' declares {BOMB_BYTES} bytes in memory, more than could be allocated"
    assert read.startswith(f"{bomb}: {message}; free memory")
    assert decode.startswith(message)
    assert rows == "2"


def test_23_memory_is_taken_by_what_was_verified(bomb: Path) -> None:
    """A damaged block ends the read before the blocks after it take any memory."""
    with BundleReader.open(bomb, threads=1) as reader:
        plane = reader.manifest.tensors[0].planes[0]
        chunk = plane.streams[0].chunks[2]
        with bomb.open("r+b") as file:
            file.seek(chunk.offset + chunk.stored_bytes - 1)
            file.write(b"\xff")
        before = resident_bytes()
        with pytest.raises(BundleCorruptError, match="chunk 2 of stream 'data'") as caught:
            reader.read_plane(plane)
        # The traceback still holds the array.
        assert resident_bytes() - before < BOMB_BYTES // 8
        del caught


def resident_bytes() -> int:
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * resource.getpagesize()


@pytest.mark.parametrize("use", [read_all, verify])
@pytest.mark.parametrize(
    ("owner", "name"),
    [(reader_module, "manifest_from_json"), (BlockDecoder, "decode"), (RawCodec, "decode")],
)
def test_23_any_allocation_may_fail(
    bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    use: Callable[[Path], object],
    owner: object,
    name: str,
) -> None:
    def no_memory(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(owner, name, no_memory)
    with pytest.raises(BundleLimitError, match=r"more than could be allocated") as caught:
        use(bundle)
    assert str(caught.value).startswith(f"{bundle}: ")


@pytest.mark.parametrize("shape", [[1 << 40, 0, 1 << 40], [0, 1 << 40, 1 << 30], [0] + [2] * 15])
def test_29_empty_shapes(bundle: Path, shape: list[int]) -> None:
    """numpy has no array of such a shape, though it would have no element."""

    def change(value: Json) -> None:
        empty = next(plane for plane in value["planes"] if 0 in plane["shape"])
        empty["shape"] = shape

    forge(bundle, change)
    if shape[-1] == 2:
        assert read_all(bundle)["layers.1.none/values"] == b""
    else:
        refuses(bundle, r"has the shape \[.*of 0 taken as 1", BundleLimitError)


@pytest.mark.parametrize("field", ["tensor", "source"])
def test_29_empty_shapes_of_what_planes_make(bundle: Path, field: str) -> None:
    def change(value: Json) -> None:
        tensor = next(tensor for tensor in value["tensors"] if 0 in tensor["shape"])
        owner = tensor if field == "tensor" else tensor["sources"][0]
        owner["shape"] = [0, 1 << 40, 1 << 30]

    forge(bundle, change)
    refuses(bundle, r"has the shape \[.*of 0 taken as 1", BundleLimitError)


def test_30_a_row_longer_than_its_chunk() -> None:
    """Its length is 32 bits that no byte of the chunk stands behind; here it is 4 GiB."""
    rows, width = 64, 128
    codec = default_codecs()["rans"]
    scale = np.array([2, 16, 64, 255], np.uint8)[np.arange(rows) % 4][:, None]
    data = (noise(8 * rows * width).reshape(8 * rows, width) % np.tile(scale, (8, 1))).reshape(-1)
    (encode,) = codec.encoders
    good = encode(data, StreamShape(row_symbols=width), None)
    # What a first decoder takes to be compiled is not what is measured.
    assert codec.decode(np.frombuffer(good, np.uint8), data.size).tobytes() == data.tobytes()
    stored = bytearray(good)
    _, _, _, _, row_symbols, model_bytes, _ = struct.unpack_from("<BBBBIII", stored)
    assert row_symbols == width, "the chunk has no classes of rows"
    at = 16 + model_bytes
    packed = 8 * rows // 4  # four classes: two bits a row
    stored[at : at + packed] = bytes(4)  # one row, of class 0, and padding
    struct.pack_into("<I", stored, 4, (1 << 32) - 1)
    bad = np.frombuffer(bytes(stored), np.uint8)
    tracemalloc.start()
    with pytest.raises(BundleCorruptError, match="does not decode"):
        codec.decode_into(bad, np.empty(data.size, np.uint8))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5 << 20
