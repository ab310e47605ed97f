"""Groups of a real bundle on a CUDA device, against the same groups on the host."""

# ruff: noqa: E402

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

# Before what imports them: a GPU machine may have torch and triton alone.
for package in ("blake3", "lz4", "numba", "xxhash", "zfec", "zstandard"):
    pytest.importorskip(package, reason=f"bundles need {package}, which is not installed")

import numpy as np
from tiny_bundles import weights as bell
from tiny_bundles import writer

from tersor.bundle.errors import BundleCorruptError
from tersor.bundle.phases import PhaseTimes
from tersor.bundle.plane_data import PlaneData
from tersor.bundle.reader import BundleReader
from tersor.kernels.layout import Params
from tersor.models.device_decode import DeviceDecoder
from tersor.models.weights import fetch_group, load_group

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

GPU, HOST = torch.device("cuda", 0), torch.device("cpu")
N, K = 1536, 2048


@pytest.fixture(scope="module", params=["rans", "auto"])
def reader(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[BundleReader]:
    """One tensor of each layout, large enough to be sent compressed."""
    rng = np.random.default_rng(1)
    normal = rng.normal(size=(N, K))
    scales = bell((N, 1), seed=2)
    tensors: dict[str, tuple[str, Params, dict[str, tuple[str, np.ndarray]]]] = {
        "dense": ("bf16", {}, {"values": ("bf16", bell((N, K)))}),
        "float12": ("bf16", {}, {"values": ("bf16", bell((N, K), seed=4))}),
        "int8": (
            "f32",
            {},
            {
                "codes": ("i8", (normal * 30).round().clip(-127, 127).astype(np.int8)),
                "scales": ("bf16", scales[:, 0]),
            },
        ),
        "int4": (
            "f32",
            {"group": 0, "symmetric": True},
            {
                "codes": ("u4", (normal * 3 + 8).round().clip(0, 15).astype(np.uint8)),
                "scales": ("bf16", scales),
            },
        ),
    }
    path = tmp_path_factory.mktemp("gpu") / "all.tersor"
    with writer(path, codec=request.param) as target:
        for layout, (dtype, params, planes) in tensors.items():
            target.add_tensor(
                name=layout,
                group="layers.0",
                shape=(N, K),
                dtype=dtype,
                layout=layout,
                params=params,
                planes={n: PlaneData(dtype=d, array=a) for n, (d, a) in planes.items()},
            )
        target.commit()
    with BundleReader.open(path) as opened:
        yield opened


def test_a_group_is_the_same_on_both(reader: BundleReader, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = []
    decode = DeviceDecoder.decode

    def watched(self: DeviceDecoder, encoded: object, *args: object, **kwargs: object) -> object:
        sent.append(encoded.plane.name)  # type: ignore[attr-defined]
        return decode(self, encoded, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(DeviceDecoder, "decode", watched)
    expected = load_group(reader, "layers.0", HOST)
    times = PhaseTimes()
    encoded = fetch_group(reader, "layers.0")
    for loaded in (load_group(reader, "layers.0", GPU, times=times), encoded.load(GPU)):
        for name, layout in expected.items():
            assert loaded[name].device == GPU
            assert torch.equal(loaded[name].dense().cpu(), layout.dense()), name
    codecs = {
        chunk.codec
        for entry in reader.manifest.tensors
        for stream in entry.planes[0].streams
        for chunk in stream.chunks
    }
    if codecs <= {"rans", "raw"}:
        assert sent == 2 * ["values", "codes", "codes"]
    assert {"read", "verify", "decode", "transfer", "repack"} <= times.seconds.keys()


def test_damage_is_named_as_on_the_host(reader: BundleReader) -> None:
    encoded = fetch_group(reader, "layers.0")
    stored = encoded.tensors[1].planes[0].chunks()[0][-1].stored
    stored[stored.size // 2] ^= 0xFF
    with pytest.raises(BundleCorruptError) as expected:
        encoded.load(HOST)
    with pytest.raises(BundleCorruptError) as caught:
        encoded.load(GPU)
    assert str(caught.value) == str(expected.value)
