"""Random quantized weights and the error that a matmul with them may make."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tersor.kernels.int4 import reference as int4_reference
from tersor.kernels.int6 import reference as int6_reference
from tersor.kernels.int8 import reference as int8_reference
from tersor.kernels.outliers.reference import scatter

# Error of a result relative to |x| @ |w|.T, by the coarsest rounding on its way.
TOLERANCES = {
    "fp32": 1e-5,  # float32 sums of up to 4096 products, in another order
    # Half an ulp, which is 2^-8 of a value just above a power of two (bf16 has eight significant
    # bits), for the product, the biased result, and an offset held in bf16.
    "bf16": 3 * 2**-8,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Int8Case:
    """A random int8 weight."""

    codes: Tensor
    scales: Tensor

    @classmethod
    def random(cls, n: int, k: int, seed: int = 0) -> Int8Case:
        rng = torch.Generator().manual_seed(seed)
        codes = torch.randint(-127, 128, (n, k), generator=rng, dtype=torch.int8)
        return cls(codes=codes, scales=(torch.rand(n, generator=rng) + 0.1).bfloat16())

    @property
    def planes(self) -> dict[str, Tensor]:
        return {"codes": self.codes, "scales": self.scales}

    @property
    def weight(self) -> Tensor:
        return int8_reference.dequantize(self.codes, self.scales)

    @property
    def magnitude(self) -> Tensor:
        return self.weight.abs()


@dataclass(frozen=True, slots=True, kw_only=True)
class OutlierCase:
    """Random outliers of a weight [n, k]."""

    positions: Tensor
    values: Tensor
    n: int
    k: int

    @classmethod
    def random(cls, n: int, k: int, count: int) -> OutlierCase:
        rng = torch.Generator().manual_seed(7)
        positions = torch.randperm(n * k, generator=rng)[:count].sort().values
        values = (torch.randn(count, generator=rng) * 20).bfloat16()
        return cls(positions=positions.to(torch.uint32), values=values, n=n, k=k)

    @property
    def planes(self) -> dict[str, Tensor]:
        return {"outlier_positions": self.positions, "outlier_values": self.values}

    @property
    def weight(self) -> Tensor:
        return scatter(self.positions, self.values, self.n, self.k)


@dataclass(frozen=True, slots=True, kw_only=True)
class Int4Case:
    """A random int4 weight."""

    codes: Tensor
    scales: Tensor
    zeros: Tensor | None
    group: int
    per_tensor: bool = False
    outliers: OutlierCase | None = None

    @classmethod
    def random(
        cls,
        n: int,
        k: int,
        *,
        group: int,
        symmetric: bool,
        per_tensor: bool = False,
        outliers: int = 0,
        seed: int = 0,
    ) -> Int4Case:
        rng = torch.Generator().manual_seed(seed)
        shape = (1, 1) if per_tensor else (n, -(-k // (group or k)))
        zeros = torch.randint(0, 16, shape, generator=rng, dtype=torch.uint8)
        return cls(
            codes=torch.randint(0, 16, (n, k), generator=rng, dtype=torch.uint8),
            scales=(torch.rand(shape, generator=rng) + 0.1).bfloat16(),
            zeros=None if symmetric else zeros,
            group=group,
            per_tensor=per_tensor,
            outliers=OutlierCase.random(n, k, outliers) if outliers else None,
        )

    @property
    def planes(self) -> dict[str, Tensor]:
        planes = {"codes": self.codes, "scales": self.scales}
        planes |= {} if self.zeros is None else {"zeros": self.zeros}
        return planes | (self.outliers.planes if self.outliers else {})

    @property
    def params(self) -> dict[str, str | int | bool]:
        params: dict[str, str | int | bool] = {"group": self.group}
        params["symmetric"] = self.zeros is None
        params |= {"step": "tensor"} if self.per_tensor else {}
        return params | ({"outliers": len(self.outliers.values)} if self.outliers else {})

    @property
    def weight(self) -> Tensor:
        weight = int4_reference.dequantize(self.codes, self.scales, self.zeros, self.group)
        return weight + self.outliers.weight if self.outliers else weight

    @property
    def magnitude(self) -> Tensor:
        """Size of the terms from which a product is made: (code - 8) * s and (8 - zero) * s."""
        steps = int4_reference.dequantize(
            torch.full_like(self.codes, 15), self.scales, None, self.group
        )
        magnitude = steps * (8 / 7)
        return magnitude + self.outliers.weight.abs() if self.outliers else magnitude


@dataclass(frozen=True, slots=True, kw_only=True)
class Int6Case:
    """A random int6 weight."""

    codes: Tensor
    scales: Tensor
    outliers: OutlierCase | None

    @classmethod
    def random(cls, n: int, k: int, *, per_tensor: bool = False, outliers: int = 0) -> Int6Case:
        rng = torch.Generator().manual_seed(0)
        return cls(
            codes=torch.randint(-32, 32, (n, k), generator=rng, dtype=torch.int8),
            scales=(torch.rand(1 if per_tensor else n, generator=rng) + 0.1).bfloat16(),
            outliers=OutlierCase.random(n, k, outliers) if outliers else None,
        )

    @property
    def planes(self) -> dict[str, Tensor]:
        planes = {"codes": self.codes, "scales": self.scales}
        return planes | (self.outliers.planes if self.outliers else {})

    @property
    def params(self) -> dict[str, str | int | bool]:
        params: dict[str, str | int | bool] = {}
        params |= {"step": "tensor"} if len(self.scales) != len(self.codes) else {}
        return params | ({"outliers": len(self.outliers.values)} if self.outliers else {})

    @property
    def weight(self) -> Tensor:
        weight = int6_reference.dequantize(self.codes, self.scales)
        return weight + self.outliers.weight if self.outliers else weight

    @property
    def magnitude(self) -> Tensor:
        magnitude = int6_reference.dequantize(self.codes.abs(), self.scales)
        return magnitude + self.outliers.weight.abs() if self.outliers else magnitude


def activations(m: int, k: int, dtype: torch.dtype = torch.float32, seed: int = 1) -> Tensor:
    """x [m, k] whose values are exact in bf16, so that rounding x is no part of the error."""
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(m, k, generator=rng).bfloat16().to(dtype)


def assert_matmul_close(
    y: Tensor, x: Tensor, weight: Tensor, magnitude: Tensor, bias: Tensor | None, tolerance: float
) -> None:
    """Compares y with float64 x @ weight.T + bias, made on its device.

    NaN, which is unwritten memory, fails.
    """
    x, weight, magnitude = (each.to(y.device).double() for each in (x, weight, magnitude))
    expected = x @ weight.T
    bound = x.abs() @ magnitude.T
    if bias is not None:
        expected, bound = expected + bias.double(), bound + bias.double().abs()
    error = (y.double() - expected).abs() / bound.clamp_min(1e-30)
    worst = int(torch.where(error.isnan(), torch.inf, error).argmax())
    row, column = divmod(worst, y.shape[1])
    assert bool((error <= tolerance).all()), (
        f"y[{row}, {column}] = {float(y[row, column])}, expected {float(expected[row, column])}: "
        f"relative error {float(error[row, column]):.2e}, tolerance {tolerance:.2e}"
    )
