"""Outliers in slices of 16 rows: the form in which a kernel on a GPU multiplies by them.

A slice holds as many entries for each of its rows as the row with most needs, in whole chunks;
entry e of the slice's row r is number start + 16 e + r, so that neighbouring lanes, which take
neighbouring rows, read neighbouring entries. An entry is 32 bits: the bf16 value above the column.
Rows with fewer outliers are filled up with entries of 0, which is value 0 in column 0.

Nothing here depends on how a kernel is cut: any lane finds any row's entries.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from tersor.kernels.errors import LayoutError
from tersor.kernels.outliers.planes import Outliers
from tersor.kernels.outliers.rows import add_rows

SLICE_ROWS = 16
CHUNK = 8  # entries of a row that a lane has under way at a time
MAX_COLUMNS = 1 << 16
# Tokens of a row of `token_columns`: those of a program, in a 32-byte sector.
TOKENS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class SlicedOutliers:
    """The outliers of a weight of at most MAX_COLUMNS columns. Immutable."""

    entries: Tensor  # int32 [E]
    starts: Tensor  # int32 [ceil(n / SLICE_ROWS) + 1]: where each slice's entries begin
    longest: int  # entries of a row in the slice that has most

    @classmethod
    def pack(cls, outliers: Outliers) -> SlicedOutliers:
        """Packs on the device where the outliers are.

        Raises:
            LayoutError: a few rows have so many outliers that slices take more than 2^31 entries.
        """
        row, column = outliers.positions // outliers.k, outliers.positions % outliers.k
        count = -(-outliers.n // SLICE_ROWS)
        counts = torch.bincount(row, minlength=count * SLICE_ROWS)
        widths = counts.view(count, SLICE_ROWS).amax(1).add(CHUNK - 1) // CHUNK * CHUNK
        starts = F.pad((widths * SLICE_ROWS).cumsum(0), (1, 0))
        size = int(starts[-1])
        if size >= 1 << 31:
            raise LayoutError(f"outliers take {size} entries in slices, expected less than 2^31")
        number = torch.arange(row.numel(), device=row.device) - (counts.cumsum(0) - counts)[row]
        entries = torch.zeros(size, dtype=torch.int32, device=row.device)
        high = outliers.values.contiguous().view(torch.int16).to(torch.int32) << 16
        at = starts[row // SLICE_ROWS] + number * SLICE_ROWS + row % SLICE_ROWS
        entries[at] = high | column.to(torch.int32)
        return cls(entries=entries, starts=starts.to(torch.int32), longest=int(widths.max()))

    def lookup(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """As `RowOutliers.lookup`."""
        slices = rows // SLICE_ROWS
        starts = self.starts.to(torch.int64)
        number = torch.arange(self.longest, device=rows.device)
        at = (starts[slices] + rows % SLICE_ROWS)[:, None] + number * SLICE_ROWS
        inside = at < starts[slices + 1][:, None]
        entries = torch.where(inside, self.entries[torch.where(inside, at, 0)], 0)
        values = (entries & -65536).view(torch.float32)
        return (entries & 0xFFFF).to(torch.int64), values

    @property
    def nbytes(self) -> int:
        """Bytes resident."""
        return self.entries.nbytes + self.starts.nbytes


def token_columns(x: Tensor) -> Tensor:
    """X bf16 [M, K] transposed, so that a column's tokens are one load: [K, W].

    W is 1 for one token, else M padded to whole TOKENS; what the padding holds is not defined, and
    reaches no result.
    """
    m, k = x.shape
    if m == 1:
        return x.view(k, 1)
    columns = x.new_empty(k, -(-m // TOKENS) * TOKENS)
    columns[:, :m] = x.T
    return columns


def sliced(entries: Tensor | None, starts: Tensor | None, longest: int) -> SlicedOutliers | None:
    """The outliers of an operator's arguments: None where there are no entries."""
    if entries is None or starts is None:
        return None
    return SlicedOutliers(entries=entries, starts=starts, longest=longest)


def defined_product(
    x: Tensor, weight: Tensor, outliers: SlicedOutliers | None, bias: Tensor | None
) -> Tensor:
    """What an operator of words computes, in plain torch: its implementation on a CPU.

    x [M, K] is rounded to bf16, weight float32 [N, K] gets the outliers added in place, bias is
    [N] or None; [M, N] in x.dtype.
    """
    if outliers is not None:
        add_rows(weight, outliers.lookup(torch.arange(weight.shape[0])))
    y = x.to(torch.bfloat16).to(torch.float32) @ weight.T
    return (y if bias is None else y + bias.to(torch.float32)).to(x.dtype)
