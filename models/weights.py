"""From the groups of a bundle to resident layouts, and the simplest source of weights.

A group passes through two tiers: `fetch_group` brings its stored bytes into host memory, verified;
`EncodedGroup.load` decodes them and packs each tensor into its layout on a device. `load_group`
does both, a tensor at a time, so that only one tensor exists compressed and decoded at once. Where
a GPU can decode a plane it is sent compressed (`device_decode.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from tersor.bundle.errors import BundleError, BundleLimitError
from tersor.bundle.manifest import Manifest, Plane, TensorEntry
from tersor.bundle.phases import PhaseTimes, measured
from tersor.bundle.program import UNUSED_GROUP
from tersor.kernels.errors import LayoutError
from tersor.kernels.float12 import Float12Layout
from tersor.kernels.layout import Layout, layouts
from tersor.models.contracts import GroupWeights, WeightSource
from tersor.models.device_decode import DeviceDecoder, FloatParts
from tersor.models.errors import WeightError

if TYPE_CHECKING:
    from tersor.bundle.reader import BundleReader, EncodedPlane

Cancelled = Callable[[], bool]
WeightShapes = Mapping[str, Mapping[str, tuple[int, ...]]]  # group -> tensor -> shape

_TORCH_DTYPES: Mapping[str, torch.dtype] = {
    "bool": torch.bool, "u8": torch.uint8, "i8": torch.int8,
    "f8_e4m3": torch.float8_e4m3fn, "f8_e5m2": torch.float8_e5m2,
    "u16": torch.uint16, "i16": torch.int16, "f16": torch.float16, "bf16": torch.bfloat16,
    "u32": torch.uint32, "i32": torch.int32, "f32": torch.float32,
    "u64": torch.uint64, "i64": torch.int64, "f64": torch.float64,
}  # fmt: skip
_DTYPE_NAMES: Mapping[torch.dtype, str] = {dtype: name for name, dtype in _TORCH_DTYPES.items()}


def torch_dtype(name: str) -> torch.dtype:
    """The torch dtype of a manifest dtype name; `u4` is one symbol per uint8 in memory.

    Raises:
        WeightError: the name is unknown.
    """
    if name == "u4":
        return torch.uint8
    try:
        return _TORCH_DTYPES[name]
    except KeyError:
        known = ", ".join(_TORCH_DTYPES)
        raise WeightError(f"unknown dtype {name!r}; known are u4, {known}") from None


def dtype_name(dtype: torch.dtype) -> str:
    """The manifest name of a torch dtype, the inverse of `torch_dtype`.

    Raises:
        WeightError: a bundle cannot hold the dtype.
    """
    try:
        return _DTYPE_NAMES[dtype]
    except KeyError:
        raise WeightError(f"a bundle cannot hold tensors of {dtype}") from None


def load_group(
    reader: BundleReader,
    group: str,
    device: torch.device,
    *,
    times: PhaseTimes | None = None,
    cancelled: Cancelled | None = None,
) -> GroupWeights:
    """Reads, verifies, decodes and packs every tensor of `group` for `device`.

    Args:
        reader: the open bundle.
        group: a group name of its manifest.
        device: where the layouts become resident.
        times: seconds are added by phase: `read`, `verify`, `decode`, `transfer` (to a device other
            than the CPU) and `repack`. What overlaps on a GPU counts as what is waited for.
        cancelled: polled between chunks; when it answers True, BundleCancelledError is raised.

    Raises:
        WeightError: unknown group, or a tensor whose planes do not make its layout.
        BundleError: the bundle cannot be read, is damaged, or the read was cancelled;
            BundleLimitError: a tensor does not fit into memory.
    """
    decoder = _device_decoder(device)

    def read(entry: TensorEntry, plane: Plane) -> Tensor | FloatParts:
        if decoder is None or not decoder.takes(plane):
            return _as_tensor(reader.read_plane(plane, times=times, cancelled=cancelled), plane)
        encoded = reader.fetch_plane(plane, times=times, cancelled=cancelled)
        try:
            return _decoded(decoder, entry, encoded, times, cancelled)
        except BundleError as error:
            raise type(error)(f"{reader.name}: {error}") from error

    weights: dict[str, Layout] = {}
    for entry in _entries(reader.manifest, group):
        with _memory_for(entry, device), _naming(entry):
            planes = {plane.name: read(entry, plane) for plane in _checked(entry).planes}
        weights[entry.name] = _pack(entry, planes, device, times)
    return weights


def fetch_group(
    reader: BundleReader,
    group: str,
    *,
    times: PhaseTimes | None = None,
    cancelled: Cancelled | None = None,
) -> EncodedGroup:
    """Brings the stored bytes of `group` into host memory, verified but still compressed.

    Raises:
        WeightError: unknown group, or a tensor whose planes do not make its layout.
        BundleError: the bundle cannot be read, is damaged, or the read was cancelled.
    """
    tensors = []
    for entry in _entries(reader.manifest, group):
        with _naming(entry):
            planes = tuple(
                reader.fetch_plane(plane, times=times, cancelled=cancelled)
                for plane in _checked(entry).planes
            )
        tensors.append(EncodedTensor(entry=entry, planes=planes))
    return EncodedGroup(name=group, tensors=tuple(tensors))


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedTensor:
    """One tensor in the host tier."""

    entry: TensorEntry
    planes: tuple[EncodedPlane, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedGroup:
    """A group in the host tier: compressed and verified. Immutable, safe from many threads."""

    name: str
    tensors: tuple[EncodedTensor, ...]

    @property
    def stored_bytes(self) -> int:
        """Host memory held by the compressed planes."""
        return sum(plane.stored_bytes for tensor in self.tensors for plane in tensor.planes)

    def load(
        self,
        device: torch.device,
        *,
        times: PhaseTimes | None = None,
        cancelled: Cancelled | None = None,
    ) -> GroupWeights:
        """Decodes and packs for `device`; the group stays in the host tier.

        Raises:
            WeightError: planes do not make their layout.
            BundleError: the stored bytes do not decode, or the load was cancelled;
                BundleLimitError: a tensor does not fit into memory.
        """
        decoder = _device_decoder(device)

        def decode(entry: TensorEntry, encoded: EncodedPlane) -> Tensor | FloatParts:
            plane = encoded.plane
            if decoder is None or not decoder.takes(plane):
                return _as_tensor(encoded.decode(times=times, cancelled=cancelled), plane)
            return _decoded(decoder, entry, encoded, times, cancelled)

        weights: dict[str, Layout] = {}
        for tensor in self.tensors:
            entry = tensor.entry
            with _memory_for(entry, device), _naming(entry):
                planes = {each.plane.name: decode(entry, each) for each in tensor.planes}
            weights[entry.name] = _pack(entry, planes, device, times)
        return weights


class ResidentWeights(WeightSource):
    """All groups resident for good: for conversion, calibration, evaluation and tests."""

    def __init__(self, groups: Mapping[str, GroupWeights]) -> None:
        # One reusable context per group: a decoder acquires every group for every token.
        self._contexts = {name: nullcontext(weights) for name, weights in groups.items()}

    @classmethod
    def from_bundle(
        cls,
        reader: BundleReader,
        device: torch.device,
        *,
        times: PhaseTimes | None = None,
        cancelled: Cancelled | None = None,
    ) -> ResidentWeights:
        """Loads every group of the bundle. Raises as `load_group`."""
        return cls(
            {
                group.name: load_group(reader, group.name, device, times=times, cancelled=cancelled)
                for group in reader.manifest.groups
            }
        )

    @property
    def resident_bytes(self) -> int:
        """Device memory held by all groups."""
        return sum(
            layout.resident_bytes
            for context in self._contexts.values()
            for layout in context.enter_result.values()
        )

    def acquire(self, group: str) -> AbstractContextManager[GroupWeights]:
        try:
            return self._contexts[group]
        except KeyError:
            raise _unknown_group(group, self._contexts) from None


def check_weights(manifest: Manifest, expected: WeightShapes) -> None:
    """Holds a bundle's tensors against what its program needs, before any weight is read.

    Raises:
        WeightError: lists every missing, unknown, misplaced or mis-shaped tensor.
    """
    shapes = {entry.name: entry.shape for entry in manifest.tensors}
    placed = {name: group.name for group in manifest.groups for name in group.tensors}
    wanted = {name: group for group, tensors in expected.items() for name in tensors}
    problems = [
        f"{name!r} is unknown"
        for name in shapes
        if name not in wanted and placed.get(name) != UNUSED_GROUP
    ]
    for name, group in wanted.items():
        shape = expected[group][name]
        if name not in shapes:
            problems.append(f"{name!r} {list(shape)} is missing")
        elif shapes[name] != shape:
            problems.append(f"{name!r} is {list(shapes[name])} instead of {list(shape)}")
        elif placed.get(name) != group:
            problems.append(f"{name!r} is in group {placed.get(name)!r} instead of {group!r}")
    if problems:
        raise WeightError(f"the bundle does not fit its program: {'; '.join(problems)}")


def _device_decoder(device: torch.device) -> DeviceDecoder | None:
    """What decodes planes on `device`, if it is one that does."""
    if device.type != "cuda":
        return None
    return DeviceDecoder(device)


def _decoded(
    decoder: DeviceDecoder,
    entry: TensorEntry,
    encoded: EncodedPlane,
    times: PhaseTimes | None,
    cancelled: Cancelled | None,
) -> Tensor | FloatParts:
    """A plane of `entry` that `decoder` takes, in the form that its layout packs."""
    if entry.layout == Float12Layout.name:
        return decoder.decode_apart(encoded, times=times, cancelled=cancelled)
    dtype = torch_dtype(encoded.plane.dtype)
    return decoder.decode(encoded, dtype, times=times, cancelled=cancelled)


@contextmanager
def _naming(entry: TensorEntry) -> Iterator[None]:
    """Puts the tensor's name before what the bundle says of one of its planes."""
    try:
        yield
    except BundleError as error:
        raise type(error)(f"tensor {entry.name!r}: {error}") from error


