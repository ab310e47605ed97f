"""Mutations of entropy-coded chunks whose sections keep fitting each other.

Of random bytes nearly all fail at the first section that does not fit; behind these checks, sizes
and numbers are wrong in ways that only the decoders can see. `docs/format.md` has the sections.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from random import Random
from typing import Self

from fuzz_bytes import damage

_HEADER = struct.Struct("<BBBBIII")
_BLOCK = 1 << 16
_WIDTHS = (1, 2, 31, 32, 33, 64, 160, 255, 256, 4096, 65535, 65536, 1 << 20, 1 << 31, (1 << 32) - 1)


@dataclass(slots=True, kw_only=True)
class EntropyChunk:
    """The sections of a chunk of `huffman` or `rans`."""

    symbols: int
    symbol_bytes: int
    width: int  # symbols in a row
    model: bytes  # empty: the stream's table
    row_classes: int  # of the model
    classes: bytes  # of rows
    directory: list[int]
    states: bytes
    coded: bytes
    positions: list[int]
    values: bytes
    is_rans: bool

    @classmethod
    def take_apart(cls, stored: bytes, raw_bytes: int, table: bytes | None, *, rans: bool) -> Self:
        """The sections of a valid chunk."""
        _, _, symbol_bytes, _, width, model_bytes, patches = _HEADER.unpack_from(stored)
        at = _HEADER.size

        def take(size: int) -> bytes:
            nonlocal at
            part = stored[at : at + size]
            at += size + -size % 4
            return part

        symbols = raw_bytes // symbol_bytes
        blocks = -(-symbols // _BLOCK)
        model = take(model_bytes)
        row_classes = (model or table or b"\0\0\1")[2] if rans else 1
        classes = take((_class_bits(symbols, width, row_classes) + 7) // 8)
        form = "I" if rans else "4H"
        directory = list(struct.unpack(f"<{form * blocks}", take(blocks * (4 if rans else 8))))
        states = take(128 * blocks) if rans else b""
        coded = take(2 * directory[-1] if rans else sum(directory))
        return cls(
            symbols=symbols,
            symbol_bytes=symbol_bytes,
            width=width,
            model=model,
            row_classes=row_classes,
            classes=classes,
            directory=directory,
            states=states,
            coded=coded,
            positions=list(struct.unpack(f"<{patches}I", take(4 * patches))),
            values=take(symbol_bytes * patches),
            is_rans=rans,
        )

    def put_together(self) -> bytes:
        """The stored bytes, with every section as long as the others say."""
        inline = 1 if self.model else 0
        header = _HEADER.pack(
            1, inline, self.symbol_bytes, 0, self.width, len(self.model), len(self.positions)
        )
        limit = (1 << 32) - 1 if self.is_rans else (1 << 16) - 1
        form = "I" if self.is_rans else "H"
        entries = [min(max(0, entry), limit) for entry in self.directory]
        sections = [
            header, self.model, self.classes, struct.pack(f"<{len(entries)}{form}", *entries),
            self.states, self.coded, struct.pack(f"<{len(self.positions)}I", *self.positions),
            self.values,
        ]  # fmt: skip
        return b"".join(section + bytes(-len(section) % 4) for section in sections)

    def mutate(self, rng: Random) -> None:
        """One change that keeps the sections' sizes right."""
        kind = rng.randrange(7)
        if kind == 0:
            self.width = rng.choice(_WIDTHS)
            self.classes = self._fitting_classes()
        elif kind == 1 and self.classes:
            self.classes = bytes(damage(rng, self.classes, resize=False))
        elif kind == 2 and self.model:
            self.model = self._other_model(rng)
        elif kind == 3:
            self._other_patches(rng)
        elif kind == 4 and self.states:
            self.states = bytes(damage(rng, self.states, resize=False))
        elif kind == 5:
            self._move_bounds(rng)
        elif self.coded:
            self.coded = bytes(damage(rng, self.coded, resize=False))

    def _fitting_classes(self) -> bytes:
        """As many classes as there are rows; unused bits are zero."""
        bits = _class_bits(self.symbols, self.width, self.row_classes)
        size = (bits + 7) // 8
        classes = bytearray((self.classes + bytes(size))[:size])
        if bits % 8:
            classes[-1] &= (1 << bits % 8) - 1
        return bytes(classes)

    def _other_model(self, rng: Random) -> bytes:
        kind = rng.random()
        if kind < 0.2:
            return b""
        model = bytearray(self.model)
        if kind < 0.6 and len(model) > 16:
            # Two entries exchanged: sums stay as they were.
            width = rng.choice((1, 2))
            one, other = (rng.randrange(8, len(model) - 1) // width * width for _ in range(2))
            first, second = model[one : one + width], model[other : other + width]
            model[one : one + width], model[other : other + width] = second, first
            return bytes(model)
        return bytes(damage(rng, model, resize=kind < 0.7))

    def _other_patches(self, rng: Random) -> None:
        count = rng.choice((0, 1, 2, 3, 100))
        top = rng.choice((self.symbols - 1, self.symbols, self.symbols + 1, (1 << 32) - 1))
        positions = [rng.randint(0, max(0, top)) for _ in range(count)]
        self.positions = sorted(set(positions)) if rng.random() < 0.8 else positions
        if self.positions and rng.random() < 0.3:
            self.positions[-1] = max(0, top)
        self.values = rng.randbytes(self.symbol_bytes * len(self.positions))

    def _move_bounds(self, rng: Random) -> None:
        """Moves where a block or segment ends, or the end of all."""
        change = rng.choice((-64, -2, -1, 1, 2, 31, 32, 64, 4096))
        index = rng.randrange(len(self.directory))
        unit = 2 if self.is_rans else 1
        if index == len(self.directory) - 1:
            self.directory[index] = max(0, self.directory[index] + change)
            size = unit * (self.directory[-1] if self.is_rans else sum(self.directory))
            self.coded = (self.coded + rng.randbytes(max(0, size - len(self.coded))))[:size]
            return
        self.directory[index] += change
        if not self.is_rans:
            self.directory[index + 1] -= change


def _class_bits(symbols: int, width: int, row_classes: int) -> int:
    """Bits that the classes of all rows take."""
    if width == 0 or row_classes == 1:
        return 0
    each = 1 if row_classes == 2 else 2 if row_classes <= 4 else 4
    return -(-symbols // width) * each
