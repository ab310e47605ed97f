"""What the kernels of skinny products share: their rows, their results, and how parts add up.

Partials are summed in the order of their K ranges, in float32, by one program per output: unlike
with atomics the result has the same bits in every run, and nothing has to be zeroed first.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tersor.kernels.checks import check_tensor
from tersor.kernels.errors import LayoutError
from tersor.kernels.gated.triton import activated
from tersor.kernels.gemv.config import MAX_REGISTERS

BLOCK = 1024


@triton.jit
def tile_rows(tile, n, GATE: tl.constexpr, BN: tl.constexpr):
    """Rows int64 [BN] of the weight that program `tile` reads.

    Gated, a program holds the gate rows of BN / 2 outputs and then their up rows, n / 2 below.
    Beyond the edge the last row is computed again and not stored: no masks in the loop.
    """
    lane = tl.arange(0, BN)
    if GATE == "":
        row = tl.minimum(tile.to(tl.int64) * BN + lane, n - 1)
    else:
        half: tl.constexpr = BN // 2
        inner = n // 2
        row = tl.minimum(tile.to(tl.int64) * half + lane % half, inner - 1) + lane // half * inner
    return row


@triton.jit
def store_tile(
    acc,  # float32 [BN, BM]
    row,  # int64 [BN], as `tile_rows` gives them
    tokens,  # int64 [BM]
    bias_ptr,  # [n], read if HAS_BIAS
    out_ptr,  # [splits, m, n], or [m, n / 2] if gated
    tile,
    split,
    m,
    n,
    HAS_BIAS: tl.constexpr,  # of the whole product: the first split adds it
    GATE: tl.constexpr,  # "" or an activation; only with one split
    BN: tl.constexpr,
    BM: tl.constexpr,
):
    """Writes the tile of a product: added bias, and the gated activation if there is one."""
    if HAS_BIAS:
        bias = tl.load(bias_ptr + row).to(tl.float32)
        acc += tl.where(split == 0, bias, 0.0)[:, None]
    if GATE == "":
        rows = tile.to(tl.int64) * BN + tl.arange(0, BN)
        out_ptrs = out_ptr + (split.to(tl.int64) * m + tokens[None, :]) * n + rows[:, None]
        inside = (rows < n)[:, None] & (tokens < m)[None, :]
        tl.store(out_ptrs, acc.to(out_ptr.dtype.element_ty), mask=inside)
    else:
        half: tl.constexpr = BN // 2
        gate, up = acc.reshape(2, half, BM).permute(1, 2, 0).split()
        y = activated(gate, GATE) * up
        rows = tile.to(tl.int64) * half + tl.arange(0, half)
        out_ptrs = out_ptr + tokens[None, :] * (n // 2) + rows[:, None]
        inside = (rows < n // 2)[:, None] & (tokens < m)[None, :]
        tl.store(out_ptrs, y.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def load_partials(pointers, stride, inside, SPLITS: tl.constexpr):
    """The float32 sum of SPLITS parts, `stride` (int64) elements apart, added in order.

    Unrolled: a consumer waits for memory once instead of once a part.
    """
    total = tl.load(pointers, mask=inside, other=0.0).to(tl.float32)
    for split in tl.static_range(1, SPLITS):
        total += tl.load(pointers + split * stride, mask=inside, other=0.0).to(tl.float32)
    return total


@triton.jit
def splitk_sum_kernel(
    partials_ptr,  # float32 [splits, size]
    out_ptr,  # [size]
    size,
    splits,
    BLOCK: tl.constexpr,
):
    """out[i] = sum over s of partials[s, i]."""
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = index < size
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    offset = tl.zeros((), dtype=tl.int64)
    for _ in range(splits):
        total += tl.load(partials_ptr + offset + index, mask=inside, other=0.0)
        offset += size
    tl.store(out_ptr + index, total.to(out_ptr.dtype.element_ty), mask=inside)


def splitk_sum(partials: Tensor, dtype: torch.dtype) -> Tensor:
    """Adds up `partials` float32 [S, M, N] contiguous: [M, N] in `dtype`, fp32 or bf16.

    Raises:
        LayoutError: partials have another shape or dtype, or are not contiguous.
    """
    check_tensor("partials", partials, shape=(None, None, None), dtypes=(torch.float32,))
    splits, m, n = partials.shape
    out = torch.empty(m, n, dtype=dtype, device=partials.device)
    splitk_sum_kernel[(triton.cdiv(m * n, BLOCK),)](
        partials, out, m * n, splits, BLOCK=BLOCK, num_warps=4
    )
    return out


def compute_dtype(device: torch.device) -> tl.dtype:
    """The dtype of a kernel's products on `device`.

    bf16 on a GPU. On a CPU only the interpreter runs kernels, and its bf16 arithmetic is wrong
    without saying so: fp32 there.

    Raises:
        LayoutError: the operands are on a CPU and the interpreter is off.
    """
    check_device(device)
    return tl.float32 if device.type == "cpu" else tl.bfloat16


def check_device(device: torch.device) -> None:
    """Raises LayoutError if no kernel can run: operands on a CPU, and the interpreter is off."""
    if device.type == "cpu" and not triton.knobs.runtime.interpret:
        raise LayoutError("Triton kernels need operands on a GPU, got cpu; use the CPU path there")


def register_options(device: torch.device, most: int = MAX_REGISTERS) -> dict[str, int]:
    """Launch options that bound registers: NVIDIA's alone (see MAX_REGISTERS)."""
    return {"maxnreg": most} if has_inline_asm(device) else {}


def has_inline_asm(device: torch.device) -> bool:
    """Whether kernels on `device` are compiled by NVIDIA's tools."""
    return device.type == "cuda" and torch.version.hip is None
