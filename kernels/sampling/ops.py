"""`tersor::sample_rows`: the next token of every row, one launch on a GPU."""

from __future__ import annotations

import torch
from torch import Tensor

from tersor.kernels.sampling import reference

LIBRARY = torch.library.Library("tersor", "FRAGMENT")
LIBRARY.define(
    "sample_rows(Tensor logits, Tensor temperature, Tensor top_k, Tensor top_p, Tensor min_p, "
    "Tensor uniform) -> Tensor"
)
LIBRARY.impl("sample_rows", reference.sample_rows, "CPU")


@torch.library.impl(LIBRARY, "sample_rows", "CUDA")
def _sample_rows_cuda(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    uniform: Tensor,
) -> Tensor:
    from tersor.kernels.sampling import triton  # imports triton, which a CPU need not have

    return triton.sample_rows(logits, temperature, top_k, top_p, min_p, uniform)


def _sample_rows_fake(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    uniform: Tensor,
) -> Tensor:
    del temperature, top_k, top_p, min_p, uniform  # the shape does not depend on them
    return logits.new_empty(logits.shape[0], dtype=torch.int64)


torch.library.register_fake("tersor::sample_rows", _sample_rows_fake, lib=LIBRARY)


def sample_rows(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    uniform: Tensor,
) -> Tensor:
    """Chooses one token of each row; a row's token does not depend on the others.

    Temperature comes first, then min-p (relative to the likeliest token), then top-k (exactly k,
    ties by lower id), then top-p (the fewest tokens, likeliest first, that reach the mass, of what
    top-k left). The draw inverts the cumulative distribution of what is left, in the order of ids.

    Args:
        logits: float32 [R, vocab_size], contiguous.
        temperature: float32 [R]; 0 is greedy, with ties by lower id.
        top_k: int32 [R], 0 for no limit.
        top_p: float32 [R], 1 for no limit. The likeliest token always stays.
        min_p: float32 [R], 0 for no limit.
        uniform: float32 [R], in [0, 1).

    Returns:
        int64 [R]; -1 for a row with a NaN or without a finite maximum.

    Raises:
        LayoutError: on a GPU, an operand has another shape, dtype or device.
    """
    tokens: Tensor = torch.ops.tersor.sample_rows(logits, temperature, top_k, top_p, min_p, uniform)
    return tokens
