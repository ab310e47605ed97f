"""Which sequences run: first come first served, within pages and batch size."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from tersor.runtime.engine.cache import PagedCache
from tersor.runtime.engine.sequence import Phase, Sequence


class Scheduler:
    """Waiting and running sequences and their pages. Not thread-safe; runs nothing itself.

    Every running sequence holds pages, every other none. When pages run out the youngest running
    sequence gives its own up and waits again, before all that never ran. It is recomputed the way
    it was computed: the prompt in the same chunks, the answered tokens one by one, since other
    shapes would round differently and might change the text.
    """

    def __init__(self, cache: PagedCache, *, max_batch_size: int, chunk_tokens: int) -> None:
        self._cache = cache
        self._max_batch_size = max_batch_size
        self._chunk_tokens = chunk_tokens
        self.waiting: deque[Sequence] = deque()  # oldest first
        self.running: list[Sequence] = []  # oldest first
        self._arrivals = 0
        self.waiting_prompt_tokens = 0  # of the queue; other threads may read it

    @property
    def busy(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.waiting or self.running)

    def add(self, sequence: Sequence) -> None:
        """Queues a new sequence, last."""
        sequence.arrival = self._arrivals
        self._arrivals += 1
        self.waiting.append(sequence)
        self.waiting_prompt_tokens += sequence.prompt_tokens

    def admit(self) -> list[Sequence]:
        """Moves sequences from the queue into the batch while both pages and places last."""
        admitted: list[Sequence] = []
        while self.waiting and len(self.running) < self._max_batch_size:
            sequence = self.waiting[0]
            tokens = len(sequence.tokens)
            # A page for each running sequence stays free, or the newcomer would soon be preempted.
            spare = self._cache.pool.free_pages - self._cache.pages_for(tokens)
            if self.running and spare < len(self.running):
                break
            table = self._cache.allocate(tokens)
            if table is None:
                break
            self.waiting.popleft()
            self.waiting_prompt_tokens -= sequence.prompt_tokens
            sequence.table = table
            sequence.phase = Phase.PREFILL
            sequence.computed = 0
            self.running.append(sequence)
            admitted.append(sequence)
        return admitted

    def next_chunks(self) -> list[tuple[Sequence, int]]:
        """Prefill passes of one step, at most `chunk_tokens` tokens in all.

        Chunks are cut at multiples of `chunk_tokens` of the prompt whatever else runs, so that
        they do not depend on the neighbours.
        """
        chunks: list[tuple[Sequence, int]] = []
        budget = self._chunk_tokens
        for sequence in self.running:
            if sequence.phase is not Phase.PREFILL:
                continue
            count = min(self._chunk_tokens, sequence.prompt_tokens - sequence.computed)
            if count > budget:
                break
            chunks.append((sequence, count))
            budget -= count
        return chunks

    def next_batch(self) -> tuple[list[Sequence], list[Sequence]]:
        """Sequences of one decode step, with pages for their next token, and those preempted."""
        preempted: list[Sequence] = []
        batch: list[Sequence] = []
        for sequence in tuple(self.running):
            if sequence.phase is not Phase.DECODE:
                continue
            while not self._extend(sequence):
                # Whoever it is, it is no older than `sequence`, so it is not in the batch yet.
                victim = self.running[-1]
                self._preempt(victim)
                preempted.append(victim)
                if victim is sequence:
                    break
            if sequence.phase is Phase.DECODE:
                batch.append(sequence)
        return batch, preempted

    def remove(self, sequence: Sequence) -> None:
        """Takes a sequence out, wherever it is, and frees its pages."""
        if sequence.phase is Phase.WAITING:
            self.waiting.remove(sequence)
            self.waiting_prompt_tokens -= sequence.prompt_tokens
        elif sequence.phase is not Phase.DONE:
            self.running.remove(sequence)
            self._free(sequence)
        sequence.phase = Phase.DONE

    def check_integrity(self) -> None:
        """Raises AssertionError unless pages and phases agree."""
        self._cache.pool.check_integrity()
        _expect(self.waiting, holds_pages=False, phases=(Phase.WAITING,))
        _expect(self.running, holds_pages=True, phases=(Phase.PREFILL, Phase.DECODE))
        held = sum(len(s.table.pages) for s in self.running if s.table is not None)
        if held != self._cache.pool.used:
            raise AssertionError(f"{self._cache.pool.used} pages used, {held} by running sequences")
        for group in (self.waiting, self.running):
            arrivals = [sequence.arrival for sequence in group]
            if arrivals != sorted(arrivals):
                raise AssertionError(f"sequences out of order: {arrivals}")

    def _extend(self, sequence: Sequence) -> bool:
        assert sequence.table is not None  # running sequences hold pages
        return self._cache.extend(sequence.table, sequence.computed + 1)

    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self._free(sequence)
        sequence.phase = Phase.WAITING
        sequence.computed = 0
        self.waiting.appendleft(sequence)
        self.waiting_prompt_tokens += sequence.prompt_tokens

    def _free(self, sequence: Sequence) -> None:
        assert sequence.table is not None  # running sequences hold pages
        self._cache.free(sequence.table)
        sequence.table = None


def _expect(group: Iterable[Sequence], *, holds_pages: bool, phases: tuple[Phase, ...]) -> None:
    for sequence in group:
        if sequence.phase not in phases or (sequence.table is not None) != holds_pages:
            raise AssertionError(f"{sequence.request_id} is in a wrong place: {sequence.phase}")
