"""`tersor::int6_matmul_words`, visible to torch.compile, torch.export and CUDA graphs."""

from __future__ import annotations

import torch
from torch import Tensor

from tersor.kernels.gemv.fake import fake_product
from tersor.kernels.gemv.finish import Finish, finish_of, finish_product
from tersor.kernels.int4.packing import kernel_name
from tersor.kernels.int6 import packing
from tersor.kernels.outliers.slices import SlicedOutliers, defined_product, sliced

LIBRARY = torch.library.Library("tersor", "FRAGMENT")
LIBRARY.define(
    "int6_matmul_words(Tensor x, Tensor words, Tensor high, Tensor scales, Tensor? bias=None, "
    "str finish='sum', Tensor? entries=None, Tensor? starts=None, int longest=0) -> Tensor"
)


@torch.library.impl(LIBRARY, "int6_matmul_words", "CPU")
def _words_cpu(
    x: Tensor,
    words: Tensor,
    high: Tensor,
    scales: Tensor,
    bias: Tensor | None = None,
    finish: str = "sum",
    entries: Tensor | None = None,
    starts: Tensor | None = None,
    longest: int = 0,
) -> Tensor:
    weight = packing.dequantize_words(words, high, scales, x.shape[1])
    y = defined_product(x, weight, sliced(entries, starts, longest), bias)
    return finish_product(y, finish_of(finish, words.shape[0]))


@torch.library.impl(LIBRARY, "int6_matmul_words", "CUDA")
def _words_cuda(
    x: Tensor,
    words: Tensor,
    high: Tensor,
    scales: Tensor,
    bias: Tensor | None = None,
    finish: str = "sum",
    entries: Tensor | None = None,
    starts: Tensor | None = None,
    longest: int = 0,
) -> Tensor:
    from tersor.kernels.int4 import triton  # imports triton, which a CPU need not have

    outliers = sliced(entries, starts, longest)
    kind = finish_of(finish, words.shape[0])
    return triton.matmul(x, words, high, scales, None, outliers, x.shape[1], bias, kind)


def _words_fake(
    x: Tensor,
    words: Tensor,
    high: Tensor,
    scales: Tensor,
    bias: Tensor | None = None,
    finish: str = "sum",
    entries: Tensor | None = None,
    starts: Tensor | None = None,
    longest: int = 0,
) -> Tensor:
    del high, scales, bias, entries, starts, longest  # the shape does not depend on them
    (n, width), k = words.shape, x.shape[1]
    steps = width // packing.words_per_block(k)
    return fake_product(x, kernel_name(k, k, zeros=False, bits=6), finish, n=n, steps=steps)


torch.library.register_fake("tersor::int6_matmul_words", _words_fake, lib=LIBRARY)


def int6_matmul_words(
    x: Tensor,
    words: Tensor,
    high: Tensor,
    scales: Tensor,
    outliers: SlicedOutliers | None,
    bias: Tensor | None,
    finish: Finish = Finish.SUM,
) -> Tensor:
    """Multiplies x [M, K] contiguous (fp32 or bf16) by words, adds bias [N]: what `finish` says.

    The arguments are those of int4's launcher, which launches both; on a CPU plain torch computes
    it.
    """
    sparse = () if outliers is None else (outliers.entries, outliers.starts, outliers.longest)
    y: Tensor = torch.ops.tersor.int6_matmul_words(x, words, high, scales, bias, finish, *sparse)
    return y
