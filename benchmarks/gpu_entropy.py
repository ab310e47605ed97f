"""Claim: a GPU decodes rANS chunks at 300 GB/s and more, several times what a link can bring.

Per distribution, way of choosing tables and size of the load: GB/s of decoded bytes, symbols per
second, and the share of the copy bandwidth measured in the same run, replayed from a CUDA graph.
Stored bytes are those of the words and states; every launch reads another copy of them, together
larger than any L2 cache. nvCOMP's ANS stands beside it where its Python package is installed. Needs
torch and triton alone: a plain encoder makes the chunks.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import record
import torch
from torch import Tensor

from tersor.kernels.bench.timing import COLD_BYTES, copy_bandwidth, graph_seconds
from tersor.kernels.entropy import EncodedChunk, RansBatch, rans_decode
from tersor.kernels.entropy.encoder import encode, tables_of

MI = 1 << 20
CHUNK = MI // 2  # symbols of a chunk, as bundles have them
UNIQUE = 16  # chunks that are encoded; larger loads repeat them
ROW = 4096
# Symbols of a load: a projection, a layer, and a few layers of an 8 B model.
LOADS = (16 * MI, 64 * MI, 256 * MI)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plane:
    """Symbols [UNIQUE, CHUNK] on the host, and the classes they are coded by."""

    symbols: Tensor
    precision: int
    rows: int = 1
    columns: int = 1


def device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device())


def exponents() -> Tensor:
    """Exponents of normally distributed bf16 weights: 2.6 bits a symbol."""
    weights = torch.randn(UNIQUE, CHUNK).bfloat16().view(torch.int16)
    return ((weights >> 7) & 255).to(torch.uint8)


def codes(step: float) -> Tensor:
    """Codes of a uniform quantizer of that step, in standard deviations."""
    return (torch.randn(UNIQUE, CHUNK) / step).round().add(128).clamp(0, 255).to(torch.uint8)


def wide() -> Tensor:
    """Sixteen-bit symbols: 7 bits a symbol."""
    return (torch.randn(UNIQUE, CHUNK) * 30).round().add(1000).to(torch.uint16)


PLANES: dict[str, Callable[[], Plane]] = {
    "exponents": lambda: Plane(symbols=exponents(), precision=12),
    "exponents, 4 row classes": lambda: Plane(symbols=exponents(), precision=11, rows=4),
    "exponents, 4 x 4 classes": lambda: Plane(symbols=exponents(), precision=11, rows=4, columns=4),
    "codes of 3 bits": lambda: Plane(symbols=codes(0.5), precision=12),
    "codes of 6 bits": lambda: Plane(symbols=codes(0.065), precision=12),
    "16-bit symbols": lambda: Plane(symbols=wide(), precision=14),
}


def chunks_of(plane: Plane) -> list[EncodedChunk]:
    """Every chunk with the same tables, as those of one stream."""
    dtype = plane.symbols.dtype
    counts = torch.bincount(
        plane.symbols.view(-1).to(torch.int64), minlength=1 << 8 * dtype.itemsize
    )
    tables = tables_of(counts.repeat(plane.rows * plane.columns, 1), plane.precision, dtype)
    classed = plane.rows * plane.columns > 1
    rows = CHUNK // ROW if classed else 0
    columns = ROW if plane.columns > 1 else 0
    return [
        encode(
            symbols,
            tables,
            row_symbols=ROW if classed else 0,
            row_class=torch.randint(0, plane.rows, (rows,), dtype=torch.uint8),
            column_classes=plane.columns,
            column_class=torch.randint(0, plane.columns, (columns,), dtype=torch.uint8),
        )
        for symbols in plane.symbols
    ]


def copies(batch: RansBatch) -> list[RansBatch]:
    """Enough equal batches that one pass over their words evicts any cache."""
    count = 1 + COLD_BYTES // (batch.words.nbytes + batch.symbols)
    others = [
        replace(batch, words=batch.words.clone(), states=batch.states.clone())
        for _ in range(count - 1)
    ]
    return [batch, *others]


def decoded_seconds(
    chunks: list[EncodedChunk], symbols: int, expected: Tensor
) -> tuple[float, int]:
    """Seconds a load takes, and the bytes it reads; checks that it decodes to `expected`."""
    repeats = symbols // (UNIQUE * CHUNK)
    batch = RansBatch.pack(chunks * repeats, device())
    decoded, errors = rans_decode(batch)
    batch.check(errors)
    if not torch.equal(decoded.cpu()[: expected.numel()], expected.view(-1)):
        raise RuntimeError("the kernel decodes to other symbols than were encoded")
    del decoded
    batches = copies(batch)
    seconds = graph_seconds(lambda: [rans_decode(each) for each in batches]) / len(batches)
    return seconds, batch.words.nbytes + batch.states.nbytes


def nvcomp_seconds(raw: Tensor) -> tuple[float, int] | None:
    """Seconds and stored bytes of nvCOMP's ANS for the same bytes; None where it is missing."""
    if (
        importlib.util.find_spec("nvidia") is None
        or importlib.util.find_spec("nvidia.nvcomp") is None
    ):
        return None
    nvcomp: Any = importlib.import_module("nvidia.nvcomp")
    codec = nvcomp.Codec(algorithm="ANS")
    stored = codec.encode(nvcomp.as_array(raw.to(device())))

    def decode() -> None:
        codec.decode(stored)
        torch.cuda.synchronize()  # of the device: nvCOMP has a stream of its own

    return record.seconds(decode), int(stored.buffer_size)


