"""`tersor::bitmap_matmul`, visible to torch.compile, torch.export and CUDA graphs."""

from __future__ import annotations

import torch
from torch import Tensor

from tersor.kernels.bitmap.packing import BLOCK, WORDS, dequantize_words, kernel_name
from tersor.kernels.cpu import finished
from tersor.kernels.gemv.fake import fake_product
from tersor.kernels.gemv.finish import Finish, finish_of, finish_product

LIBRARY = torch.library.Library("tersor", "FRAGMENT")
LIBRARY.define(
    "bitmap_matmul(Tensor x, Tensor words, Tensor offsets, Tensor starts, Tensor values, "
    "Tensor? scales, Tensor? bias=None, str finish='sum') -> Tensor"
)


@torch.library.impl(LIBRARY, "bitmap_matmul", "CPU")
def _matmul_cpu(
    x: Tensor,
    words: Tensor,
    offsets: Tensor,
    starts: Tensor,
    values: Tensor,
    scales: Tensor | None,
    bias: Tensor | None = None,
    finish: str = "sum",
) -> Tensor:
    """The definition in plain torch."""
    del offsets  # only what saves the kernel counting
    weight = dequantize_words(words, starts, values, scales, x.shape[1])
    y = x.to(torch.bfloat16).to(torch.float32) @ weight.T
    return finish_product(finished(y, bias, x.dtype), finish_of(finish, words.shape[0]))


@torch.library.impl(LIBRARY, "bitmap_matmul", "CUDA")
def _matmul_cuda(
    x: Tensor,
    words: Tensor,
    offsets: Tensor,
    starts: Tensor,
    values: Tensor,
    scales: Tensor | None,
    bias: Tensor | None = None,
    finish: str = "sum",
) -> Tensor:
    from tersor.kernels.bitmap import triton  # imports triton, which a CPU need not have

    weight = triton.Weight(words, offsets, starts, values, scales)
    return triton.matmul(x, weight, bias, finish_of(finish, words.shape[0]))


def _matmul_fake(
    x: Tensor,
    words: Tensor,
    offsets: Tensor,
    starts: Tensor,
    values: Tensor,
    scales: Tensor | None,
    bias: Tensor | None = None,
    finish: str = "sum",
) -> Tensor:
    del offsets, starts, values, bias  # the shape does not depend on them
    n, width = words.shape
    padded = x.new_empty(x.shape[0], width // WORDS * BLOCK)
    name = kernel_name(scales=scales is not None)
    return fake_product(padded, name, finish, n=n, steps=width // WORDS)


torch.library.register_fake("tersor::bitmap_matmul", _matmul_fake, lib=LIBRARY)


def bitmap_matmul(
    x: Tensor,
    words: Tensor,
    offsets: Tensor,
    starts: Tensor,
    values: Tensor,
    scales: Tensor | None,
    bias: Tensor | None,
    finish: Finish = Finish.SUM,
) -> Tensor:
    """Multiplies x [M, K] contiguous (fp32 or bf16) by a sparse weight: what `finish` says.

    The arguments are those of the launcher (triton.py); on a CPU plain torch computes it.
    """
    y: Tensor = torch.ops.tersor.bitmap_matmul(
        x, words, offsets, starts, values, scales, bias, finish
    )
    return y
