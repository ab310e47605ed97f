"""The page pool: pairs of verbs, no page twice, none lost, few scattered."""

from __future__ import annotations

import random

import pytest

from tersor.runtime.engine.pages import PagePool, PageTable


def test_allocate_extend_free() -> None:
    pool = PagePool(8)
    first = pool.allocate(3)
    assert first is not None
    assert (first.pages, first.contiguous, pool.used, pool.free_pages) == ([0, 1, 2], True, 3, 5)
    assert pool.extend(first)
    assert first.pages == [0, 1, 2, 3]
    second = pool.allocate(4)
    assert second is not None
    assert sorted(first.pages + second.pages) == list(range(8))
    assert pool.allocate(1) is None
    assert not pool.extend(first)
    assert first.pages == [0, 1, 2, 3]
    pool.free(first)
    assert (pool.used, first.pages) == (4, [])
    pool.free(second)
    assert pool.used == 0
    pool.check_integrity()


def test_a_table_is_freed_once_and_by_its_own_pool() -> None:
    pool, other = PagePool(4), PagePool(4)
    table = pool.allocate(2)
    assert table is not None
    with pytest.raises(ValueError, match="not of this pool"):
        other.free(table)
    with pytest.raises(ValueError, match="not of this pool"):
        other.extend(table)
    pool.free(table)
    with pytest.raises(ValueError, match="freed before"):
        pool.free(table)


def test_scattered_pages_are_used_before_refusing() -> None:
    pool = PagePool(9)
    tables = [pool.allocate(1) for _ in range(9)]
    by_page = {table.pages[0]: table for table in tables if table is not None}
    for page in range(0, 9, 2):
        pool.free(by_page[page])
    table = pool.allocate(5)
    assert table is not None
    assert sorted(table.pages) == [0, 2, 4, 6, 8]
    assert not table.contiguous
    pool.check_integrity()


def test_tables_that_grow_together_stay_contiguous() -> None:
    """32 answers of 300 tokens in a pool with twice the room."""
    pool = PagePool(1280)
    tables = [pool.allocate(2) for _ in range(32)]
    for _ in range(18):
        for table in tables:
            assert table is not None
            assert pool.extend(table)
    assert all(table is not None and table.contiguous for table in tables)
    pool.check_integrity()


def test_integrity_notices_what_is_wrong() -> None:
    pool = PagePool(6)
    table = pool.allocate(2)
    assert table is not None
    table.pages.append(5)  # a page that is free
    with pytest.raises(AssertionError, match="3 pages held and 4 free"):
        pool.check_integrity()
    table.pages.pop()
    table.contiguous = False
    with pytest.raises(AssertionError, match="contiguous"):
        pool.check_integrity()


@pytest.mark.parametrize("seed", range(5))
def test_random_use_never_loses_a_page(seed: int) -> None:
    rng = random.Random(seed)
    pool = PagePool(40)
    tables: list[PageTable] = []
    for _ in range(400):
        action = rng.random()
        if action < 0.4:
            count = rng.randint(1, 7)
            room = pool.free_pages >= count
            table = pool.allocate(count)
            assert (table is not None) == room
            if table is not None:
                tables.append(table)
        elif action < 0.75 and tables:
            room = pool.free_pages >= 1
            assert pool.extend(rng.choice(tables)) == room
        elif tables:
            pool.free(tables.pop(rng.randrange(len(tables))))
        pool.check_integrity()
        assert pool.used == sum(len(table.pages) for table in tables)
    for table in tables:
        pool.free(table)
    assert pool.used == 0
    pool.check_integrity()
