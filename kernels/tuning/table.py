"""A tuning table: JSON that says, for one GPU, how each kernel cuts each weight.

    {"version": 1, "device": "NVIDIA H200", "compute_capability": [9, 0], "triton": "3.6.0",
     "kernels": {"int8": [{"n": 4096, "k": 4096, "bn": 64, "num_warps": 2, "num_stages": 3,
                           "splits": 8}]}}

Read as hostile input: a table is taken as a whole or refused, since one that is half understood
would change results without saying so.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from tersor.kernels.errors import TuningError
from tersor.kernels.tuning.cut import Cut

VERSION = 1
MAX_BYTES = 1 << 20  # some ten thousand entries
MAX_SIZE = 1 << 31  # of n and k: what kernels address with 32-bit sizes
BNS = (16, 32, 64, 128, 256)
NUM_WARPS = (1, 2, 4, 8)
MAX_STAGES = 8
MAX_SPLITS = 64
_KEYS = ("version", "device", "compute_capability", "triton", "kernels")
_ENTRY_KEYS = ("n", "k", "bn", "num_warps", "num_stages", "splits")


class Shape(NamedTuple):
    """What a table looks up: a kernel and its weight [n, k]."""

    kernel: str
    n: int
    k: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TuningTable:
    """The measured cuts of one GPU."""

    device: str  # as torch names it
    compute_capability: tuple[int, int]
    triton: str  # the version that compiled what was measured
    cuts: Mapping[Shape, Cut]

    def to_json(self) -> str:
        """The text that `parse_table` reads."""
        kernels: dict[str, list[str]] = {}
        for shape, cut in sorted(self.cuts.items(), key=lambda item: item[0]):
            entry = {"n": shape.n, "k": shape.k} | {
                name: getattr(cut, name) for name in _ENTRY_KEYS[2:]
            }
            kernels.setdefault(shape.kernel, []).append(json.dumps(entry))
        lists = ",\n".join(
            f"    {json.dumps(kernel)}: [\n      " + ",\n      ".join(entries) + "\n    ]"
            for kernel, entries in kernels.items()
        )
        head = {
            "version": VERSION,
            "device": self.device,
            "compute_capability": list(self.compute_capability),
            "triton": self.triton,
        }
        lines = "".join(
            f"  {json.dumps(key)}: {json.dumps(value)},\n" for key, value in head.items()
        )
        return f'{{\n{lines}  "kernels": {{\n{lists}\n  }}\n}}\n'


def parse_table(text: str, source: str) -> TuningTable:
    """Reads a table.

    Args:
        text: its JSON.
        source: what messages call it.

    Raises:
        TuningError: it is not a table of this version, or any value in it is not allowed.
    """
    return _Parser(source).table(text)


class _Parser:
    """Checks every value, and says where it stands."""

    def __init__(self, source: str) -> None:
        self._source = source

    def table(self, text: str) -> TuningTable:
        try:
            document = json.loads(text, object_pairs_hook=self._without_duplicates)
        except (json.JSONDecodeError, RecursionError) as error:
            raise self._error("the text", str(error), "JSON") from None
        fields = self._object("the document", document, _KEYS)
        version = self._integer("version", fields["version"], range(VERSION, VERSION + 1))
        assert version == VERSION
        capability = fields["compute_capability"]
        if not isinstance(capability, list) or len(capability) != 2:
            raise self._error("compute_capability", capability, "two numbers, such as [9, 0]")
        major, minor = (self._integer("compute_capability", x, range(100)) for x in capability)
        return TuningTable(
            device=self._text("device", fields["device"]),
            compute_capability=(major, minor),
            triton=self._text("triton", fields["triton"]),
            cuts=self._cuts(fields["kernels"]),
        )

    def _cuts(self, kernels: object) -> Mapping[Shape, Cut]:
        if not isinstance(kernels, dict):
            raise self._error("kernels", kernels, "an object: kernel name -> entries")
        cuts: dict[Shape, Cut] = {}
        for kernel, entries in kernels.items():
            where = f"kernels.{self._text('kernels', kernel)}"
            if not isinstance(entries, list):
                raise self._error(where, entries, "a list of entries")
            for index, entry in enumerate(entries):
                shape, cut = self._entry(f"{where}[{index}]", kernel, entry)
                if shape in cuts:
                    raise self._error(f"{where}[{index}]", list(shape[1:]), "each n, k once")
                cuts[shape] = cut
        return cuts

    def _entry(self, where: str, kernel: str, entry: object) -> tuple[Shape, Cut]:
        fields = self._object(where, entry, _ENTRY_KEYS)
        allowed: dict[str, Sequence[int]] = {
            "n": range(1, MAX_SIZE),
            "k": range(1, MAX_SIZE),
            "bn": BNS,
            "num_warps": NUM_WARPS,
            "num_stages": range(1, MAX_STAGES + 1),
            "splits": range(1, MAX_SPLITS + 1),
        }
        values = {
            key: self._integer(f"{where}.{key}", fields[key], choice)
            for key, choice in allowed.items()
        }
        n, k = values.pop("n"), values.pop("k")
        return Shape(kernel, n, k), Cut(**values)

    def _object(self, where: str, value: object, keys: Sequence[str]) -> dict[str, Any]:
        if not isinstance(value, dict) or value.keys() != set(keys):
            got = sorted(value) if isinstance(value, dict) else value
            raise self._error(where, got, f"an object with exactly the keys {', '.join(keys)}")
        return value

    def _integer(self, where: str, value: object, choice: Sequence[int]) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or value not in choice:
            if isinstance(choice, range):
                expected = f"an integer from {choice.start} to {choice.stop - 1}"
            else:
                expected = f"one of {', '.join(map(str, choice))}"
            raise self._error(where, value, expected)
        return value

    def _text(self, where: str, value: object) -> str:
        if not isinstance(value, str) or not 0 < len(value) <= 128 or not value.isprintable():
            raise self._error(where, value, "a printable name of 1 to 128 characters")
        return value

    def _without_duplicates(self, pairs: list[tuple[str, object]]) -> dict[str, object]:
        fields = dict(pairs)
        if len(fields) != len(pairs):
            raise self._error("the document", [key for key, _ in pairs], "every key once")
        return fields

    def _error(self, where: str, got: object, expected: str) -> TuningError:
        shown = f"{got!r}"
        shown = shown if len(shown) <= 100 else shown[:100] + "..."
        return TuningError(
            f"tuning table {self._source}: {where} is {shown}, expected {expected}; delete the "
            "file, or write it anew with `tersor bench kernels --tune`"
        )
