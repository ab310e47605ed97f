"""`tersor::codebook4_matmul`, visible to torch.compile, torch.export and CUDA graphs."""

from __future__ import annotations

import torch
from torch import Tensor

from tersor.kernels.codebook4 import reference
from tersor.kernels.codebook4.lookup import rounded_table
from tersor.kernels.codebook4.scales import ScaleGrid
from tersor.kernels.cpu import finished
from tersor.kernels.gemv.fake import fake_product
from tersor.kernels.gemv.finish import Finish, finish_of, finish_product
from tersor.kernels.int4.packing import unpack_words

LIBRARY = torch.library.Library("tersor", "FRAGMENT")
LIBRARY.define(
    "codebook4_matmul(Tensor x, Tensor words, Tensor scales, Tensor lookup, Tensor? tensor_scale, "
    "int group, str scale, bool mirrored, Tensor? bias=None, str finish='sum') -> Tensor"
)


@torch.library.impl(LIBRARY, "codebook4_matmul", "CPU")
def _matmul_cpu(
    x: Tensor,
    words: Tensor,
    scales: Tensor,
    lookup: Tensor,
    tensor_scale: Tensor | None,
    group: int,
    scale: str,
    mirrored: bool,  # noqa: FBT001  # the operator's schema
    bias: Tensor | None = None,
    finish: str = "sum",
) -> Tensor:
    """The definition in plain torch, with the table as the kernel has it."""
    del mirrored  # only how the kernel looks up
    n, k = words.shape[0], x.shape[1]
    table = rounded_table(lookup).to(torch.float32)
    weight = dequantize_words(words, scales, table, tensor_scale, ScaleGrid(group, k, scale))
    y = x.to(torch.bfloat16).to(torch.float32) @ weight.T
    return finish_product(finished(y, bias, x.dtype), finish_of(finish, n))


@torch.library.impl(LIBRARY, "codebook4_matmul", "CUDA")
def _matmul_cuda(
    x: Tensor,
    words: Tensor,
    scales: Tensor,
    lookup: Tensor,
    tensor_scale: Tensor | None,
    group: int,
    scale: str,
    mirrored: bool,  # noqa: FBT001  # the operator's schema
    bias: Tensor | None = None,
    finish: str = "sum",
) -> Tensor:
    from tersor.kernels.codebook4 import triton  # imports triton, which a CPU need not have

    grid = ScaleGrid(group, x.shape[1], scale)
    weight = triton.Weight(words, scales, lookup, tensor_scale, grid, mirrored)
    return triton.matmul(x, weight, bias, finish_of(finish, words.shape[0]))


def _matmul_fake(
    x: Tensor,
    words: Tensor,
    scales: Tensor,
    lookup: Tensor,
    tensor_scale: Tensor | None,
    group: int,
    scale: str,
    mirrored: bool,  # noqa: FBT001  # the operator's schema
    bias: Tensor | None = None,
    finish: str = "sum",
) -> Tensor:
    del scales, lookup, tensor_scale, mirrored, bias  # the shape does not depend on them
    grid = ScaleGrid(group, x.shape[1], scale)
    padded = x.new_empty(x.shape[0], grid.padded_k)
    return fake_product(padded, grid.kernel_name, finish, n=words.shape[0], steps=grid.blocks)


torch.library.register_fake("tersor::codebook4_matmul", _matmul_fake, lib=LIBRARY)


def dequantize_words(
    words: Tensor, scales: Tensor, table: Tensor, tensor_scale: Tensor | None, grid: ScaleGrid
) -> Tensor:
    """Decodes words with scales as `grid` packed them to float32 [N, k], in plain torch."""
    codes = unpack_words(words, grid.bw, grid.k)
    span = grid.slices * grid.bw
    return reference.dequantize(codes, grid.unpack(scales), table, span, tensor_scale)


def codebook4_matmul(
    x: Tensor,
    words: Tensor,
    scales: Tensor,
    lookup: Tensor,
    tensor_scale: Tensor | None,
    grid: ScaleGrid,
    bias: Tensor | None,
    finish: Finish = Finish.SUM,
    *,
    mirrored: bool,
) -> Tensor:
    """Multiplies x [M, K] contiguous (fp32 or bf16) by words, adds bias [N]: what `finish` says.

    Args:
        x: fp32 is rounded to bf16.
        words: int32 [N, W] as `kernels.int4.packing.pack_words` makes them.
        scales: int32 [blocks, words, N] as `ScaleGrid.pack` makes them.
        lookup: int32 [264] as `gpu_lookup` makes it: table entries are rounded to bf16.
        tensor_scale: float32 [1] or None.
        grid: where the scales lie.
        bias: [N] or None.
        finish: what is returned.
        mirrored: what `is_mirrored` says of the table.
    """
    y: Tensor = torch.ops.tersor.codebook4_matmul(
        x, words, scales, lookup, tensor_scale, grid.group, grid.scale, mirrored, bias, finish
    )
    return y