def row(
    name: str, decoder: str, raw: int, stored: int, seconds: float, bandwidth: float, width: int
) -> dict[str, object]:
    speed = raw / seconds
    print(
        f"  {name:<26} {decoder:<7} {raw // MI:>5} MiB {8 * width * stored / raw:5.2f} bits "
        f"{1e6 * seconds:8.1f} us {speed / 1e9:7.1f} GB/s {100 * speed / bandwidth:5.1f} %",
        flush=True,
    )
    return {
        "symbols": name,
        "decoder": decoder,
        "raw_mib": raw // MI,
        "bits_per_symbol": round(8 * width * stored / raw, 3),
        "microseconds": round(1e6 * seconds, 2),
        "decoded_gb_per_second": round(speed / 1e9, 1),
        "giga_symbols_per_second": round(speed / 1e9 / width, 1),
        "share_of_copy_bandwidth": round(speed / bandwidth, 4),
        "copy_gb_per_second": round(bandwidth / 1e9, 1),
    }


def measure(name: str, bandwidth: float) -> list[dict[str, object]]:
    plane = PLANES[name]()
    chunks = chunks_of(plane)
    width = plane.symbols.itemsize
    rows = []
    for symbols in LOADS:
        seconds, stored = decoded_seconds(chunks, symbols, plane.symbols)
        rows.append(row(name, "tersor", symbols * width, stored, seconds, bandwidth, width))
    largest = plane.symbols.view(-1).view(torch.uint8).repeat(LOADS[-1] // (UNIQUE * CHUNK))
    if (peer := nvcomp_seconds(largest)) is not None:
        rows.append(row(name, "nvCOMP", largest.numel(), peer[1], peer[0], bandwidth, width))
    return rows


def main() -> int:
    if not torch.cuda.is_available():
        print("gpu_entropy.py needs a CUDA device; torch sees none", file=sys.stderr)
        return 1
    torch.manual_seed(0)
    with torch.inference_mode():
        bandwidth = copy_bandwidth(device())
        print(f"copy bandwidth {bandwidth / 1e9:.0f} GB/s")
        path = record.write_groups("gpu_entropy", (measure(name, bandwidth) for name in PLANES))
    print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
