"""The float12 operators, visible to torch.compile, torch.export and CUDA graphs."""

from __future__ import annotations

import torch
from torch import Tensor

from tersor.kernels.float12 import reference
from tersor.kernels.float12.packing import BLOCK_WORDS, Packed
from tersor.kernels.gemv.fake import fake_product
from tersor.kernels.gemv.finish import Finish, finish_of, finish_product

LIBRARY = torch.library.Library("tersor", "FRAGMENT")
LIBRARY.define(
    "float12_matmul(Tensor x, Tensor words, Tensor bases, Tensor offsets, Tensor columns, "
    "Tensor values, Tensor? bias=None, str finish='sum') -> Tensor"
)
LIBRARY.define(
    "float12_decode(Tensor words, Tensor bases, Tensor starts, Tensor ends, Tensor columns, "
    "Tensor values, int k) -> Tensor"
)


@torch.library.impl(LIBRARY, "float12_matmul", "CPU")
def _matmul_cpu(
    x: Tensor,
    words: Tensor,
    bases: Tensor,
    offsets: Tensor,
    columns: Tensor,
    values: Tensor,
    bias: Tensor | None = None,
    finish: str = "sum",
) -> Tensor:
    y = reference.matmul(x, words, bases, offsets, columns, values, bias).to(x.dtype)
    return finish_product(y, finish_of(finish, words.shape[0]))


@torch.library.impl(LIBRARY, "float12_matmul", "CUDA")
def _matmul_cuda(
    x: Tensor,
    words: Tensor,
    bases: Tensor,
    offsets: Tensor,
    columns: Tensor,
    values: Tensor,
    bias: Tensor | None = None,
    finish: str = "sum",
) -> Tensor:
    from tersor.kernels.float12 import triton  # imports triton, which a CPU need not have

    packed = Packed(
        k=x.shape[1], words=words, bases=bases, offsets=offsets, columns=columns, values=values
    )
    return triton.matmul(x, packed, bias, finish_of(finish, words.shape[0]))


def _matmul_fake(
    x: Tensor,
    words: Tensor,
    bases: Tensor,
    offsets: Tensor,
    columns: Tensor,
    values: Tensor,
    bias: Tensor | None = None,
    finish: str = "sum",
) -> Tensor:
    del bases, offsets, columns, values, bias  # the shape does not depend on them
    n, width = words.shape
    return fake_product(x, "float12", finish, n=n, steps=width // BLOCK_WORDS)


torch.library.register_fake("tersor::float12_matmul", _matmul_fake, lib=LIBRARY)


@torch.library.impl(LIBRARY, "float12_decode", "CPU")
def _decode_cpu(
    words: Tensor,
    bases: Tensor,
    starts: Tensor,
    ends: Tensor,
    columns: Tensor,
    values: Tensor,
    k: int,
) -> Tensor:
    return reference.decode(words, bases, starts, ends, columns, values, k)


@torch.library.impl(LIBRARY, "float12_decode", "CUDA")
def _decode_cuda(
    words: Tensor,
    bases: Tensor,
    starts: Tensor,
    ends: Tensor,
    columns: Tensor,
    values: Tensor,
    k: int,
) -> Tensor:
    from tersor.kernels.float12 import triton  # as above

    return triton.decode(words, bases, starts, ends, columns, values, k)


def _decode_fake(
    words: Tensor,
    bases: Tensor,
    starts: Tensor,
    ends: Tensor,
    columns: Tensor,
    values: Tensor,
    k: int,
) -> Tensor:
    del bases, starts, ends, columns  # the shape does not depend on them
    return values.new_empty(words.shape[0], k)


torch.library.register_fake("tersor::float12_decode", _decode_fake, lib=LIBRARY)


def float12_matmul(
    x: Tensor, weight: Packed, bias: Tensor | None = None, finish: Finish = Finish.SUM
) -> Tensor:
    """Computes x [M, K] @ weight.T + bias [N]: what `finish` says.

    x is contiguous, fp32 (rounded to bf16) or bf16. On a CPU plain torch computes it.
    """
    y: Tensor = torch.ops.tersor.float12_matmul(
        x,
        weight.words,
        weight.bases,
        weight.offsets,
        weight.columns,
        weight.values,
        bias,
        finish,
    )
    return y


def float12_decode(weight: Packed, rows: Tensor | slice = slice(None)) -> Tensor:
    """The weight, or the rows that `rows` (int64 [R]) names, in bf16 [R, K], bit for bit."""
    decoded: Tensor = torch.ops.tersor.float12_decode(
        weight.words[rows],
        weight.bases[rows],
        weight.offsets[:-1][rows],
        weight.offsets[1:][rows],
        weight.columns,
        weight.values,
        weight.k,
    )
    return decoded
