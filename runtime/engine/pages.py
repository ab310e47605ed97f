"""The page numbers of the KV cache: who holds which, and which are free."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable


class PageTable:
    """The pages of one sequence, in the order of its tokens. Changed by its pool alone."""

    __slots__ = ("contiguous", "pages")

    def __init__(self) -> None:
        self.pages: list[int] = []
        self.contiguous = True  # consecutive numbers, ascending: attention reads them in place


class PagePool:
    """Numbers 0 … total-1, each free or held by exactly one table. Not thread-safe.

    Free pages are kept as extents, and a new table is placed inside the largest one with room on
    both sides, so that tables usually grow without being scattered: the CPU attention reads
    contiguous pages in place, two to three times as fast as scattered ones.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self._extents: list[tuple[int, int]] = [(0, total)] if total else []  # (first, end), sorted
        self._tables: set[PageTable] = set()
        self._used = 0

    @property
    def used(self) -> int:
        """Pages held by tables."""
        return self._used

    @property
    def free_pages(self) -> int:
        """Pages held by none."""
        return self.total - self._used

    def allocate(self, count: int) -> PageTable | None:
        """A new table of `count` pages; None if there are not as many."""
        if count > self.free_pages:
            return None
        table = PageTable()
        self._tables.add(table)
        self._take(table, count)
        return table

    def extend(self, table: PageTable, count: int = 1) -> bool:
        """Adds `count` pages to `table`; False, and nothing changed, if there are not as many."""
        if table not in self._tables:
            raise ValueError("the page table is not of this pool, or was freed before")
        if count > self.free_pages:
            return False
        self._take(table, count)
        return True

    def free(self, table: PageTable) -> None:
        """Takes all pages of `table` back."""
        if table not in self._tables:
            raise ValueError("the page table is not of this pool, or was freed before")
        self._tables.remove(table)
        self._used -= len(table.pages)
        for first, end in _runs(sorted(table.pages)):
            self._give(first, end)
        table.pages.clear()

    def check_integrity(self) -> None:
        """Raises AssertionError unless every page is free once or held once."""
        held = [page for table in self._tables for page in table.pages]
        spare = [page for first, end in self._extents for page in range(first, end)]
        if sorted(held + spare) != list(range(self.total)):
            raise AssertionError(
                f"{len(held)} pages held and {len(spare)} free are not the pool's {self.total}"
            )
        if len(held) != self._used:
            raise AssertionError(f"{len(held)} pages are held, {self._used} were counted")
        for (_, end), (first, _) in zip(self._extents, self._extents[1:], strict=False):
            if end >= first:
                raise AssertionError(f"free extents meet or overlap at page {first}")
        for table in self._tables:
            if table.contiguous != (len(_runs(table.pages)) <= 1):
                raise AssertionError("a table's contiguous flag is wrong")

    def _take(self, table: PageTable, count: int) -> None:
        while count:
            first, end = self._place(table, count)
            if table.pages and table.pages[-1] + 1 != first:
                table.contiguous = False
            table.pages.extend(range(first, end))
            self._used += end - first
            count -= end - first

    def _place(self, table: PageTable, count: int) -> tuple[int, int]:
        """Takes up to `count` consecutive pages from the extents, where they suit `table` best."""
        index = self._following(table)
        if index is not None:
            first, limit = self._extents[index]
        else:
            index = max(range(len(self._extents)), key=lambda i: _length(self._extents[i]))
            first, limit = self._extents[index]
            if first > 0 and limit - first > count:  # leave room to the table that ends at `first`
                first += (limit - first - count) // 2
        end = min(limit, first + count)
        before, after = (self._extents[index][0], first), (end, limit)
        self._extents[index : index + 1] = [extent for extent in (before, after) if _length(extent)]
        return first, end

    def _following(self, table: PageTable) -> int | None:
        """Index of the extent that begins where `table` ends."""
        if not table.pages:
            return None
        follower = table.pages[-1] + 1
        index = bisect_left(self._extents, (follower, 0))
        if index < len(self._extents) and self._extents[index][0] == follower:
            return index
        return None

    def _give(self, first: int, end: int) -> None:
        index = bisect_left(self._extents, (first, end))
        if index < len(self._extents) and self._extents[index][0] == end:
            end = self._extents.pop(index)[1]
        if index and self._extents[index - 1][1] == first:
            first = self._extents.pop(index - 1)[0]
        insort(self._extents, (first, end))


def _length(extent: tuple[int, int]) -> int:
    return extent[1] - extent[0]


def _runs(pages: Iterable[int]) -> list[tuple[int, int]]:
    """Runs (first, end) of consecutive numbers."""
    runs: list[tuple[int, int]] = []
    for page in pages:
        if runs and runs[-1][1] == page:
            runs[-1] = (runs[-1][0], page + 1)
        else:
            runs.append((page, page + 1))
    return runs
