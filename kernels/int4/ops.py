"""The int4 operators, visible to torch.compile, torch.export and CUDA graphs."""

from __future__ import annotations

import torch
from torch import Tensor

from tersor.kernels.gemv.fake import fake_product
from tersor.kernels.gemv.finish import Finish, finish_of, finish_product
from tersor.kernels.int4 import cpu, packing
from tersor.kernels.outliers.slices import SlicedOutliers, defined_product, sliced

LIBRARY = torch.library.Library("tersor", "FRAGMENT")
LIBRARY.define(
    "int4_matmul_tiles(Tensor x, Tensor tiles, Tensor scale_offset, int n, int group, "
    "Tensor? bias=None) -> Tensor"
)
LIBRARY.define(
    "int4_matmul_words(Tensor x, Tensor words, Tensor scales, Tensor? zeros, int group, "
    "Tensor? bias=None, str finish='sum', Tensor? entries=None, Tensor? starts=None, "
    "int longest=0) -> Tensor"
)


@torch.library.impl(LIBRARY, "int4_matmul_tiles", "CPU")
def _tiles_cpu(
    x: Tensor, tiles: Tensor, scale_offset: Tensor, n: int, group: int, bias: Tensor | None = None
) -> Tensor:
    return cpu.matmul(x, tiles, scale_offset, n, group, bias)


def _tiles_fake(
    x: Tensor, tiles: Tensor, scale_offset: Tensor, n: int, group: int, bias: Tensor | None = None
) -> Tensor:
    del tiles, scale_offset, group, bias  # the shape does not depend on them
    return x.new_empty(x.shape[0], n)


torch.library.register_fake("tersor::int4_matmul_tiles", _tiles_fake, lib=LIBRARY)


@torch.library.impl(LIBRARY, "int4_matmul_words", "CPU")
def _words_cpu(
    x: Tensor,
    words: Tensor,
    scales: Tensor,
    zeros: Tensor | None,
    group: int,
    bias: Tensor | None = None,
    finish: str = "sum",
    entries: Tensor | None = None,
    starts: Tensor | None = None,
    longest: int = 0,
) -> Tensor:
    weight = packing.dequantize_words(words, scales, zeros, group, x.shape[1])
    y = defined_product(x, weight, sliced(entries, starts, longest), bias)
    return finish_product(y, finish_of(finish, words.shape[0]))


@torch.library.impl(LIBRARY, "int4_matmul_words", "CUDA")
def _words_cuda(
    x: Tensor,
    words: Tensor,
    scales: Tensor,
    zeros: Tensor | None,
    group: int,
    bias: Tensor | None = None,
    finish: str = "sum",
    entries: Tensor | None = None,
    starts: Tensor | None = None,
    longest: int = 0,
) -> Tensor:
    from tersor.kernels.int4 import triton  # imports triton, which a CPU need not have

    outliers = sliced(entries, starts, longest)
    kind = finish_of(finish, words.shape[0])
    return triton.matmul(x, words, None, scales, zeros, outliers, group, bias, kind)


def _words_fake(
    x: Tensor,
    words: Tensor,
    scales: Tensor,
    zeros: Tensor | None,
    group: int,
    bias: Tensor | None = None,
    finish: str = "sum",
    entries: Tensor | None = None,
    starts: Tensor | None = None,
    longest: int = 0,
) -> Tensor:
    del scales, bias, entries, starts, longest  # the shape does not depend on them
    n, width = words.shape
    bw = packing.block_words(group, x.shape[1])
    assert bw is not None, "words are only packed for groups that fit blocks"
    name = packing.kernel_name(group, x.shape[1], zeros=zeros is not None)
    return fake_product(x, name, finish, n=n, steps=width // bw)


torch.library.register_fake("tersor::int4_matmul_words", _words_fake, lib=LIBRARY)


def int4_matmul_tiles(
    x: Tensor, tiles: Tensor, scale_offset: Tensor, n: int, group: int, bias: Tensor | None
) -> Tensor:
    """Multiplies x [M, K] contiguous (fp32 or bf16) by tiles on a CPU, adds bias [n] -> [M, n].

    Args:
        x: rounded to bf16 up to `packed_max_rows` (crossover.py) rows; the result is in x.dtype.
        tiles: uint8 [Np, Kp/2] and
        scale_offset: bf16 [Kp/group, Np, 2] as TilesForm packs them.
        n: rows of the weight without padding.
        group: columns per scale, 32, 64, 128 or 256.
        bias: [n] or None.
    """
    y: Tensor = torch.ops.tersor.int4_matmul_tiles(x, tiles, scale_offset, n, group, bias)
    return y


def int4_matmul_words(
    x: Tensor,
    words: Tensor,
    scales: Tensor,
    zeros: Tensor | None,
    group: int,
    bias: Tensor | None,
    finish: Finish = Finish.SUM,
    outliers: SlicedOutliers | None = None,
) -> Tensor:
    """Multiplies x [M, K] contiguous (fp32 or bf16) by words, adds bias [N]: what `finish` says.

    The arguments are those of the launcher (triton.py); on a CPU plain torch computes it.
    """
    weight = (x, words, scales, zeros, group, bias, finish)
    sparse = () if outliers is None else (outliers.entries, outliers.starts, outliers.longest)
    y: Tensor = torch.ops.tersor.int4_matmul_words(*weight, *sparse)
    return y
