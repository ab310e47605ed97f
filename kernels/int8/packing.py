"""How the codes of the `int8` layout lie in memory while resident, on every device."""

from __future__ import annotations

from torch import Tensor

from tersor.kernels.cpu import padded_columns

# torch's CPU kernel reads K in vectors of 16 without looking where a row ends; on a GPU rows of
# whole 32-byte sectors let every load be a vector.
K_MULTIPLE = 32
BK = 128  # columns of a step of the GPU kernel


def padded_k(k: int) -> int:
    """Columns of the packed codes of a weight with `k` columns."""
    return -(-k // K_MULTIPLE) * K_MULTIPLE


def pack(codes: Tensor) -> Tensor:
    """Packs codes int8 [N, K] to contiguous [N, padded_k(K)], zero columns at the end."""
    return padded_columns(codes, padded_k(codes.shape[1]))