def _entries(manifest: Manifest, group: str) -> list[TensorEntry]:
    names = next((g.tensors for g in manifest.groups if g.name == group), None)
    if names is None:
        raise _unknown_group(group, (g.name for g in manifest.groups))
    by_name = {entry.name: entry for entry in manifest.tensors}
    missing = [name for name in names if name not in by_name]
    if missing:
        raise WeightError(f"group {group!r} names tensors the bundle lacks: {', '.join(missing)}")
    return [by_name[name] for name in names]


def _unknown_group(group: str, known: Iterable[str]) -> WeightError:
    return WeightError(f"there is no weight group {group!r}; there are {', '.join(known)}")


def _checked(entry: TensorEntry) -> TensorEntry:
    """The entry, once its planes are those its layout is made of: nothing is read before that."""
    try:
        layout = layouts()[entry.layout]
    except KeyError:
        raise WeightError(
            f"tensor {entry.name!r} is in layout {entry.layout!r}, which this build does not have; "
            f"it has {', '.join(layouts())}"
        ) from None
    try:
        specs = layout.plane_specs(entry.shape, torch_dtype(entry.dtype), entry.params)
    except LayoutError as error:
        raise WeightError(f"tensor {entry.name!r}: {error}") from error
    expected = {name: (spec.dtype, tuple(spec.shape)) for name, spec in specs.items()}
    found = {plane.name: (plane.dtype, plane.shape) for plane in entry.planes}
    if found != expected:
        raise WeightError(
            f"tensor {entry.name!r} in layout {entry.layout!r} has planes {found}, "
            f"expected {expected}"
        )
    return entry


