"""Launches a skinny product: the arguments and results that all its kernels have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import triton
from torch import Tensor
from torch.nn import functional as F

from tersor.kernels.cpu import finished
from tersor.kernels.gated.triton import gated_sum
from tersor.kernels.gemv.config import tile_config
from tersor.kernels.gemv.finish import Finish, finish_product
from tersor.kernels.gemv.triton import compute_dtype, register_options, splitk_sum

# Elements decoded at a time for cuBLAS: 128 MiB in bf16.
DECODED_ELEMENTS = 1 << 26


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """A kernel bound to its weight [n, k].

    The kernel's arguments are, in this order: x, `weights`, bias, out, m, n, k, `sizes` and the
    steps of a split; then the constants HAS_BIAS, GATE, COMPUTE, BM, BN and `constants`.
    """

    kernel: Any  # a triton.jit function
    name: str  # by which tuning tables know it
    n: int
    k: int
    steps: int  # of its loop over K
    bms: tuple[int, ...]  # tile heights it was budgeted for, ascending
    weights: Sequence[Tensor]
    sizes: Sequence[int] = ()
    constants: Mapping[str, Any] = field(default_factory=dict)

    def launch(self, x: Tensor, bias: Tensor | None, finish: Finish) -> Tensor:
        """Multiplies x [M, k] contiguous, fp32 or bf16, of at least one row.

        fp32 is rounded to bf16 first. Returns what `finish` says, on x's device.
        """
        m, n = x.shape[0], self.n
        config = tile_config(
            self.name, m=m, n=n, k=self.k, steps=self.steps, bms=self.bms, device=x.device
        )
        split = config.splits > 1
        gate = "" if split else finish.gate
        out = torch.empty(
            (m, n // 2) if gate else (config.splits, m, n),
            dtype=torch.float32 if split else x.dtype,
            device=x.device,
        )
        tiles = triton.cdiv(n // 2, config.bn // 2) if gate else triton.cdiv(n, config.bn)
        self.kernel[(triton.cdiv(m, config.bm), tiles, config.splits)](
            x.to(torch.bfloat16),
            *self.weights,
            x if bias is None else bias,
            out,
            m,
            n,
            self.k,
            *self.sizes,
            config.steps_per_split,
            HAS_BIAS=bias is not None,
            GATE=gate,
            COMPUTE=compute_dtype(x.device),
            BM=config.bm,
            BN=config.bn,
            **self.constants,
            num_warps=config.num_warps,
            num_stages=config.num_stages,
            **register_options(x.device),
        )
        if gate or finish is Finish.PARTIALS:
            return out
        if not split:
            return out[0]
        return gated_sum(out, finish.gate, x.dtype) if finish.gate else splitk_sum(out, x.dtype)


def decoded_product(
    x: Tensor,
    n: int,
    bias: Tensor | None,
    finish: Finish,
    decode: Callable[[int, int], Tensor],
    scales: Tensor | None = None,
) -> Tensor:
    """Multiplies x [M, K] by a weight that is decoded once, some rows at a time, for cuBLAS.

    Args:
        x: fp32 or bf16; fp32 is rounded to bf16.
        n: rows of the weight.
        bias: [n] or None.
        finish: what is returned.
        decode: rows start..stop of the weight in bf16, [stop - start, K].
        scales: [n], factors on the product: exact weights times a step are not rounded twice.
    """
    out = torch.empty(x.shape[0], n, dtype=x.dtype, device=x.device)
    narrow = x.to(torch.bfloat16)
    rows = max(1, DECODED_ELEMENTS // x.shape[1])
    for start in range(0, n, rows):
        block = slice(start, min(start + rows, n))
        y = F.linear(narrow, decode(block.start, block.stop))
        if scales is not None:
            y = y.to(torch.float32) * scales[block]
        out[:, block] = finished(y, None if bias is None else bias[block], out.dtype)
    return finish_product(out, finish)
