"""Claim: the writer's choice is within 1 % of order-0 entropy, and rANS decodes 600 MB/s a core.

Every codec on what bundles are made of, all matrices of MiniLM: exponents of bf16; int8 codes with
a step a row; int4 codes in groups of 32 and a step a row, a symbol a byte; 16-bit codes of one step
a tensor (a 32nd of its standard deviation). Chunks are the blocks that the writer would make, with
a table for all of a plane where the codec learns one.

The bound is the order-0 entropy of each plane alone, weighted by its symbols. What beats it knows
more than one distribution a plane: classes of rows, or what symbols follow. `rans` has row classes
where they pay, as in a bundle; `rans, plain` none; `rans, classed` row and column classes. `auto`
is what the writer stores, its filters included, and decodes from memory.

Speeds are MB of decoded symbols by processor time of one thread, median and best of alternating
rounds.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import record
import torch
from real_weights import add_tensors, matrices, minilm, new_writer, read_tensors

from tersor.bundle.codecs import Codec, StreamShape, default_codecs
from tersor.bundle.dtypes import AnyArray, ByteArray, Geometry, rows_per_chunk
from tersor.bundle.encoding import block_of, block_target
from tersor.bundle.reader import BundleReader
from tersor.bundle.writer import PlaneData
from tersor.converters.quantize import quantize_int4, quantize_int8

Row = dict[str, object]
_STEPS_A_DEVIATION = 32
PACKAGES = ("numpy", "numba", "zstandard", "lz4")


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """Planes of one kind of symbols."""

    name: str
    dtype: str
    planes: Sequence[AnyArray]

    @property
    def raw_bytes(self) -> int:
        """Of all planes, in memory."""
        return sum(plane.nbytes for plane in self.planes)

    @property
    def symbols(self) -> int:
        """In all planes."""
        return sum(plane.size for plane in self.planes)


@dataclass(slots=True)
class Timings:
    """Seconds of each round."""

    encode: list[float] = field(default_factory=list)
    decode: list[float] = field(default_factory=list)


class Contestant(ABC):
    """A way to store all planes of a kind."""

    name: str

    @abstractmethod
    def encode(self) -> int:
        """Encodes all planes, keeps the result, and returns its bytes."""

    @abstractmethod
    def decode(self) -> Iterator[AnyArray]:
        """Decodes what `encode` made: arrays that in a row have the bytes of all planes."""


class OneCodec(Contestant):
    """A codec on the chunks of the unfiltered planes."""

    def __init__(self, name: str, codec: Codec, kind: Kind, *, rows: bool, columns: bool) -> None:
        self.name = name
        self._codec = codec
        self._planes = []
        for plane in kind.planes:
            shape = StreamShape(
                symbol_bytes=plane.itemsize,
                row_symbols=plane.shape[1] if rows else 0,
                column_classes=columns,
            )
            self._planes.append((_chunks(plane, kind.dtype), shape))
        self._stored: list[tuple[ByteArray | None, list[tuple[int, ByteArray]]]] = []

    def encode(self) -> int:
        self._stored = []
        for chunks, shape in self._planes:
            table = self._codec.learn(chunks, shape) if len(chunks) > 1 else None
            stored = [
                (
                    chunk.size,
                    np.frombuffer(
                        min((e(chunk, shape, table) for e in self._codec.encoders), key=len),
                        np.uint8,
                    ),
                )
                for chunk in chunks
            ]
            self._stored.append((table, stored))
        return sum(
            (0 if table is None else table.size) + sum(data.size for _, data in stored)
            for table, stored in self._stored
        )

    def decode(self) -> Iterator[AnyArray]:
        for table, stored in self._stored:
            for raw_bytes, data in stored:
                yield self._codec.decode(data, raw_bytes, table)


class Auto(Contestant):
    """The writer: its filters, tables and codecs, read back into memory and decoded from there."""

    name = "auto"

    def __init__(self, kind: Kind, work: Path) -> None:
        self._tensors = {
            str(number): PlaneData(dtype=kind.dtype, array=plane)
            for number, plane in enumerate(kind.planes)
        }
        self._path = work / "auto.tersor"

    def encode(self) -> int:
        with new_writer(self._path, "auto") as writer:
            add_tensors(writer, self._tensors)
            manifest = writer.commit()
        with BundleReader.open(self._path, threads=1) as reader:
            self._encoded = [
                reader.fetch_plane(tensor.planes[0]) for tensor in reader.manifest.tensors
            ]
        return sum(tensor.planes[0].stored_bytes for tensor in manifest.tensors)

    def decode(self) -> Iterator[AnyArray]:
        for plane in self._encoded:
            yield plane.decode()


def kinds() -> Iterator[Kind]:
    """The five kinds of symbols."""
    weights = list(matrices(read_tensors(minilm() / "model.safetensors")))
    tensors = [torch.from_numpy(array) for array in weights]
    halves = [tensor.to(torch.bfloat16).view(torch.int16).numpy() for tensor in tensors]
    yield Kind(
        name="bf16 exponents",
        dtype="u8",
        planes=[((half.view(np.uint16) >> 7) & 0xFF).astype(np.uint8) for half in halves],
    )
    for name, dtype, quantized in (
        ("int8 codes, step a row", "i8", (quantize_int8(tensor) for tensor in tensors)),
        ("int4 codes, groups of 32", "u4", (quantize_int4(t, group=32) for t in tensors)),
        ("int4 codes, step a row", "u4", (quantize_int4(t, group=0) for t in tensors)),
    ):
        codes = [entry.planes["codes"][1].numpy() for entry in quantized]
        yield Kind(name=name, dtype=dtype, planes=codes)
    steps = [array.std() / _STEPS_A_DEVIATION for array in weights]
    yield Kind(
        name="16-bit codes, step a tensor",
        dtype="i16",
        planes=[np.rint(a / step).astype(np.int16) for a, step in zip(weights, steps, strict=True)],
    )


def entropy_bits(plane: AnyArray) -> float:
    """Order-0 entropy of a plane's symbols, in bits for all of them."""
    counts = np.unique(plane, return_counts=True)[1]
    return float(-(counts * np.log2(counts / plane.size)).sum())


