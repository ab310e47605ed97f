"""Copies by pieces, on the host: what is sent must not depend on where pieces end."""

from __future__ import annotations

import pytest
import torch

from tersor.kernels.staging import ALIGNMENT, Staging

HOST = torch.device("cpu")


@pytest.mark.parametrize("piece", [1, 7, 16, 1000])
def test_parts_arrive_one_after_the_other(piece: int) -> None:
    parts = [
        torch.arange(24, dtype=torch.uint8),
        torch.empty(0, dtype=torch.uint16),
        torch.arange(15, dtype=torch.int64).view(3, 5),
        torch.arange(12, dtype=torch.int32)[::2],
    ]
    out = torch.empty(24 + 120 + 24, dtype=torch.uint8)
    Staging(HOST, piece).copy(parts, out)
    assert torch.equal(out[:24], parts[0])
    assert torch.equal(out[24:144].view(torch.int64), torch.arange(15))
    assert torch.equal(out[144:].view(torch.int32), torch.arange(0, 12, 2, dtype=torch.int32))


def test_tensors_are_sent_at_aligned_places() -> None:
    first = [torch.arange(3, dtype=torch.uint8), torch.arange(2, dtype=torch.uint8)]
    second = [torch.arange(4, dtype=torch.int64)]
    third = [torch.empty(0, dtype=torch.uint16)]
    sent = Staging(HOST).send([first, second, third])
    assert [each.tolist() for each in sent] == [[0, 1, 2, 0, 1], [0, 1, 2, 3], []]
    assert [each.dtype for each in sent] == [torch.uint8, torch.int64, torch.uint16]
    starts = [each.data_ptr() - sent[0].data_ptr() for each in sent[:2]]
    assert [start % ALIGNMENT for start in starts] == [0, 0]
