"""Triton kernel of gated activations, which adds up the parts of a split product first."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tersor.kernels.checks import check_tensor

BLOCK = 256


@triton.jit
def activated(x, ACTIVATION: tl.constexpr):
    """silu, gelu or gelu_tanh of float32 x, as in reference.py."""
    if ACTIVATION == "silu":
        y = x * tl.sigmoid(x)
    elif ACTIVATION == "gelu":
        y = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    else:
        tl.static_assert(ACTIVATION == "gelu_tanh")
        # 0.5 (1 + tanh(z)) = sigmoid(2 z)
        y = x * tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
    return y


# Triton would make a constant of an m of 1, and a constant cannot be widened.
@triton.jit(do_not_specialize=["m"])
def gated_sum_kernel(
    partials_ptr,  # [splits, m, 2 * inner]
    out_ptr,  # [m, inner]
    m,
    inner,
    splits,
    ACTIVATION: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """out[i, c] = act(gate[i, c]) * up[i, c], both summed over s. Grid: (m, inner / BLOCK)."""
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < inner
    pointers = partials_ptr + token * 2 * inner + column
    stride = m.to(tl.int64) * 2 * inner
    gate = tl.zeros((BLOCK,), dtype=tl.float32)
    up = tl.zeros((BLOCK,), dtype=tl.float32)
    for _ in range(splits):
        gate += tl.load(pointers, mask=inside, other=0.0).to(tl.float32)
        up += tl.load(pointers + inner, mask=inside, other=0.0).to(tl.float32)
        pointers += stride
    y = activated(gate, ACTIVATION) * up
    tl.store(out_ptr + token * inner + column, y.to(out_ptr.dtype.element_ty), mask=inside)


def gated_sum(partials: Tensor, activation: str, dtype: torch.dtype) -> Tensor:
    """Adds up partials [S, M, 2 * I] contiguous, and gates: [M, I] in `dtype`, fp32 or bf16.

    Raises:
        LayoutError: partials have another shape, or are not contiguous.
    """
    check_tensor("partials", partials, shape=(None, None, None))
    splits, m, n = partials.shape
    inner = n // 2
    out = torch.empty(m, inner, dtype=dtype, device=partials.device)
    if m:
        gated_sum_kernel[(m, triton.cdiv(inner, BLOCK))](
            partials, out, m, inner, splits, ACTIVATION=activation, BLOCK=BLOCK, num_warps=2
        )
    return out
