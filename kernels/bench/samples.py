"""Random weights in every layout, for measuring: speed does not depend on their values.

Planes are made from `plane_specs`. A layout whose planes depend on each other (a bitmap and what it
counts) has a maker of its own in `MAKERS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from tersor.kernels.bitmap.planes import bit_counts
from tersor.kernels.errors import LayoutError
from tersor.kernels.layout import Layout, Params, PlaneSpec, layouts
from tersor.kernels.outliers.planes import POSITIONS, VALUES

Planes = Mapping[str, Tensor]
# (n, k, parameters asked for, device) -> the weight's parameters and planes
Maker = Callable[[int, int, Params, torch.device], tuple[Params, Planes]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A kind of weight to measure."""

    label: str
    layout: str
    params: Params = field(default_factory=dict)

    def build(self, n: int, k: int, device: torch.device) -> Layout:
        """A weight [n, k] of random planes, resident on `device`.

        Raises:
            LayoutError: the layout does not take such a weight.
        """
        if self.layout in MAKERS:
            params, planes = MAKERS[self.layout](n, k, self.params, device)
        else:
            params, planes = self.params, _planes(self.layout, n, k, self.params, device)
        cls = layouts()[self.layout]
        return cls.from_planes(planes, (n, k), torch.bfloat16, params, device)


_ALL = (
    Sample(label="dense", layout="dense"),
    Sample(label="float12", layout="float12"),
    Sample(label="int8", layout="int8"),
    Sample(label="int8 w8a8", layout="int8", params={"activations": "int8"}),
    Sample(label="fp8 row", layout="fp8", params={"block": 0}),
    Sample(label="fp8 block", layout="fp8", params={"block": 128}),
    Sample(label="int6 row", layout="int6"),
    Sample(label="int4 g128", layout="int4", params={"group": 128, "symmetric": True}),
    Sample(label="int4 row", layout="int4", params={"group": 0, "symmetric": True}),
    Sample(label="nf4 g64", layout="codebook4", params={"group": 64, "scale": "bf16"}),
    Sample(label="mxfp4", layout="codebook4", params={"group": 32, "scale": "e8m0"}),
    Sample(label="nvfp4", layout="codebook4", params={"group": 16, "scale": "e4m3"}),
    Sample(label="bitmap 50 %", layout="bitmap", params={"values": "bf16"}),
    Sample(label="bitmap 50 % int8", layout="bitmap", params={"values": "int8"}),
    Sample(
        label="int4 row outliers",
        layout="int4",
        params={"group": 0, "symmetric": True, "outliers": 0.005},
    ),
    Sample(label="int4 g32 zeros", layout="int4", params={"group": 32, "symmetric": False}),
)


def samples() -> tuple[Sample, ...]:
    """The kinds of weights worth measuring, the most telling first."""
    return tuple(sample for sample in _ALL if sample.layout in layouts())


def _planes(layout: str, n: int, k: int, params: Params, device: torch.device) -> Planes:
    specs = layouts()[layout].plane_specs((n, k), torch.bfloat16, params)
    return {name: random_plane(spec, (n, k), device) for name, spec in specs.items()}


def _with_outliers(
    layout: str, n: int, k: int, asked: Params, device: torch.device
) -> tuple[Params, Planes]:
    """A weight of int4 or int6; `outliers` asks for a share of its weights."""
    share = float(asked.get("outliers") or 0)
    params = {name: value for name, value in asked.items() if name != "outliers"}
    planes = dict(_planes(layout, n, k, params, device))
    if layout == "int6":
        planes["codes"] = torch.randint(-32, 32, (n, k), dtype=torch.int8, device=device)
    if not share:
        return params, planes
    count = max(1, round(share * n * k))
    positions = torch.randperm(n * k, device=device)[:count].sort().values
    planes[POSITIONS] = positions.to(torch.uint32)
    planes[VALUES] = torch.randn(count, device=device).bfloat16()
    return {**params, "outliers": count}, planes


def _codebook4(n: int, k: int, params: Params, device: torch.device) -> tuple[Params, Planes]:
    """Exponents of e8m0 are near 1: 255 is no number."""
    planes = dict(_planes("codebook4", n, k, params, device))
    if params["scale"] == "e8m0":
        planes["scales"] = planes["scales"] % 16 + 112
    return params, planes


def _bitmap(n: int, k: int, params: Params, device: torch.device) -> tuple[Params, Planes]:
    """Half of the weights."""
    bitmap = torch.randint(0, 256, (n, -(-k // 8)), dtype=torch.uint8, device=device)
    if k % 8:
        bitmap[:, -1] &= (1 << k % 8) - 1
    params = {**params, "nonzeros": int(bit_counts(bitmap).sum(dtype=torch.int64))}
    specs = layouts()["bitmap"].plane_specs((n, k), torch.bfloat16, params)
    planes = {name: random_plane(spec, (n, k), device) for name, spec in specs.items()}
    return params, {**planes, "bitmap": bitmap}


MAKERS: Mapping[str, Maker] = {
    "bitmap": _bitmap,
    "codebook4": _codebook4,
    "int4": partial(_with_outliers, "int4"),
    "int6": partial(_with_outliers, "int6"),
}


def random_plane(spec: PlaneSpec, weight: tuple[int, int], device: torch.device) -> Tensor:
    """Symbols over the whole range; floats are weights if there are so many, or else scales.

    Raises:
        LayoutError: the dtype is one that no plane of a weight has.
    """
    ranges = {"u4": (0, 16), "u8": (0, 256), "i8": (-127, 128)}
    if spec.dtype in ranges:
        dtype = torch.int8 if spec.dtype == "i8" else torch.uint8
        return torch.randint(*ranges[spec.dtype], spec.shape, dtype=dtype, device=device)
    floats = {
        "f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16,
        "f8_e4m3": torch.float8_e4m3fn,
    }  # fmt: skip
    if spec.dtype not in floats:
        raise LayoutError(f"a plane of dtype {spec.dtype} has no random sample")
    values = torch.randn if spec.shape == weight else torch.rand
    return values(spec.shape, device=device).to(floats[spec.dtype])
