"""From host memory to a device through a few page-locked bytes, without waiting for the link.

The link reads page-locked memory at its full speed and while the host goes on; pages that may move
are first copied by the driver, bit by bit. Locking all of a model's bytes would take memory from
everything else on the machine, so two pieces take turns: one is filled while the other is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

# At 50 GB/s a piece is on the link for 0.3 ms, a thousand times what starting a copy takes.
PIECE_BYTES = 16 << 20
# Of what `send` puts into one allocation: the widest vector load of a GPU.
ALIGNMENT = 16


class Staging:
    """Copies to one device, in the order of its current stream. For one thread.

    On a CPU, where only tests and Triton's interpreter want it, copies are plain.
    """

    def __init__(self, device: torch.device, piece_bytes: int = PIECE_BYTES) -> None:
        self.device = device
        self._piece_bytes = piece_bytes
        self._pieces: list[_Piece] = []
        self._turn = 0

    def copy(self, parts: Sequence[Tensor], out: Tensor) -> None:
        """Copies host tensors one after the other into `out`.

        Does not wait for the device, and no part is read any more when it returns.

        Args:
            parts: of any dtype.
            out: uint8 on the device, as long as the bytes of all parts.
        """
        at = 0
        for cut in _cuts(parts, self._piece_bytes):
            size = sum(map(len, cut))
            target = out[at : at + size]
            if self.device.type == "cuda":
                self._turn_of_next().send(cut, target)
            else:
                _fill(target, cut)
            at += size
        assert at == out.numel(), "`out` has another size than the parts"

    def send(self, joined: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        """Sends host tensors by one copy.

        Args:
            joined: for each result the tensors it is joined from, at least one, of one dtype.

        Returns:
            Tensors [elements], views of one allocation on the device.
        """
        parts: list[Tensor] = []
        ranges = []
        at = 0
        for each in joined:
            size = sum(part.nbytes for part in each)
            ranges.append(slice(at, at + size))
            padding = -size % ALIGNMENT
            parts += [*each, torch.zeros(padding, dtype=torch.uint8)]
            at += size + padding
        sent = torch.empty(at, dtype=torch.uint8, device=self.device)
        self.copy(parts, sent)
        return [sent[place].view(each[0].dtype) for place, each in zip(ranges, joined, strict=True)]

    def wait(self) -> None:
        """Waits for all that the device has been given, copies and kernels."""
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()

    def _turn_of_next(self) -> _Piece:
        if len(self._pieces) < 2:
            self._pieces.append(_Piece(self._piece_bytes))
        self._turn = (self._turn + 1) % len(self._pieces)
        return self._pieces[self._turn]


class _Piece:
    """Page-locked bytes, and the copy that reads them."""

    def __init__(self, size: int) -> None:
        self._memory = torch.empty(size, dtype=torch.uint8, pin_memory=True)
        self._read = torch.cuda.Event()  # one that was not recorded is over

    def send(self, parts: Sequence[Tensor], out: Tensor) -> None:
        self._read.synchronize()
        filled = self._memory[: out.numel()]
        _fill(filled, parts)
        out.copy_(filled, non_blocking=True)
        self._read.record(torch.cuda.current_stream(out.device))


def _fill(out: Tensor, parts: Sequence[Tensor]) -> None:
    at = 0
    for part in parts:
        out[at : at + len(part)].copy_(part)
        at += len(part)


def _cuts(parts: Sequence[Tensor], size: int) -> Iterator[list[Tensor]]:
    """The parts as bytes, cut so that each list but the last holds `size` of them."""
    cut: list[Tensor] = []
    left = size
    for part in parts:
        if part.numel() == 0:  # torch does not view every such tensor as bytes
            continue
        data = part.contiguous().view(-1).view(torch.uint8)
        while len(data) > 0:
            cut.append(data[:left])
            data = data[left:]
            left -= len(cut[-1])
            if left == 0:
                yield cut
                cut, left = [], size
    if cut:
        yield cut
