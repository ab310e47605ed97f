"""How a bf16 matrix lies in memory in 12 bits a weight, on a GPU.

Of a weight `s eeeeeeee mmmmmmm`, sign and mantissa stay a byte `s mmmmmmm`. The exponent becomes a
code of four bits: 1..15 is the row's base plus the code. Code 0 is a zero, whose sign is in the
byte, or, with a byte of 0, an *escape*: a weight whose exponent is not among the fifteen. Escapes
stand in lists by rows, as in a sparse matrix (CSR), and elsewhere count as +0.

Words are 32 bits. Columns go in blocks of 8 * BW, and a block has three kinds of words, BW of each:
codes, bytes of its first half, bytes of its second half. Nibble (byte) j of word i is a column of
slice j, BW columns wide:

    codes   word i    bits  0-3: column i      4-7: column BW+i    ...  28-31: column 7*BW+i
    bytes   word i    bits  0-7: column i     8-15: column BW+i    ...  24-31: column 3*BW+i
    bytes   word i    bits  0-7: column 4*BW+i                     ...  24-31: column 7*BW+i

So word i of all three belong to the same columns, a slice of BW neighbouring words is a contiguous
slice of K, and a row is one stream of memory.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from tersor.kernels.checks import check_tensor
from tersor.kernels.interleave import interleave

BW = 16
BLOCK_COLUMNS = 8 * BW
BLOCK_WORDS = 3 * BW
CODES = 15  # exponents of a row that have a code
# Beyond this share of escapes a weight is held dense. An escape costs 470 instructions of one lane,
# any weight 3.6: at 1/128 that is 7.3 a weight. An H200 has time for 10.3 while it reads 12 bits.
MAX_ESCAPE_SHARE = 1 / 128
# Elements packed at a time: temporaries of some 30 bytes each.
ELEMENTS_TO_PACK = 1 << 22


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """A bf16 weight [N, K] in 12 bits; E of its elements are escapes."""

    k: int
    words: Tensor  # int32 [N, W], W = BLOCK_WORDS * ceil(K / BLOCK_COLUMNS), zero beyond K
    bases: Tensor  # uint8 [N], at most 239: a code's exponent less the code
    offsets: Tensor  # int32 [N + 1]: row r has the escapes offsets[r]..offsets[r + 1]
    columns: Tensor  # int32 [E], ascending within a row
    values: Tensor  # bf16 [E]


def pack(values: Tensor, max_share: float = MAX_ESCAPE_SHARE) -> Packed | None:
    """Packs bf16 [N, K] on its device; None if more than `max_share` of the weights are escapes.

    Takes temporary memory for ELEMENTS_TO_PACK elements or a row. Waits for the device.

    Raises:
        LayoutError: `values` is not a bf16 matrix.
    """
    check_tensor("values", values, shape=(None, None), dtypes=(torch.bfloat16,), contiguous=False)
    parts = values.split(_rows_at_once(values.shape[1]))
    return _packed((_exponents_and_mantissas(part) for part in parts), values, max_share)


def pack_parts(
    exponents: Tensor, mantissas: Tensor, max_share: float = MAX_ESCAPE_SHARE
) -> Packed | None:
    """As `pack`, of a weight whose bytes come apart: for a load that decodes them on the device.

    Args:
        exponents: uint8 [N, K].
        mantissas: uint8 [N, K], `mmmmmmms`: the sign last, as the bundle's filters of floats leave
            it.
        max_share: as for `pack`.

    Raises:
        LayoutError: the parts are not two matrices of bytes of one shape, on one device.
    """
    _check_parts(exponents, mantissas)
    rows = _rows_at_once(exponents.shape[1])
    parts = zip(exponents.split(rows), mantissas.split(rows), strict=True)
    return _packed(parts, exponents, max_share)


def join_parts(exponents: Tensor, mantissas: Tensor) -> Tensor:
    """The weight bf16 [N, K] whose parts `pack_parts` takes; raises LayoutError like it."""
    _check_parts(exponents, mantissas)
    return _joined(exponents, _sign_first(mantissas))


def packed_width(k: int) -> int:
    """W: words of a row of k columns."""
    return -(-k // BLOCK_COLUMNS) * BLOCK_WORDS


def interleaved(symbols: Tensor, bits: int) -> Tensor:
    """Packs uint8 [N, C] of `bits` bits to int32 [N, C * bits / 32]; C fills whole blocks."""
    if symbols.device.type != "cpu":
        return interleave(symbols.contiguous(), bits, BW)
    n = symbols.shape[0]
    slices = symbols.view(n, -1, 32 // bits, BW).to(torch.int32)
    words = torch.zeros_like(slices[:, :, 0])
    for j in range(32 // bits):
        words |= slices[:, :, j] << (bits * j)
    return words.view(n, -1)


def _packed(
    parts: Iterable[tuple[Tensor, Tensor]], like: Tensor, max_share: float
) -> Packed | None:
    """Packs blocks of rows of a weight that has the shape and the device of `like`."""
    n, k = like.shape
    words = torch.empty(n, packed_width(k), dtype=torch.int32, device=like.device)
    bases = torch.empty(n, dtype=torch.uint8, device=like.device)
    offsets = torch.zeros(n + 1, dtype=torch.int32, device=like.device)
    columns, values = [], []
    row = escapes = 0
    for exponents, mantissas in parts:
        block = slice(row, row + exponents.shape[0])
        row = block.stop
        base = _best_bases(exponents)
        codes = exponents - base[:, None]  # modulo 256: what is below the base ends up above 15
        codes *= codes <= CODES
        signs = _sign_first(mantissas)
        escaped = (codes == 0) & ((exponents | (mantissas >> 1)) != 0)
        columns.append(escaped.nonzero()[:, 1].to(torch.int32))
        values.append(_joined(exponents[escaped], signs[escaped]))
        escapes += columns[-1].numel()
        if escapes > max_share * n * k:
            return None
        signs.masked_fill_(escaped, 0)
        words[block] = _words(codes, signs)
        bases[block] = base
        offsets[block.start + 1 : block.stop + 1] = escaped.sum(1)
    return Packed(
        k=k,
        words=words,
        bases=bases,
        offsets=offsets.cumsum_(0),
        columns=torch.cat(columns),
        values=torch.cat(values),
    )


def _words(codes: Tensor, signs: Tensor) -> Tensor:
    """Joins codes and bytes [R, K] to the words of these rows."""
    n, k = codes.shape
    missing = (0, -k % BLOCK_COLUMNS)
    nibbles = interleaved(F.pad(codes, missing), 4).view(n, -1, 1, BW)
    bytes_ = interleaved(F.pad(signs, missing), 8).view(n, -1, 2, BW)
    return torch.cat((nibbles, bytes_), 2).view(n, -1)


def _best_bases(exponents: Tensor) -> Tensor:
    """The base of each row that leaves the fewest escapes: uint8 [R] 0..239 of uint8 [R, K].

    Exponent 0 (zeros, subnormals) and 255 (infinities, NaN) never have a code.
    """
    counts = torch.zeros(exponents.shape[0], 256, dtype=torch.int32, device=exponents.device)
    one = torch.ones((), dtype=torch.int32, device=exponents.device)
    counts.scatter_add_(1, exponents.to(torch.int64), one.expand(exponents.shape))
    up_to = counts.cumsum(1, dtype=torch.int32)
    return (up_to[:, CODES:255] - up_to[:, : 255 - CODES]).argmax(1).to(torch.uint8)


def _exponents_and_mantissas(values: Tensor) -> tuple[Tensor, Tensor]:
    bits = values.view(torch.int16)
    exponents = ((bits >> 7) & 255).to(torch.uint8)
    return exponents, (((bits << 1) & 255) | ((bits >> 15) & 1)).to(torch.uint8)


def _sign_first(mantissas: Tensor) -> Tensor:
    return (mantissas >> 1) | (mantissas << 7)


def _joined(exponents: Tensor, signs: Tensor) -> Tensor:
    """bf16 from exponents and bytes `smmmmmmm`."""
    high = signs.to(torch.int16)
    bits = ((high & 128) << 8) | (exponents.to(torch.int16) << 7) | (high & 127)
    return bits.view(torch.bfloat16)


def _check_parts(exponents: Tensor, mantissas: Tensor) -> None:
    byte = (torch.uint8,)
    check_tensor("exponents", exponents, shape=(None, None), dtypes=byte, contiguous=False)
    shape, device = (exponents.shape[0], exponents.shape[1]), exponents.device
    check_tensor("mantissas", mantissas, shape=shape, dtypes=byte, device=device, contiguous=False)


def _rows_at_once(k: int) -> int:
    return max(1, ELEMENTS_TO_PACK // max(1, k))
