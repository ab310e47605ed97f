"""rANS: a static table, 32 interleaved lanes, within 0.3 % of the entropy of its tables.

Asymmetric numeral systems in their range variant (Duda, arXiv 1311.2540, section 2.3) with 32-bit
states and 16-bit words; the lanes share one stream of words (Giesen, arXiv 1402.3392), which a warp
can follow as well as a scalar core. `docs/format.md` has the bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from tersor.bundle.codecs.base import Codec, Draft, Encoder, StreamShape
from tersor.bundle.codecs.entropy.layout import (
    LANES,
    ChunkHeader,
    num_blocks,
    padded,
    symbols_of,
)
from tersor.bundle.codecs.entropy.patches import take_out
from tersor.bundle.codecs.entropy.rans_chunk import RansChunk
from tersor.bundle.codecs.entropy.rans_model import pack_classes
from tersor.bundle.dtypes import AnyArray, ByteArray

if TYPE_CHECKING:
    from tersor.bundle.codecs.entropy.rans_plan import Plan

# What decoding slows down to where columns have classes: each symbol looks its table up.
COLUMN_CLASSES_MB_PER_SECOND = 300


class RansCodec(Codec):
    """Blocks of 65536 symbols that decode independently, on a CPU or a GPU."""

    name = "rans"
    # A block of 65536 two-byte symbols that are all alike still has 132 bytes of states and length.
    max_ratio = 1 << 10
    decode_mb_per_second = 600
    drafts = True

    @property
    def encoders(self) -> Sequence[Encoder]:
        return (lambda data, shape, table: self.draft(data, shape, table).finish(),)

    def learn(self, samples: Sequence[ByteArray], shape: StreamShape) -> ByteArray | None:
        from tersor.bundle.codecs.entropy.rans_plan import learn_model

        symbols = np.concatenate([symbols_of(data, shape.symbol_bytes) for data in samples])
        return np.frombuffer(learn_model(symbols, shape).pack(), np.uint8)

    def draft(self, data: ByteArray, shape: StreamShape, table: ByteArray | None) -> Draft:
        from tersor.bundle.codecs.entropy.rans_plan import plan_chunk

        symbols = symbols_of(data, shape.symbol_bytes)
        plan = plan_chunk(symbols, shape, table)
        return Draft(stored_bytes=plan.stored_bytes, finish=partial(_encode, symbols, plan))

    def decode(
        self, stored: ByteArray, raw_bytes: int, table: ByteArray | None = None
    ) -> ByteArray:
        chunk = RansChunk(stored, raw_bytes, table)
        out = np.empty(raw_bytes, np.uint8)
        chunk.decode_into(out)
        return out

    def decode_into(
        self, stored: ByteArray, out: ByteArray, table: ByteArray | None = None
    ) -> None:
        RansChunk(stored, out.size, table).decode_into(out)


def _encode(symbols: AnyArray, plan: Plan) -> bytes:
    from tersor.bundle.codecs.entropy.rans_compiled import encode_blocks

    model = plan.model
    tables = plan.tables
    codes = model.codes()
    coded, positions, values = symbols, np.empty(0, np.int64), symbols[:0]
    if plan.patches:
        coded, positions, values = take_out(
            symbols, tables, codes >> 16, (codes >> 16).argmax(axis=1)
        )
    blocks = num_blocks(symbols.size)
    ends = np.empty(blocks, np.uint32)
    states = np.empty((blocks, LANES), np.uint32)
    words = np.empty(symbols.size, np.uint16)
    count = encode_blocks(
        coded, tables, codes.reshape(-1), model.alphabet, model.precision, ends, states, words
    )
    header = ChunkHeader(
        symbol_bytes=model.symbol_bytes,
        row_symbols=plan.row_symbols,
        model_bytes=len(plan.inline),
        patches=positions.size,
    )
    return b"".join(
        [
            header.pack(),
            plan.inline,
            padded(pack_classes(plan.row_class, model.row_classes)),
            ends.astype("<u4").tobytes(),
            states.astype("<u4").tobytes(),
            padded(words[:count].astype("<u2").tobytes()),
            positions.astype("<u4").tobytes(),
            padded(values.astype(f"<u{model.symbol_bytes}").tobytes()),
        ]
    )


__all__ = ["RansCodec"]
