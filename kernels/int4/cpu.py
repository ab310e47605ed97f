"""CPU path of the `int4` layout: torch's int4 tiles.

A tile holds the nibbles of `tile_rows()` weight rows (64 with AVX-512, 32 with AVX2): for each
column k, byte d is row d in the low half and row d + tile_rows/2 in the high half, so that one load
gives a vector of rows. torch does not document this order; `tile_rows` probes it once and the form
is not offered where it differs. Scales and offsets are pairs (s, (8 - z) * s) in bf16,
w = (code - 8) * s + offset.

Up to `packed_max_rows` (crossover.py) rows torch's packed kernel reads the tiles; each row's result
has the same bits whatever the batch. Above it tiles are decoded once per call, a few at a time, and
multiplied in fp32 (bf16 where the CPU has it).
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from tersor.kernels.cpu import finished, gemm_dtype, padded_columns
from tersor.kernels.crossover import Path, path_of

OP_GROUPS = (256, 128, 64, 32)  # what the packed kernel takes
TILES_AT_A_TIME = 4  # 4 x 64 rows x 4096 columns decoded to fp32 are 4 MiB, in cache for the matmul


@cache
def tile_rows() -> int | None:
    """Weight rows in a tile of this machine's torch; None if its order of nibbles is another."""
    return next((rows for rows in (64, 32, 16) if _has_tiles_of(rows)), None)


def _has_tiles_of(rows: int) -> bool:
    n, k = 2 * rows, 32
    index = torch.arange(n * k, dtype=torch.int32).view(n, k)
    source = torch.zeros(n // rows, k, rows, dtype=torch.int32)
    for shift in range(0, 12, 4):  # 12 bits number 2 x 64 x 32 weights
        tiles = convert((index >> shift) & 15).view(n // rows, k, rows // 2)
        source |= torch.cat((tiles & 15, tiles >> 4), dim=2).to(torch.int32) << shift
    return torch.equal(source, index.view(n // rows, rows, k).transpose(1, 2))


def convert(codes: Tensor) -> Tensor:
    """Packs codes int32 [N, K] to tiles uint8 [N, K/2]."""
    tiles: Tensor = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)  # noqa: SLF001
    return tiles


def op_group(group: int, k: int) -> int | None:
    """The packed kernel's group size for ours, or None: a longer group repeats its scale."""
    length = group if group < k else -(-k // 32) * 32
    return next((size for size in OP_GROUPS if length % size == 0), None)


def matmul(
    x: Tensor, tiles: Tensor, scale_offset: Tensor, n: int, group: int, bias: Tensor | None
) -> Tensor:
    """Multiplies x [M, K] fp32 or bf16 by the weight of a TilesForm -> [M, n] in x.dtype."""
    x = padded_columns(x, tiles.shape[1] * 2)
    if path_of("int4", x.shape[0]) is Path.DECODED:
        y = _decoded_matmul(x, tiles, scale_offset)[:, :n]
    else:
        packed = torch.ops.aten._weight_int4pack_mm_for_cpu  # noqa: SLF001
        y = packed(x.to(torch.bfloat16), tiles, group, scale_offset)[:, :n]
    return finished(y, bias, x.dtype).contiguous()


def _decoded_matmul(x: Tensor, tiles: Tensor, scale_offset: Tensor) -> Tensor:
    dtype = gemm_dtype(x)
    wide_x = x.to(dtype)
    tiles, pairs = by_tile(tiles, scale_offset)
    count, _, half = tiles.shape
    y = torch.empty(x.shape[0], count, 2 * half, dtype=dtype)
    for start in range(0, count, TILES_AT_A_TIME):
        block = slice(start, start + TILES_AT_A_TIME)
        weight = decode_tiles(tiles[block], pairs[block], dtype)  # [b, Kp, rows]
        y[:, block] = (wide_x @ weight).transpose(0, 1)  # [b, M, rows]
    return y.view(x.shape[0], -1)


def by_tile(tiles: Tensor, scale_offset: Tensor) -> tuple[Tensor, Tensor]:
    """Views by tile: bytes [tiles, Kp, rows/2], pairs [tiles, Kp/group, rows, 2]."""
    rows = tile_rows()
    assert rows is not None, "tiles are only packed where their order is known"
    groups, padded_n, _ = scale_offset.shape
    pairs = scale_offset.view(groups, padded_n // rows, rows, 2).transpose(0, 1)
    return tiles.view(padded_n // rows, -1, rows // 2), pairs


def decode_tiles(tiles: Tensor, pairs: Tensor, dtype: torch.dtype) -> Tensor:
    """Decodes tiles [b, Kp, rows/2] with pairs [b, Kp/group, rows, 2] to weights [b, Kp, rows]."""
    count, padded_k, half = tiles.shape
    groups = pairs.shape[1]
    weights = torch.empty(count, padded_k, 2 * half)
    weights[:, :, :half] = tiles & 15
    weights[:, :, half:] = tiles >> 4
    scales = pairs[..., 0].to(torch.float32)  # [b, groups, rows]
    offsets = torch.addcmul(pairs[..., 1].to(torch.float32), scales, torch.tensor(-8.0))
    grouped = weights.view(count, groups, padded_k // groups, 2 * half)
    torch.addcmul(offsets[:, :, None], grouped, scales[:, :, None], out=grouped)
    return weights.to(dtype)
