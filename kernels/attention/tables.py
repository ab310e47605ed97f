"""Where the spans of a pass lie, as tensors: made once per pass, read by every layer's kernels."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tersor.kernels.attention.config import most_segments, segment_bucket
from tersor.kernels.attention.spans import Span

# int32 of a span's record: first row in the pass, queries, context, where its pages begin, and what
# comes before it in its kernel: partial results (decode) or query tokens (prefill). One 32-byte
# sector; kernels/attention/triton.py names the fields.
FIELDS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Tables:
    """The index tables of one pass, on the device. Views of one buffer, copied there at once."""

    slots: Tensor  # int64 [T], cache slot of each token of the pass
    decode: Tensor  # int32 [spans of one token, FIELDS]
    prefill: Tensor  # int32 [the other spans, FIELDS]
    pages: Tensor  # int32, the pages of all spans
    partials: int  # partial results of all decoding spans, at most
    segments: int  # programs launched per decoding span and head
    prefill_tokens: int

    @classmethod
    def build(cls, spans: Sequence[Span], page_tokens: int, device: torch.device) -> Tables:
        """The tables of `spans`, whose tokens follow each other in the pass."""
        decode, prefill, pages = array("i"), array("i"), array("i")
        row = partials = longest = prefill_tokens = 0
        for span in spans:
            record = [row, span.queries, span.context, len(pages)]
            if span.queries == 1:
                decode.extend([*record, partials, 0, 0, 0])
                segments = most_segments(span.context)
                partials += segments
                longest = max(longest, segments)
            else:
                prefill.extend([*record, prefill_tokens, 0, 0, 0])
                prefill_tokens += span.queries
            row += span.queries
            pages.extend(span.pages[: -(-span.context // page_tokens)])
        # Every table begins at a multiple of 16 bytes: for those that do not, Triton compiles a
        # kernel of its own.
        wide = array("q", [*slots(spans, page_tokens), *[0] * (row % 2)])
        end = array("i", [0] * (len(pages) % 2))
        buffer = _sent(wide.tobytes() + (decode + prefill + pages + end).tobytes(), device)
        narrow = buffer[len(wide) :].view(torch.int32)
        ends = (len(decode), len(decode) + len(prefill), len(decode) + len(prefill) + len(pages))
        return cls(
            slots=buffer[:row],
            decode=narrow[: ends[0]].view(-1, FIELDS),
            prefill=narrow[ends[0] : ends[1]].view(-1, FIELDS),
            pages=narrow[ends[1] : ends[2]],
            partials=partials,
            segments=segment_bucket(longest) if longest else 0,
            prefill_tokens=prefill_tokens,
        )


def slots(spans: Sequence[Span], page_tokens: int) -> list[int]:
    """The cache slot of each token of the pass."""
    return [
        span.pages[token // page_tokens] * page_tokens + token % page_tokens
        for span in spans
        for token in range(span.start, span.context)
    ]


def _sent(data: bytes, device: torch.device) -> Tensor:
    """The bytes as int64 on `device`."""
    buffer = torch.frombuffer(bytearray(data), dtype=torch.int64)
    if device.type == "cpu":
        return buffer
    # From pinned memory, which torch keeps until the copy is done, the host need not wait for it.
    return buffer.pin_memory().to(device, non_blocking=True)
