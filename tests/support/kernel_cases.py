"""Random quantized weights and the error that a matmul with them may make."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tersor.kernels.int4 import reference as int4_reference
from tersor.kernels.int8 import reference as int8_reference

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
class Int4Case:
    """A random int4 weight."""

    codes: Tensor
    scales: Tensor
    zeros: Tensor | None
    group: int

    @classmethod
    def random(cls, n: int, k: int, *, group: int, symmetric: bool, seed: int = 0) -> Int4Case:
        rng = torch.Generator().manual_seed(seed)
        groups = -(-k // (group or k))
        zeros = torch.randint(0, 16, (n, groups), generator=rng, dtype=torch.uint8)
        return cls(
            codes=torch.randint(0, 16, (n, k), generator=rng, dtype=torch.uint8),
            scales=(torch.rand(n, groups, generator=rng) + 0.1).bfloat16(),
            zeros=None if symmetric else zeros,
            group=group,
        )

    @property
    def planes(self) -> dict[str, Tensor]:
        planes = {"codes": self.codes, "scales": self.scales}
        return planes if self.zeros is None else planes | {"zeros": self.zeros}

    @property
    def params(self) -> dict[str, int | bool]:
        return {"group": self.group, "symmetric": self.zeros is None}

    @property
    def weight(self) -> Tensor:
        return int4_reference.dequantize(self.codes, self.scales, self.zeros, self.group)

    @property
    def magnitude(self) -> Tensor:
        """Size of the terms from which a product is made: (code - 8) * s and (8 - zero) * s."""
        steps = int4_reference.dequantize(
            torch.full_like(self.codes, 15), self.scales, None, self.group
        )
        return steps * (8 / 7)


def activations(m: int, k: int, dtype: torch.dtype = torch.float32, seed: int = 1) -> Tensor:
    """x [m, k] whose values are exact in bf16, so that rounding x is no part of the error."""
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(m, k, generator=rng).bfloat16().to(dtype)


def assert_matmul_close(
    y: Tensor, x: Tensor, weight: Tensor, magnitude: Tensor, bias: Tensor | None, tolerance: float
) -> None:
    """Compares y with float64 x @ weight.T + bias; NaN (unwritten memory) fails."""
    x, weight, magnitude = x.double().cpu(), weight.double().cpu(), magnitude.double().cpu()
    expected = x @ weight.T
    bound = x.abs() @ magnitude.T
    if bias is not None:
        expected, bound = expected + bias.double().cpu(), bound + bias.double().cpu().abs()
    error = (y.double().cpu() - expected).abs() / bound.clamp_min(1e-30)
    worst = int(torch.where(error.isnan(), torch.inf, error).argmax())
    row, column = divmod(worst, y.shape[1])
    assert bool((error <= tolerance).all()), (
        f"y[{row}, {column}] = {float(y[row, column])}, expected {float(expected[row, column])}: "
        f"relative error {float(error[row, column]):.2e}, tolerance {tolerance:.2e}"
    )
