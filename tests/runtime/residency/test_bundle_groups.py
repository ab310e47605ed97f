"""Groups of real bundle files: what they are estimated at, what a load of them reports."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from fake_groups import MakeResidency, RecordingObserver
from tiny_bundles import weights, write_tiny, writer
from torch import Tensor

from tersor.bundle.errors import BundleLimitError
from tersor.bundle.phases import PhaseTimes
from tersor.bundle.plane_data import PlaneData
from tersor.bundle.reader import BundleReader
from tersor.kernels.dense import DenseLayout
from tersor.models.weights import ResidentWeights
from tersor.runtime.errors import OutOfMemoryError
from tersor.runtime.residency import BundleGroups

CPU = torch.device("cpu")


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    path = tmp_path / "x.tersor"
    write_tiny(path)
    return path


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_moving_to_another_device_is_a_phase_of_its_own(bundle: Path, device: str) -> None:
    """The device "meta" holds shapes only: packing on it takes place, as on a GPU."""
    ticks = iter(range(1000))
    times = PhaseTimes(clock=lambda: float(next(ticks)))
    with BundleReader.open(bundle, threads=1) as reader:
        groups = BundleGroups(reader, activations=None)
        encoded = groups.fetch("embedding", times=times, cancelled=lambda: False)
        group = encoded.load(torch.device(device), times=times, cancelled=lambda: False)
    assert group["embedding"].device.type == device
    assert times.seconds.get("transfer") == (None if device == "cpu" else 1)
    assert times.seconds["repack"] == 1


def test_the_estimate_holds_the_planes_that_packing_needs(bundle: Path) -> None:
    with BundleReader.open(bundle) as reader:
        groups = BundleGroups(reader, activations=None)
        assert groups.estimated_bytes("embedding") == 8 * 16 * 2
        # 8 x 15 symbols of 4 bits come as bytes, and are packed to half of that.
        assert groups.estimated_bytes("layers.0") == 8 * 15 + 8 * 2


@pytest.mark.parametrize("layout", ["dense", "float12"])
def test_what_is_widened_is_estimated_wide(tmp_path: Path, layout: str) -> None:
    values = {"values": PlaneData(dtype="bf16", array=weights((8, 16)))}
    with writer(tmp_path / "x.tersor") as target:
        target.add_tensor(
            name="layers.0.qkv",
            group="layers.0",
            shape=(8, 16),
            dtype="bf16",
            layout=layout,
            params={},
            planes=values,
        )
        target.commit()
    with BundleReader.open(tmp_path / "x.tersor") as reader:
        groups = BundleGroups(reader, activations=torch.float32)
        times = PhaseTimes()
        encoded = groups.fetch("layers.0", times=times, cancelled=lambda: False)
        group = encoded.load(CPU, times=times, cancelled=lambda: False)
        resident = group["layers.0.qkv"].resident_bytes
    assert groups.estimated_bytes("layers.0") == resident == 8 * 16 * 4


def test_what_declares_more_than_the_budget_is_refused_before_it_is_read(
    bundle: Path, make_residency: MakeResidency
) -> None:
    with BundleReader.open(bundle) as reader:
        manifest = reader.manifest
    first, *rest = manifest.tensors
    huge = replace(first.planes[0], shape=(1 << 20, 1 << 17))
    manifest = replace(manifest, tensors=(replace(first, planes=(huge,)), *rest))
    # Nothing but a manifest: any attempt to read would be an AttributeError.
    reader = cast(BundleReader, SimpleNamespace(manifest=manifest))
    residency = make_residency(budget=1 << 34, prefetch=2)
    model = residency.add("m", BundleGroups(reader, activations=None), RecordingObserver())
    with (
        pytest.raises(OutOfMemoryError, match=rf"embedding needs {1 << 38} bytes .* of {1 << 34}"),
        model.acquire("embedding"),
    ):
        pass
    assert residency.used_bytes == 0


class _NoRoom(DenseLayout):
    """Packs nothing: its allocator has no memory left."""

    error: Exception

    @classmethod
    def from_planes(cls, *_: object) -> _NoRoom:
        raise cls.error


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."),
    ],
)
def test_a_failed_allocation_names_the_tensor(
    bundle: Path,
    make_residency: MakeResidency,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    monkeypatch.setattr(_NoRoom, "error", error, raising=False)
    monkeypatch.setattr("tersor.models.weights.layouts", lambda: {"dense": _NoRoom})
    message = (
        r"tensor 'embedding' declares 256 bytes in memory, more than could be allocated on cpu"
    )
    with BundleReader.open(bundle) as reader:
        with pytest.raises(BundleLimitError, match=f"^{message}; free memory"):
            ResidentWeights.from_bundle(reader, CPU)
        groups = BundleGroups(reader, activations=None)
        model = make_residency().add("m", groups, RecordingObserver())
        with pytest.raises(OutOfMemoryError, match=message), model.acquire("embedding"):
            pass


def test_other_errors_of_packing_stay_what_they_are(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_NoRoom, "error", RuntimeError("a defect"), raising=False)
    monkeypatch.setattr("tersor.models.weights.layouts", lambda: {"dense": _NoRoom})
    with BundleReader.open(bundle) as reader, pytest.raises(RuntimeError, match=r"^a defect$"):
        ResidentWeights.from_bundle(reader, CPU)


def test_packed_values_are_those_of_the_bundle(bundle: Path) -> None:
    with BundleReader.open(bundle) as reader:
        groups = BundleGroups(reader, activations=torch.float32)
        times = PhaseTimes()
        encoded = groups.fetch("embedding", times=times, cancelled=lambda: False)
        values: Tensor = encoded.load(CPU, times=times, cancelled=lambda: False)["embedding"].dense(
            torch.bfloat16
        )
    assert values.view(torch.uint16).numpy().tobytes() == weights((8, 16)).tobytes()
