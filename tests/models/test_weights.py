"""Groups of a real bundle file become layouts, in one step or by way of the host tier."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_decoders import canonical_program, canonical_tensors, tiny_model

from tersor.bundle.errors import BundleCancelledError, BundleCorruptError
from tersor.bundle.manifest import DTYPES, Manifest, TensorEntry
from tersor.bundle.phases import PhaseTimes
from tersor.bundle.program import DecoderProgram
from tersor.bundle.reader import BundleReader
from tersor.bundle.writer import BundleWriter, PlaneData
from tersor.kernels.layout import layouts
from tersor.models.cache import FullAttention
from tersor.models.decoder import DecoderModel, decoder_weights
from tersor.models.errors import WeightError
from tersor.models.weights import (
    ResidentWeights,
    check_weights,
    dtype_name,
    fetch_group,
    load_group,
    torch_dtype,
)

CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Written:
    path: Path
    program: DecoderProgram
    model: Any


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> _Written:
    """A lossless bundle of a tiny Qwen3 in bf16."""
    model = tiny_model("qwen3", seed=5)
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16().float()  # buffers of the model stay exact
    program = canonical_program(model)
    path = tmp_path_factory.mktemp("bundle") / "tiny.tersor"
    with BundleWriter(path, program=program, source={}, recipe={}) as writer:
        for group, tensors in canonical_tensors(model).items():
            for name, tensor in tensors.items():
                bits = tensor.bfloat16().view(torch.int16).numpy().view(np.uint16)
                writer.add_tensor(
                    name=name,
                    group=group,
                    shape=tuple(tensor.shape),
                    dtype="bf16",
                    layout="dense",
                    params={},
                    planes={"values": PlaneData(dtype="bf16", array=bits)},
                )
        writer.commit()
    return _Written(path=path, program=program, model=model)


def test_a_bundle_computes_what_transformers_computes(written: _Written) -> None:
    tokens, positions = torch.arange(3, 33), torch.arange(30)
    with BundleReader.open(written.path) as reader:
        assert reader.manifest.program == written.program
        check_weights(reader.manifest, decoder_weights(written.program))
        weights = ResidentWeights.from_bundle(reader, CPU)
    decoder = DecoderModel(written.program, weights, device=CPU, activations=torch.float32)
    actual = decoder.forward(tokens, positions, FullAttention(1, 30))
    with torch.inference_mode():
        expected = written.model(tokens[None]).logits[0]
    torch.testing.assert_close(actual, expected, atol=2e-5, rtol=1e-5)


def test_the_host_tier_gives_the_same_layouts(written: _Written) -> None:
    with BundleReader.open(written.path) as reader:
        direct = load_group(reader, "layers.1", CPU)
        encoded = fetch_group(reader, "layers.1")
    # The file is closed: the host tier needs it no more, and may be loaded again and again.
    for _ in range(2):
        again = encoded.load(CPU)
        assert list(again) == list(direct)
        for name, layout in direct.items():
            assert layout.dtype == torch.bfloat16
            assert torch.equal(again[name].dense(), layout.dense())
    resident = sum(layout.resident_bytes for layout in direct.values())
    assert 0 < encoded.stored_bytes < resident


def test_phases_are_timed(written: _Written) -> None:
    times = PhaseTimes()
    with BundleReader.open(written.path) as reader:
        load_group(reader, "layers.0", CPU, times=times)
        assert {"read", "verify", "decode", "repack"} <= times.seconds.keys()
        assert all(seconds >= 0 for seconds in times.seconds.values())
        host = PhaseTimes()
        encoded = fetch_group(reader, "layers.0", times=host)
        assert "repack" not in host.seconds
        encoded.load(CPU, times=host)
        assert host.seconds["repack"] > 0


def test_loads_can_be_cancelled(written: _Written) -> None:
    with BundleReader.open(written.path) as reader:
        with pytest.raises(BundleCancelledError):
            load_group(reader, "layers.0", CPU, cancelled=lambda: True)
        with pytest.raises(BundleCancelledError):
            fetch_group(reader, "layers.0", cancelled=lambda: True)


def test_damage_is_found_while_loading(written: _Written, tmp_path: Path) -> None:
    with BundleReader.open(written.path) as reader:
        plane = reader.manifest.tensor("layers.1.down").planes[0]
    damaged = bytearray(written.path.read_bytes())
    damaged[plane.streams[0].chunks[0].offset] ^= 1
    path = tmp_path / "damaged.tersor"
    path.write_bytes(damaged)
    with BundleReader.open(path) as reader:
        load_group(reader, "layers.0", CPU)
        with pytest.raises(BundleCorruptError):
            load_group(reader, "layers.1", CPU)


def test_unknown_groups_are_named(written: _Written) -> None:
    with (
        BundleReader.open(written.path) as reader,
        pytest.raises(WeightError, match=r"group 'layers\.9'; there are embedding"),
    ):
        load_group(reader, "layers.9", CPU)


def test_every_difference_to_the_program_is_listed(written: _Written) -> None:
    with BundleReader.open(written.path) as reader:
        manifest = reader.manifest
    expected = {group: dict(tensors) for group, tensors in decoder_weights(written.program).items()}
    expected["layers.0"]["layers.0.extra"] = (3,)
    expected["layers.1"]["layers.1.o"] = (7, 7)
    del expected["layers.2"]["layers.2.down"]
    expected["head"]["layers.2.qkv"] = expected["layers.2"].pop("layers.2.qkv")
    with pytest.raises(WeightError) as caught:
        check_weights(manifest, expected)
    for problem in (
        "'layers.0.extra' [3] is missing",
        "'layers.1.o' is [48, 96] instead of [7, 7]",
        "'layers.2.down' is unknown",
        "'layers.2.qkv' is in group 'layers.2' instead of 'head'",
    ):
        assert problem in str(caught.value)


class _OneTensor:
    """Stands for a reader whose manifest lies about one tensor."""

    def __init__(self, manifest: Manifest, entry: TensorEntry) -> None:
        tensors = tuple(entry if t.name == entry.name else t for t in manifest.tensors)
        self.manifest = _replaced(manifest, tensors=tensors)

    def read_plane(self, *_: object, **__: object) -> np.ndarray:
        raise AssertionError("planes were read although they do not make the layout")

    fetch_plane = read_plane


def _replaced(value: Any, **changes: object) -> Any:
    from dataclasses import replace

    return replace(value, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layout": "fp5"}, "layout 'fp5', which this build does not have; it has dense"),
        ({"dtype": "f32"}, "has planes .*'bf16'.*, expected .*'f32'"),
        ({"dtype": "f31"}, "unknown dtype 'f31'"),
        ({"shape": (4,)}, r"expected {'values': \('bf16', \(4,\)\)}"),
        ({"params": {"group": 32}}, "takes no parameters"),
        ({"layout": "int8"}, "layout 'int8'|layout `int8`"),
        ({"planes": ()}, "has planes {}, expected"),
    ],
)
def test_planes_that_make_no_layout_are_refused_unread(
    written: _Written, changes: Mapping[str, object], message: str
) -> None:
    with BundleReader.open(written.path) as reader:
        manifest = reader.manifest
    entry = _replaced(manifest.tensor("layers.0.attention_norm"), **changes)
    lying: Any = _OneTensor(manifest, entry)
    with pytest.raises(WeightError, match=message):
        load_group(lying, "layers.0", CPU)
    with pytest.raises(WeightError, match=message):
        fetch_group(lying, "layers.0")


def test_dtype_names_are_those_of_the_manifest() -> None:
    for name, size in DTYPES.items():
        dtype = torch_dtype(name)
        assert dtype.itemsize == size
        assert dtype_name(dtype) == ("u8" if name == "u4" else name)
    with pytest.raises(WeightError, match="unknown dtype 'f12'"):
        torch_dtype("f12")
    with pytest.raises(WeightError, match=r"cannot hold tensors of torch\.complex64"):
        dtype_name(torch.complex64)


def test_layouts_load_from_a_bundle(tmp_path: Path, written: _Written) -> None:
    rng = np.random.default_rng(7)
    codes4 = rng.integers(0, 16, (5, 40), dtype=np.uint8)
    scales4 = (rng.random((5, 3), dtype=np.float32) + 0.5).view(np.uint32) >> 16
    codes8 = rng.integers(-127, 128, (5, 40), dtype=np.int8)
    scales8 = (rng.random(5, dtype=np.float32) + 0.5).view(np.uint32) >> 16
    bits12 = (rng.normal(size=(5, 40)).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    planes: dict[str, dict[str, tuple[str, np.ndarray]]] = {
        "int4": {"codes": ("u4", codes4), "scales": ("bf16", scales4.astype(np.uint16))},
        "int8": {"codes": ("i8", codes8), "scales": ("bf16", scales8.astype(np.uint16))},
        "dense": {"values": ("i64", np.arange(12).reshape(3, 4))},
        "float12": {"values": ("bf16", bits12)},
    }
    assert planes.keys() <= layouts().keys()
    path = tmp_path / "layouts.tersor"
    with BundleWriter(path, program=written.program, source={}, recipe={}) as writer:
        for layout, arrays in planes.items():
            writer.add_tensor(
                name=layout,
                group="g",
                shape=(3, 4) if layout == "dense" else (5, 40),
                dtype={"dense": "i64", "float12": "bf16"}.get(layout, "f32"),
                layout=layout,
                params={"group": 16, "symmetric": True} if layout == "int4" else {},
                planes={n: PlaneData(dtype=d, array=a) for n, (d, a) in arrays.items()},
            )
        writer.commit()
    with BundleReader.open(path) as reader:
        weights = load_group(reader, "g", CPU)
    assert torch.equal(weights["dense"].dense(), torch.arange(12).view(3, 4))
    assert torch.equal(weights["float12"].dense().view(torch.uint16), torch.from_numpy(bits12))
    wide8 = torch.from_numpy(scales8.astype(np.uint32) << 16).view(torch.float32)
    expected = torch.from_numpy(codes8.astype(np.float32)) * wide8[:, None]
    assert torch.equal(weights["int8"].dense(), expected)
    wide4 = torch.from_numpy(scales4.astype(np.uint32) << 16).view(torch.float32)
    steps = wide4.repeat_interleave(16, 1)[:, :40]
    assert torch.equal(weights["int4"].dense(), (torch.from_numpy(codes4).float() - 8) * steps)
    x = torch.randn(2, 40, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(weights["int8"].matmul(x), x @ expected.T, rtol=2e-2, atol=0.5)
