"""Where groups come from: a bundle, behind a contract small enough to fake."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import torch

from tersor.bundle.manifest import DTYPES, TensorEntry
from tersor.bundle.phases import PhaseTimes
from tersor.bundle.program import UNUSED_GROUP, DecoderProgram
from tersor.models.contracts import GroupWeights
from tersor.models.weights import EncodedGroup, fetch_group

if TYPE_CHECKING:
    from tersor.bundle.reader import BundleReader

Cancelled = Callable[[], bool]


class EncodedWeights(Protocol):
    """The verified, still compressed bytes of a group in host memory. Immutable."""

    @property
    def stored_bytes(self) -> int:
        """Host memory held."""
        ...

    def load(
        self, device: torch.device, *, times: PhaseTimes, cancelled: Cancelled
    ) -> GroupWeights:
        """Decodes and packs the group for `device`. Raises BundleError if it is damaged."""
        ...


class GroupSource(Protocol):
    """The groups of one model. Safe from many threads."""

    @property
    def groups(self) -> tuple[str, ...]:
        """Group names in execution order."""
        ...

    def estimated_bytes(self, group: str) -> int:
        """Device memory that a load of `group` takes, as well as it is known before."""
        ...

    def stored_bytes(self, group: str) -> int:
        """Size of `group` at rest."""
        ...

    def fetch(self, group: str, *, times: PhaseTimes, cancelled: Cancelled) -> EncodedWeights:
        """Reads and verifies `group`. Raises BundleError."""
        ...


class _PreparedGroup:
    """A bundle's group that is made ready for the activations' dtype as part of its load."""

    def __init__(
        self, encoded: EncodedGroup, activations: torch.dtype, multiplied: frozenset[str]
    ) -> None:
        self._encoded = encoded
        self._activations = activations
        self._multiplied = multiplied

    @property
    def stored_bytes(self) -> int:
        return self._encoded.stored_bytes

    def load(
        self, device: torch.device, *, times: PhaseTimes, cancelled: Cancelled
    ) -> GroupWeights:
        weights = self._encoded.load(device, times=times, cancelled=cancelled)
        with times.measure("repack"):
            for name in self._multiplied & weights.keys():
                weights[name].prepare(self._activations)
        return weights


class BundleGroups:
    """The groups of an open bundle that its program reads.

    `activations` is what a decoder computes in: its weights are then made ready for that dtype
    while they load, so that the first token does not pay for it and sizes are final. None leaves
    every tensor as it is (a graph computes in the dtypes it was exported with).
    """

    def __init__(self, reader: BundleReader, *, activations: torch.dtype | None) -> None:
        manifest = reader.manifest
        entries = {entry.name: entry for entry in manifest.tensors}
        self._reader = reader
        self._activations = activations
        self._tensors = {
            group.name: tuple(entries[name] for name in group.tensors)
            for group in manifest.groups
            if group.name != UNUSED_GROUP
        }
        program = manifest.program
        # An embedding that no head shares is only looked up, never multiplied.
        looked_up = isinstance(program, DecoderProgram) and not program.tie_embeddings
        self._multiplied = frozenset(
            entry.name
            for entry in manifest.tensors
            if activations is not None
            and len(entry.shape) <= 2
            and not (looked_up and entry.name == "embedding")
        )

    @property
    def groups(self) -> tuple[str, ...]:
        return tuple(self._tensors)

    def estimated_bytes(self, group: str) -> int:
        entries = self._tensors[group]
        resident = sum(self._resident_bytes(entry) for entry in entries)
        # A tensor is packed where it becomes resident, from planes of one symbol a byte or more.
        unpacked = max(sum(plane.raw_bytes for plane in entry.planes) for entry in entries)
        return max(resident, unpacked)

    def stored_bytes(self, group: str) -> int:
        return sum(p.stored_bytes for entry in self._tensors[group] for p in entry.planes)

    def fetch(self, group: str, *, times: PhaseTimes, cancelled: Cancelled) -> EncodedWeights:
        encoded = fetch_group(self._reader, group, times=times, cancelled=cancelled)
        if self._activations is None:
            return encoded
        return _PreparedGroup(encoded, self._activations, self._multiplied)

    def _resident_bytes(self, entry: TensorEntry) -> int:
        widened = (
            self._activations is torch.float32
            and entry.layout in ("dense", "float12")
            and entry.name in self._multiplied
        )
        total = 0
        for plane in entry.planes:
            count = plane.raw_bytes // DTYPES[plane.dtype]
            if plane.dtype == "u4":
                total += (count + 1) // 2  # two symbols share a byte
            else:
                total += count * max(DTYPES[plane.dtype], 4 if widened else 0)
        return total