def contestants(kind: Kind, work: Path) -> list[Contestant]:
    """Every codec; rANS in its three ways; the writer."""
    codecs: Mapping[str, Codec] = default_codecs()
    result: list[Contestant] = []
    for name, codec in codecs.items():
        result.append(OneCodec(name, codec, kind, rows=True, columns=False))
        if name == "rans":
            result.append(OneCodec("rans, plain", codec, kind, rows=False, columns=False))
            result.append(OneCodec("rans, classed", codec, kind, rows=True, columns=True))
    return [*result, Auto(kind, work)]


def measure(kind: Kind, encodes: int, decodes: int, work: Path) -> Iterator[Row]:
    """One row a contestant; they take turns."""
    every = contestants(kind, work)
    timings = [Timings() for _ in every]
    sizes = [contestant.encode() for contestant in every]  # compiles, too
    for contestant in every:
        check(contestant, kind)
    for _ in range(encodes):
        for contestant, taken in zip(every, timings, strict=True):
            start = time.process_time()
            contestant.encode()
            taken.encode.append(time.process_time() - start)
    for _ in range(decodes):
        for contestant, taken in zip(every, timings, strict=True):
            start = time.process_time()
            for _array in contestant.decode():
                pass
            taken.decode.append(time.process_time() - start)
    bound = sum(entropy_bits(plane) for plane in kind.planes)
    megabytes = kind.raw_bytes / 1e6
    for contestant, size, taken in zip(every, sizes, timings, strict=True):
        row: Row = {
            "symbols": kind.name,
            "codec": contestant.name,
            "stored_bits": round(8 * size / kind.symbols, 4),
            "order0_bits": round(bound / kind.symbols, 4),
            "excess_percent": round(100 * (8 * size / bound - 1), 3),
            "encode_mb_per_second": round(megabytes / statistics.median(taken.encode)),
            "encode_best": round(megabytes / min(taken.encode)),
            "decode_mb_per_second": round(megabytes / statistics.median(taken.decode)),
            "decode_best": round(megabytes / min(taken.decode)),
        }
        print("  " + " ".join(f"{value!s:>9}" for value in row.values()), flush=True)
        yield row


def check(contestant: Contestant, kind: Kind) -> None:
    """Raises SystemExit unless every symbol comes back."""
    got = np.concatenate([array.reshape(-1).view(np.uint8) for array in contestant.decode()])
    expected = np.concatenate([plane.reshape(-1).view(np.uint8) for plane in kind.planes])
    if not np.array_equal(got, expected):
        raise SystemExit(f"{contestant.name} does not give the {kind.name} back")


def _chunks(plane: AnyArray, dtype: str) -> list[ByteArray]:
    rows = rows_per_chunk(plane.shape, dtype, block_target(plane.nbytes))
    geometry = Geometry.of(plane.shape, dtype, rows)
    flat = plane.reshape(-1)
    return [
        block_of(flat, geometry, index).reshape(-1).view(np.uint8)
        for index in range(geometry.num_chunks)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--encodes", type=int, default=3, help="rounds of encoding")
    parser.add_argument("--decodes", type=int, default=9, help="rounds of decoding")
    arguments = parser.parse_args()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as temporary:
        for kind in kinds():
            rows += measure(kind, arguments.encodes, arguments.decodes, Path(temporary))
    print(f"wrote {record.write('entropy_codecs', rows, packages=PACKAGES)}")


if __name__ == "__main__":
    main()
