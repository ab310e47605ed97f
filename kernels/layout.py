"""The contract of a layout, and the registry of those that exist.

A layout is the form in which a weight [N, K] is resident and computed on. Offline it only declares
which planes it is made of; online it is built from those planes on a device and multiplies.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from tersor.kernels.checks import as_rows
from tersor.kernels.gated import gated

Params = Mapping[str, str | int | float | bool | None]

# Rows of a weight that may share a scale: where its planes can be cut.
ROWS_MULTIPLE = 128


@dataclass(frozen=True, slots=True)
class PlaneSpec:
    """Dtype name (as in the bundle manifest: "u4", "i8", "bf16", …) and shape of a plane."""

    dtype: str
    shape: tuple[int, ...]


class Layout(ABC):
    """A resident weight. Immutable after construction; every method is safe from many threads.

    `shape` is the logical shape ([N, K] for matrices, [N] for vectors), `dtype` the logical dtype
    of the weight (what `dense()` returns by default), `device` where it is resident.
    """

    name: ClassVar[str]
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @classmethod
    @abstractmethod
    def plane_specs(
        cls, shape: tuple[int, ...], dtype: torch.dtype, params: Params
    ) -> Mapping[str, PlaneSpec]:
        """The planes at rest of a weight of `shape`, in order. LayoutError if unsupported."""

    @classmethod
    @abstractmethod
    def from_planes(
        cls,
        planes: Mapping[str, Tensor],
        shape: tuple[int, ...],
        dtype: torch.dtype,
        params: Params,
        device: torch.device,
    ) -> Self:
        """Packs canonical planes (host tensors as in `plane_specs`; `u4` is uint8 0..15).

        Does not keep references to `planes` unless it needs no repacking (dense on the host): the
        caller gives up ownership. Raises LayoutError for missing, unknown or mis-shaped planes.
        """

    @classmethod
    def rows_of_planes(
        cls, planes: Mapping[str, Tensor], start: int, stop: int, params: Params
    ) -> Mapping[str, Tensor]:
        """The planes of rows start..stop (or the end) of a weight, given those of all its rows.

        `start` is a multiple of ROWS_MULTIPLE.
        """
        del params  # in most layouts every plane has a row for each of the weight's
        return {name: plane[start:stop] for name, plane in planes.items()}

    @classmethod
    def params_of_planes(cls, planes: Mapping[str, Tensor], params: Params) -> Params:
        """The parameters of the weight whose planes `rows_of_planes` gave, from those of all."""
        del planes  # in most layouts parameters do not depend on them
        return params

    @abstractmethod
    def dense(self, dtype: torch.dtype | None = None) -> Tensor:
        """The weight decoded to a dense tensor of `shape` on `device`."""

    @abstractmethod
    def matmul(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Multiplies: x [..., K] @ weight.T (+ bias [N]) -> [..., N], in x.dtype (fp32 or bf16)."""

    def partials(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """`matmul` for a consumer that adds up: x [..., K] -> [S, M, N], whose sum over S is it.

        float32, or x.dtype where S is 1; M counts the rows of x. A kernel that splits K then needs
        no second one to add its parts.
        """
        return self.matmul(as_rows(x), bias).unsqueeze(0)

    def gated(self, x: Tensor, bias: Tensor | None, activation: str) -> Tensor:
        """`matmul` and a gated activation: x [..., K] -> act(y[..., : N/2]) * y[..., N/2 :].

        `activation` is one of `kernels.gated.ACTIVATIONS`.
        """
        return gated(self.matmul(x, bias), activation)

    @abstractmethod
    def rows(self, indices: Tensor, dtype: torch.dtype) -> Tensor:
        """Embedding lookup: indices [...] int64 -> [..., K] in `dtype`."""

    def prepare(self, activations: torch.dtype) -> None:  # noqa: B027  # most have nothing to do
        """Does now what the first `matmul` with such activations would do once.

        Afterwards `resident_bytes` is final for them. Optional: `matmul` never depends on it.
        """

    @property
    @abstractmethod
    def resident_bytes(self) -> int:
        """Device memory held by this weight."""


def layouts() -> Mapping[str, type[Layout]]:
    """All layouts by name. Imported here, not above, so that each stays optional to load."""
    from tersor.kernels.bitmap import BitmapLayout
    from tersor.kernels.codebook4 import Codebook4Layout
    from tersor.kernels.dense import DenseLayout
    from tersor.kernels.float12 import Float12Layout
    from tersor.kernels.fp8 import Fp8Layout
    from tersor.kernels.int4 import Int4Layout
    from tersor.kernels.int6 import Int6Layout
    from tersor.kernels.int8 import Int8Layout

    known = (
        DenseLayout,
        Float12Layout,
        Int8Layout,
        Fp8Layout,
        Int6Layout,
        Int4Layout,
        Codebook4Layout,
        BitmapLayout,
    )
    return {cls.name: cls for cls in known}
