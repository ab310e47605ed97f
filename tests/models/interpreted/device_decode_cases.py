"""Real bundles through the GPU's load under Triton's interpreter. Run by ../test_device_decode.py.

A step of 32 symbols takes the interpreter several milliseconds, so planes are small.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from poison import poisoned_memory
from tiny_bundles import add, writer

from tersor.bundle import encoding, limits
from tersor.bundle.codecs import RansCodec, StreamShape
from tersor.bundle.codecs.base import Draft
from tersor.bundle.dtypes import AnyArray, ByteArray, numpy_dtype
from tersor.bundle.errors import BundleCancelledError, BundleCorruptError, BundleLimitError
from tersor.bundle.filters import FILTERS
from tersor.bundle.manifest import TensorEntry
from tersor.bundle.phases import PhaseTimes
from tersor.bundle.plane_data import PlaneData
from tersor.bundle.reader import BundleReader
from tersor.kernels.float12 import Float12Layout
from tersor.models import device_decode, entropy, weights
from tersor.models.device_decode import DeviceDecoder
from tersor.models.weights import EncodedGroup, fetch_group, load_group

CPU = torch.device("cpu")
_TORCH = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Case:
    filter: str
    dtype: str
    shape: tuple[int, ...]
    block_bytes: int = 1 << 20  # one block
    spread: float = 2.0

    def array(self) -> AnyArray:
        """Bell-shaped, so that every stream of every filter has something to be coded."""
        rng = np.random.default_rng(5)
        if self.dtype.startswith("f8"):
            return (48 + 8 * rng.integers(0, 3, self.shape)).astype(np.uint8)
        if self.filter in {"float_split", "row_exponent"}:
            values = np.round(rng.normal(size=self.shape) * 8) / 8
            if self.filter == "row_exponent":
                values *= 4.0 ** np.arange(self.shape[0])[:, None]
            if self.dtype == "bf16":
                return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
            return values.astype(numpy_dtype(self.dtype))
        low, high = {"bool": (0, 1), "u4": (0, 15), "i8": (-128, 127)}.get(self.dtype, (0, 9999))
        spread = {"bool": 0.3, "u4": 0.22}.get(self.dtype, self.spread)
        centre = 7 if high > 1 and (low == 0 or self.filter == "bit_planes") else 0
        drawn = np.round(rng.normal(size=self.shape) * spread + centre)
        drawn[7::8, -1] = np.arange(drawn.shape[0] // 8) + 100  # each once: not all in a table
        return drawn.clip(low, high).astype(numpy_dtype(self.dtype))


CASES = {
    "plain": _Case(filter="none", dtype="i8", shape=(23, 31)),
    "plain-blocks": _Case(filter="none", dtype="i8", shape=(50, 32), block_bytes=600),
    "patched": _Case(filter="none", dtype="i8", shape=(48, 32), block_bytes=256, spread=0.2),
    "plain-u4": _Case(filter="none", dtype="u4", shape=(20, 25)),
    "plain-bool": _Case(filter="none", dtype="bool", shape=(20, 25)),
    "plain-wide": _Case(filter="none", dtype="u16", shape=(30, 29)),
    "bf16": _Case(filter="float_split", dtype="bf16", shape=(30, 33), block_bytes=1100),
    "f16": _Case(filter="float_split", dtype="f16", shape=(11, 50)),
    "f32": _Case(filter="float_split", dtype="f32", shape=(11, 41)),
    "f64": _Case(filter="float_split", dtype="f64", shape=(9, 31)),
    "rows": _Case(filter="row_exponent", dtype="bf16", shape=(14, 97), block_bytes=1500),
    "rows-f32": _Case(filter="row_exponent", dtype="f32", shape=(5, 97)),
    "nibbles": _Case(filter="nibbles", dtype="u4", shape=(35, 64), block_bytes=1300),
    "nibbles-odd": _Case(filter="nibbles", dtype="u4", shape=(27, 45)),
    "e4m3": _Case(filter="f8_split", dtype="f8_e4m3", shape=(17, 29)),
    "e5m2": _Case(filter="f8_split", dtype="f8_e5m2", shape=(20, 64), block_bytes=700),
    "bits": _Case(filter="bit_planes", dtype="i8", shape=(33, 121)),
    "bits-blocks": _Case(filter="bit_planes", dtype="u4", shape=(32, 128), block_bytes=2100),
}
# Blocks of these meet within a byte.
ON_THE_HOST = {
    "nibbles-apart": _Case(filter="nibbles", dtype="u4", shape=(78, 35), block_bytes=1365),
    "bits-apart": _Case(filter="bit_planes", dtype="i8", shape=(90, 75), block_bytes=3300),
}


def _write(path: Path, cases: dict[str, _Case], codec: str = "rans") -> None:
    """Each case as a dense tensor of its dtype (u4, which there is none of, as the codes of int4).

    All in one group.
    """
    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        bundle = stack.enter_context(writer(path, codec=codec))
        for name, case in cases.items():
            patch.setattr(limits, "TARGET_BLOCK_RAW_BYTES", case.block_bytes)
            patch.setattr(encoding, "filters_for", lambda dtype, of=case: _filters(dtype, of))
            planes = {"values": PlaneData(dtype=case.dtype, array=case.array())}
            if case.dtype == "u4":
                scales = np.full((case.shape[0], 1), 0x3F80, np.uint16)
                planes = {
                    "codes": planes["values"],
                    "scales": PlaneData(dtype="bf16", array=scales),
                }
            u4 = case.dtype == "u4"
            bundle.add_tensor(
                name=name,
                group="layers.0",
                shape=case.shape,
                dtype="f32" if u4 else case.dtype,
                layout="int4" if u4 else "dense",
                params={"group": 0, "symmetric": True} if u4 else {},
                planes=planes,
            )
        bundle.commit()


def _filters(dtype: str, case: _Case) -> tuple[object, ...]:
    return (FILTERS[case.filter if dtype == case.dtype else "none"],)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BundleReader]:
    path = tmp_path_factory.mktemp("device") / "all.tersor"
    _write(path, CASES | ON_THE_HOST)
    with BundleReader.open(path, threads=1) as reader:
        yield reader


@pytest.fixture
def on_the_device(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Loads go the way of a GPU's; collects the planes that do."""
    sent: list[str] = []
    decode = DeviceDecoder.decode

    def watched(self: DeviceDecoder, encoded: object, *args: object, **kwargs: object) -> object:
        sent.append(encoded.plane.filter)  # type: ignore[attr-defined]
        return decode(self, encoded, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(DeviceDecoder, "decode", watched)
    monkeypatch.setattr(
        weights, "_device_decoder", lambda device: DeviceDecoder(device, min_plane_bytes=400)
    )
    return sent


def _entry(reader: BundleReader, name: str) -> TensorEntry:
    return reader.manifest.tensor(name)


def test_cases_are_what_they_say(bundle: BundleReader) -> None:
    """Every stream of them that can be is coded; some in blocks, some with a table."""
    tables = patches = 0
    for name, case in (CASES | ON_THE_HOST).items():
        plane = _entry(bundle, name).planes[0]
        assert plane.filter == case.filter
        chunks = [chunk for stream in plane.streams for chunk in stream.chunks]
        assert any(chunk.codec == "rans" for chunk in chunks), name
        blocks = len(plane.streams[0].chunks)
        assert (blocks > 1) == (case.block_bytes < 1 << 20), name
        tables += sum(stream.table is not None for stream in plane.streams)
        for stream in bundle.fetch_plane(plane).chunks():
            coded = [chunk for chunk in stream if chunk.codec == "rans"]
            patches += sum(chunk.patch_positions.numel() for chunk in entropy.encoded_chunks(coded))
    assert tables > 0
    assert patches > 0


def test_every_filter_loads_as_on_the_host(bundle: BundleReader, on_the_device: list[str]) -> None:
    with mock.patch.object(weights, "_device_decoder", return_value=None):
        expected = load_group(bundle, "layers.0", CPU)
    times = PhaseTimes()
    with poisoned_memory():
        loaded = load_group(bundle, "layers.0", CPU, times=times)
    assert sorted(on_the_device) == sorted(case.filter for case in CASES.values())
    for name, layout in expected.items():
        width = layout.dense().itemsize
        dense = loaded[name].dense().view(_TORCH[width])
        assert torch.equal(dense, layout.dense().view(_TORCH[width])), name
    assert {"read", "verify", "decode", "transfer", "repack"} <= times.seconds.keys()


def test_the_host_tier_loads_the_same_again_and_again(
    bundle: BundleReader, on_the_device: list[str]
) -> None:
    encoded = _only(fetch_group(bundle, "layers.0"), "f16", "nibbles-odd")
    for _ in range(2):
        loaded = encoded.load(CPU)
        plane = _entry(bundle, "f16").planes[0]
        expected = torch.from_numpy(bundle.read_plane(plane)).view(torch.float16)
        assert torch.equal(loaded["f16"].dense(), expected)
    assert on_the_device == 2 * ["float_split", "nibbles"]


@pytest.mark.parametrize("name", ["bf16", "rows", "plain-bf16"])
def test_a_layout_that_keeps_bytes_apart_gets_them_apart(
    name: str, tmp_path: Path, on_the_device: list[str]
) -> None:
    """Where the filter had them apart; on the host float12 joins them again."""
    case = CASES["rows" if name == "rows" else "bf16"]
    chosen = "none" if name == "plain-bf16" else case.filter
    array = case.array()
    with (
        mock.patch.object(limits, "TARGET_BLOCK_RAW_BYTES", case.block_bytes),
        mock.patch.object(encoding, "filters_for", return_value=(FILTERS[chosen],)),
        writer(tmp_path / "float12.tersor", codec="rans") as target,
    ):
        target.add_tensor(
            name="a",
            group="layers.0",
            shape=case.shape,
            dtype="bf16",
            layout="float12",
            params={},
            planes={"values": PlaneData(dtype="bf16", array=array)},
        )
        target.commit()
    from_parts = mock.Mock(wraps=Float12Layout.from_parts)
    with (
        BundleReader.open(tmp_path / "float12.tersor", threads=1) as reader,
        mock.patch.object(Float12Layout, "from_parts", from_parts),
    ):
        loaded = load_group(reader, "layers.0", CPU)["a"]
    assert from_parts.call_count == (0 if chosen == "none" else 1)
    assert torch.equal(loaded.dense().view(torch.uint16), torch.from_numpy(array))


def test_large_planes_are_joined_in_slices(
    bundle: BundleReader, on_the_device: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A block at a time."""
    monkeypatch.setattr(device_decode, "SLICE_BYTES", 1000)
    encoded = _only(fetch_group(bundle, "layers.0"), "rows", "nibbles")
    loaded = encoded.load(CPU)
    rows, codes = (tensor.planes[0].decode() for tensor in encoded.tensors)
    assert torch.equal(loaded["rows"].dense().view(torch.uint16), torch.from_numpy(rows))
    assert torch.equal(loaded["nibbles"].dense(), torch.from_numpy(codes).float() - 8)
    assert on_the_device == ["row_exponent", "nibbles"]


def _only(group: EncodedGroup, *names: str) -> EncodedGroup:
    tensors = tuple(tensor for tensor in group.tensors if tensor.entry.name in names)
    return EncodedGroup(name=group.name, tensors=tensors)


@pytest.mark.parametrize("name", ["plain-blocks", "plain-wide", "bf16"])
def test_damage_is_named_as_on_the_host(
    name: str, bundle: BundleReader, on_the_device: list[str]
) -> None:
    """Of a word, which decoding finds, and of a header, which parsing finds."""
    for at in (-30, 0):
        encoded = _only(fetch_group(bundle, "layers.0"), name)
        stream = next(
            stream for stream in encoded.tensors[0].planes[0].chunks() if stream[0].codec == "rans"
        )
        stream[-1].stored[at] ^= 0xFF
        with pytest.raises(BundleCorruptError) as expected:
            encoded.tensors[0].planes[0].decode()
        with pytest.raises(BundleCorruptError) as caught:
            encoded.load(CPU)
        assert str(caught.value) == f"tensor {name!r}: {expected.value}"
    assert len(on_the_device) == 2


def test_streams_that_no_plane_has_are_named_as_on_the_host(
    bundle: BundleReader, on_the_device: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bits beyond a nibble's: here a fault of the device, since the host reads what is stored."""
    encoded = _only(fetch_group(bundle, "layers.0"), "e4m3")
    real = device_decode._parts

    def changed(*args: object) -> object:
        parts = real(*args)  # type: ignore[arg-type]
        parts[-1] = torch.full((17 * 29 // 2 + 1,), 0xFF, dtype=torch.uint8)
        return parts

    monkeypatch.setattr(device_decode, "_parts", changed)
    with pytest.raises(BundleCorruptError, match=r"tensor 'e4m3': .* decodes on the host, but not"):
        encoded.load(CPU)
    assert on_the_device == ["f8_split"]


def test_loads_are_cancelled(bundle: BundleReader, on_the_device: list[str]) -> None:
    encoded = _only(fetch_group(bundle, "layers.0"), "bf16")
    answers = iter([False, True])
    with pytest.raises(BundleCancelledError):
        encoded.load(CPU, cancelled=lambda: next(answers))
    assert on_the_device == ["float_split"]


def test_what_does_not_fit_on_the_device_is_named_once(
    bundle: BundleReader, on_the_device: list[str]
) -> None:
    encoded = _only(fetch_group(bundle, "layers.0"), "bf16")
    full = torch.OutOfMemoryError("no room")
    with (
        mock.patch.object(device_decode, "decode_parts", side_effect=full),
        pytest.raises(BundleLimitError, match=r"^tensor 'bf16' declares 1980 bytes in memory"),
    ):
        encoded.load(CPU)
    assert on_the_device == ["float_split"]


def test_symbols_of_two_widths_in_one_stream_are_left_to_the_host(
    tmp_path: Path, on_the_device: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No writer makes them, and a reader must read them."""
    draft = RansCodec.draft

    def by_size(
        codec: RansCodec, data: ByteArray, shape: StreamShape, table: ByteArray | None
    ) -> Draft:
        narrow = data.size < 1500
        table = None if narrow else table
        return draft(codec, data, replace(shape, symbol_bytes=1 if narrow else 2), table)

    monkeypatch.setattr(RansCodec, "draft", by_size)
    array = (np.random.default_rng(3).integers(0, 3, (45, 32)) * 257).astype(np.uint16)
    path = tmp_path / "widths.tersor"
    with (
        mock.patch.object(limits, "TARGET_BLOCK_RAW_BYTES", 32 * 2 * 25),
        mock.patch.object(encoding, "filters_for", return_value=(FILTERS["none"],)),
        writer(path, codec="rans") as target,
    ):
        add(target, "a", "u16", array, group="layers.0")
        target.commit()
    with BundleReader.open(path, threads=1) as reader:
        (stream,) = reader.fetch_plane(_entry(reader, "a").planes[0]).chunks()
        parsed = entropy.encoded_chunks(stream)
        loaded = load_group(reader, "layers.0", CPU)
    assert [chunk.tables.values.itemsize for chunk in parsed] == [2, 1]
    assert on_the_device == ["none"]
    assert torch.equal(loaded["a"].dense(), torch.from_numpy(array))


def test_shared_chunks(tmp_path: Path, on_the_device: list[str]) -> None:
    """Equal blocks are stored once, and decoded as often as they occur."""
    array = CASES["plain-blocks"].array()
    repeated = np.concatenate([array[:18], array[:18], array[18:36]])
    with (
        mock.patch.object(limits, "TARGET_BLOCK_RAW_BYTES", 600),
        mock.patch.object(encoding, "filters_for", return_value=(FILTERS["none"],)),
        writer(tmp_path / "shared.tersor", codec="rans") as target,
    ):
        add(target, "a", "i8", repeated, group="layers.0")
        add(target, "b", "i8", repeated[:36], group="layers.0")
        target.commit()
    with BundleReader.open(tmp_path / "shared.tersor", threads=1) as reader:
        chunks = [
            chunk.offset
            for entry in reader.manifest.tensors
            for chunk in entry.planes[0].streams[0].chunks
        ]
        loaded = load_group(reader, "layers.0", CPU)
    assert len(set(chunks)) < len(chunks)
    assert on_the_device == ["none", "none"]
    assert torch.equal(loaded["a"].dense(), torch.from_numpy(repeated))
    assert torch.equal(loaded["b"].dense(), torch.from_numpy(repeated[:36]))


def test_chunks_of_other_codecs_are_decoded_on_the_host(
    tmp_path: Path, on_the_device: list[str]
) -> None:
    """A block that repeats is best stored by a string matcher; the others are not."""
    case = _Case(filter="none", dtype="i8", shape=(160, 64), block_bytes=5120, spread=0.35)
    array = case.array()
    array[80:] = np.arange(64)
    for rows, ways in ((160, ["none"]), (80, [])):
        path = tmp_path / "mixed.tersor"
        with (
            mock.patch.object(limits, "TARGET_BLOCK_RAW_BYTES", case.block_bytes),
            mock.patch.object(encoding, "filters_for", return_value=(FILTERS["none"],)),
            writer(path, codec="auto") as target,
        ):
            add(target, "a", "i8", array[-rows:], group="layers.0")
            target.commit()
        on_the_device.clear()
        with BundleReader.open(path, threads=2) as reader:
            chunks = _entry(reader, "a").planes[0].streams[0].chunks
            loaded = load_group(reader, "layers.0", CPU)
        codecs = {chunk.codec for chunk in chunks}
        assert ("rans" in codecs) == bool(ways)
        assert codecs & {"lz4", "zstd", "huffman"}
        assert on_the_device == ways
        assert torch.equal(loaded["a"].dense(), torch.from_numpy(array[-rows:]))
