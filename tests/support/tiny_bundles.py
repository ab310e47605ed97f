"""Small bundles for tests, and the tools to damage and forge them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tersor.bundle.codecs import ZstdCodec
from tersor.bundle.container import FOOTER_BYTES, Footer, pack_manifest, unpack_manifest
from tersor.bundle.dtypes import AnyArray, ByteArray, numpy_dtype
from tersor.bundle.errors import BundleError, BundleFormatError
from tersor.bundle.manifest import Manifest, SourceSlice
from tersor.bundle.program import DecoderProgram, GraphProgram, TensorSpec
from tersor.bundle.reader import BundleReader
from tersor.bundle.writer import BundleWriter, PlaneData

Json = dict[str, Any]

PRODUCER = "tersor test"


def decoder_program(**changes: Any) -> DecoderProgram:
    """A valid decoder configuration; its weights need not be in the bundle."""
    program = DecoderProgram(
        family="llama",
        vocab_size=64,
        hidden_size=16,
        intermediate_size=32,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=4,
        max_context=128,
        norm_eps=1e-5,
        rope_theta=10000.0,
        eos_token_ids=(2,),
    )
    return replace(program, **changes)


def graph_program(**changes: Any) -> GraphProgram:
    """A valid graph configuration that needs the asset `graph.json`."""
    program = GraphProgram(
        graph_asset="graph.json",
        schema_version=(8, 1),
        torch_version="2.13.0",
        inputs=(TensorSpec(name="x", dtype="f32", shape=(-1, 3)),),
        outputs=(TensorSpec(name="y", dtype="f32", shape=(-1, 2)),),
        batch_dim_dynamic=True,
        max_batch_size=8,
    )
    return replace(program, **changes)


def writer(path: Path, **changes: Any) -> BundleWriter:
    """A writer with the fields that a test does not care about."""
    fields: dict[str, Any] = {
        "program": decoder_program(),
        "source": {"format": "test"},
        "recipe": {"name": "lossless"},
        "producer": PRODUCER,
    }
    return BundleWriter(path, **{**fields, **changes})


def add(
    target: BundleWriter, name: str, dtype: str, array: AnyArray, *, group: str = "embedding"
) -> None:
    """Adds a tensor of one plane, with itself as its source."""
    target.add_tensor(
        name=name,
        group=group,
        shape=array.shape,
        dtype=dtype,
        layout="dense",
        params={},
        planes={"values": PlaneData(dtype=dtype, array=array)},
        sources=[
            SourceSlice(
                tensor=name,
                dtype=dtype,
                shape=array.shape,
                rows=array.shape[0] if array.shape else 1,
            )
        ],
    )


def noise(size: int, seed: int = 0) -> ByteArray:
    """Random bytes that no version of numpy may change (its distributions may)."""
    words: ByteArray = np.random.PCG64(seed).random_raw(-(-size // 8)).view(np.uint8)
    return words[:size]


def symbols(dtype: str, shape: tuple[int, ...], seed: int = 0) -> AnyArray:
    """Every bit pattern a plane of `dtype` may hold, at random."""
    kind = numpy_dtype(dtype)
    data = noise(math.prod(shape) * kind.itemsize, seed)
    data &= {"bool": 1, "u4": 15}.get(dtype, 255)
    return data.view(kind).reshape(shape)


def weights(shape: tuple[int, ...], seed: int = 0) -> AnyArray:
    """bf16 bits of bell-shaped weights, as trained ones look to a codec."""
    uniform = noise(math.prod(shape) * 8, seed).view("<u2").reshape(*shape, 4).astype(np.int32)
    values = (uniform.sum(axis=-1) - (2 << 16)).astype(np.float32) * np.float32(2.0**-21)
    bits: AnyArray = (values.view(np.uint32) >> 16).astype(np.uint16)
    return bits


def write_tiny(path: Path, **changes: Any) -> Manifest:
    """A bundle of every kind of plane: split, nibbles, plain, shared, scalar and empty."""
    matrix = weights((8, 16))
    with writer(path, **changes) as target:
        add(target, "embedding", "bf16", matrix)
        target.add_tensor(
            name="layers.0.qkv",
            group="layers.0",
            shape=(8, 15),
            dtype="bf16",
            layout="int4",
            params={"group": 0, "symmetric": True},
            planes={
                "codes": PlaneData(dtype="u4", array=np.full((8, 15), 7, np.uint8)),
                "scales": PlaneData(dtype="bf16", array=weights((8, 1), seed=1)),
            },
        )
        add(target, "layers.1.qkv", "i8", symbols("i8", (3, 5)), group="layers.1")
        add(target, "layers.1.step", "f32", np.array(0.5, np.float32), group="layers.1")
        add(target, "layers.1.none", "f32", np.zeros((0, 4), np.float32), group="layers.1")
        add(target, "head", "bf16", matrix.copy(), group="head")
        target.add_asset(
            "tokenizer.json", b'{"model": "' + b"tiny " * 40 + b'"}', "application/json"
        )
        target.add_asset("licences/LICENSE", b"free", "text/plain")
        return target.commit(certificate={"kl": 0.0})


def read_all(path: Path) -> dict[str, bytes]:
    """Everything a bundle holds, decoded; raises what opening and reading raise."""
    with BundleReader.open(path, threads=1) as reader:
        content = {
            f"{entry.name}/{plane.name}": reader.read_plane(plane).tobytes()
            for entry in reader.manifest.tensors
            for plane in entry.planes
        }
        for asset in reader.manifest.assets:
            content[asset.name] = reader.read_asset(asset.name)
        return content


def manifest_text(data: bytes) -> tuple[bytes, Footer]:
    """The manifest's JSON text of a bundle's bytes, and the footer."""
    footer = Footer.unpack(data[-FOOTER_BYTES:], len(data))
    stored = data[footer.manifest_offset : footer.manifest_offset + footer.manifest_stored_bytes]
    return unpack_manifest(stored, footer, ZstdCodec()), footer


def forge_text(path: Path, change: Callable[[bytes], bytes]) -> None:
    """Replaces the manifest's text, with a valid digest and footer around it."""
    data = path.read_bytes()
    text, footer = manifest_text(data)
    stored, forged = pack_manifest(change(text), footer.manifest_offset, ZstdCodec())
    path.write_bytes(data[: footer.manifest_offset] + stored + forged.pack())


def forge(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Changes the manifest's parsed JSON in place, with a valid digest and footer around it."""

    def changed(text: bytes) -> bytes:
        value = json.loads(text)
        change(value)
        return json.dumps(value, ensure_ascii=False).encode()

    forge_text(path, changed)


def refuses(path: Path, message: str, kind: type[BundleError] = BundleFormatError) -> None:
    """Asserts that opening and reading everything ends in `kind` with `message`."""
    with pytest.raises(kind, match=message):
        read_all(path)


def chunk_of(value: Json, plane: int = 0, stream: int = 0, index: int = 0) -> Json:
    """A chunk of a manifest's JSON."""
    chunk: Json = value["planes"][plane]["streams"][stream]["chunks"][index]
    return chunk


def asset_of(value: Json, index: int) -> Json:
    """The chunk of an asset of a manifest's JSON."""
    chunk: Json = value["assets"][index]["chunk"]
    return chunk