def _pack(
    entry: TensorEntry,
    planes: Mapping[str, Tensor | FloatParts],
    device: torch.device,
    times: PhaseTimes | None,
) -> Layout:
    with _memory_for(entry, device):
        tensors = {name: each for name, each in planes.items() if isinstance(each, Tensor)}
        if device.type != "cpu":
            with measured(times, "transfer"):
                tensors = {name: tensor.to(device) for name, tensor in tensors.items()}
        with measured(times, "repack"):
            try:
                parts = planes.get("values")
                if isinstance(parts, FloatParts):
                    layout: Layout = Float12Layout.from_parts(parts.exponents, parts.mantissas)
                else:
                    layout = layouts()[entry.layout].from_planes(
                        tensors, entry.shape, torch_dtype(entry.dtype), entry.params, device
                    )
            except LayoutError as error:
                raise WeightError(f"tensor {entry.name!r}: {error}") from error
            if device.type == "cuda":
                # Or the kernels that pack would be waited for, and timed, in the next transfer.
                torch.cuda.current_stream(device).synchronize()
    return layout


@contextmanager
def _memory_for(entry: TensorEntry, device: torch.device) -> Iterator[None]:
    """Names the tensor that does not fit, whatever an allocator raises."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        full = isinstance(error, MemoryError | torch.OutOfMemoryError)
        # torch's allocator of host memory raises a RuntimeError like any other.
        if not full and "can't allocate memory" not in str(error):
            raise
        declared = sum(plane.raw_bytes for plane in entry.planes)
        raise BundleLimitError(
            f"tensor {entry.name!r} declares {declared} bytes in memory, more than could be "
            f"allocated on {device}; free memory, or use a machine that has more"
        ) from error


def _as_tensor(array: np.ndarray, plane: Plane) -> Tensor:
    """A tensor over the array's memory; bf16 and fp8 arrive as unsigned integers of their width."""
    dtype = torch_dtype(plane.dtype)
    if not array.flags.writeable:  # torch tensors are writable, so read-only memory must be copied
        array = array.copy()
    tensor = torch.from_numpy(array)
    return tensor if tensor.dtype == dtype else tensor.view(dtype)
