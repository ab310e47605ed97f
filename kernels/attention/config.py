"""How paged attention is cut into programs. Unmeasured on a GPU: chosen from ahead-of-time builds.

Nothing is searched in a request. The launch depends on the batch and, in powers of two, on its
longest context, so that CUDA graphs exist in few sizes; the cut of a sequence depends on its own
context alone, so that its result has the same bits whoever shares the pass.
"""

from __future__ import annotations

from dataclasses import dataclass

MAX_HEAD_DIM = 256
MAX_SHARE = 64  # query heads of a kv head
# Elements of the query heads of a kv head, padded, that a decoding program makes from the parts of
# the qkv product: 16 of a thread, whose eight parts each fit into its registers. 2048 spill.
MAX_MADE = 1024
# Of such a program: five on an SM, as many as shared memory holds. Left to itself ptxas takes up to
# 222 on sm_90, where 148 cost 0.03 instructions an element.
MADE_REGISTERS = 200
# Tokens of a segment, at least: two or four tiles. Partial results of a segment are then at most
# an eighth of the keys and values read (four heads of 128 over bf16: 1/32), and stay in the L2.
MIN_SEGMENT_TOKENS = 128
# Segments of a sequence, at most. Eight kv heads make 512 programs of a long sequence, about four
# on each of the 132 SMs of an H100 or H200.
MAX_SEGMENTS = 64
# Two warps: with four, more than a third of the instructions are their talking to each other.
DECODE_WARPS = 2
# The page numbers of a tile are loaded first, so these hold two tiles of keys and values in flight.
DECODE_STAGES = 5
STEP_BYTES = 8192  # of keys in a decode step, and as many of values
PREFILL_ROWS = 64  # query heads times tokens in a tile: the wide side of Hopper's tensor core
PREFILL_STAGES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """Sizes of the tiles of one kernel."""

    rows: int  # query heads times tokens; a power of two
    columns: int  # padded head size; a power of two
    tokens: int  # keys and values in one step
    warps: int


def decode_tile(share: int, head_dim: int, itemsize: int) -> Tile:
    """The tile in which all `share` query heads of a kv head are rows, at least one m16.

    `itemsize`: bytes of a key's element.
    """
    columns = columns_of(head_dim, itemsize)
    return Tile(
        rows=max(16, padded(share)),
        columns=columns,
        # Beyond 128 columns the accumulator leaves registers for 16 tokens.
        tokens=16 if columns > 128 else max(16, min(128, STEP_BYTES // (columns * itemsize))),
        warps=DECODE_WARPS,
    )


def prefill_tile(head_dim: int, itemsize: int) -> Tile:
    """The tile in which tokens times heads of a kv head are rows."""
    columns = columns_of(head_dim, itemsize)
    # 64 tokens of 128 columns spill registers on sm_80; so do four warps with 256 columns.
    return Tile(rows=PREFILL_ROWS, columns=columns, tokens=32, warps=8 if columns > 128 else 4)


def padded(size: int, *, least: int = 16) -> int:
    """`size` rounded up to a power of two that tensor cores take."""
    return max(least, 1 << (size - 1).bit_length())


def columns_of(head_dim: int, itemsize: int) -> int:
    """Columns of a tile for heads of `head_dim`; codes (itemsize 1) are multiplied in halves."""
    return padded(head_dim, least=32 if itemsize == 1 else 16)


def most_segments(tokens: int) -> int:
    """A bound on the segments of `tokens` tokens, which grows with them."""
    return min(MAX_SEGMENTS, -(-tokens // MIN_SEGMENT_TOKENS))


def segment_bucket(segments: int) -> int:
    """Programs launched per sequence and head where the longest has `segments`."""
    return 1 << (segments - 1).bit_length()
