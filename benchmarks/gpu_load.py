"""Claim: a layer loads faster compressed than raw, since its bytes are decoded behind the link.

One layer of an 8 B decoder as int8, int4 and bf16, from host memory to resident layouts: GB/s of
decoded bytes

- decoded on the GPU: rANS chunks are sent, decoded, joined and packed there, as `load_group` does
  (chunks are parsed before; what parsing takes is in the rows of whole bundles),
- raw, from pageable and from page-locked memory: every plane is copied and packed,
- nvCOMP: its ANS codec decodes the same bytes, where the Python package is installed.

Two more rows load a whole bundle's group from host memory, with planes decoded on the GPU and with
planes decoded on the CPU. They need all that bundles do (numba, xxhash, blake3, zstandard, lz4);
the others need torch, triton and numpy alone.
"""

from __future__ import annotations

import importlib
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path

import record
import torch
from gpu_entropy import CHUNK, UNIQUE, chunks_of, codes, device, exponents, nvcomp_seconds
from gpu_entropy import Plane as Symbols
from torch import Tensor

from tersor.kernels.dense import DenseLayout
from tersor.kernels.entropy import EncodedChunk, decode_parts
from tersor.kernels.filters import join_floats, join_nibbles
from tersor.kernels.int4 import Int4Layout
from tersor.kernels.int8 import Int8Layout
from tersor.kernels.layout import Layout
from tersor.kernels.staging import Staging

SHAPES = ((6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336))
REPEAT = 7

Row = dict[str, object]
Pack = Callable[[Tensor, tuple[int, int]], Layout]


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """A kind of plane: streams of coded and of plain bytes, and what becomes of them."""

    symbols: Symbols  # what is coded, [UNIQUE, CHUNK]
    weights_a_symbol: int
    plain: bool  # a plain byte for each symbol follows
    join: Callable[[Tensor, int], Tensor]  # streams, weights -> the plane's symbols
    pack: Pack


def int8(plane: Tensor, shape: tuple[int, int]) -> Layout:
    planes = {
        "codes": plane.view(torch.int8).view(shape),
        "scales": torch.ones(shape[0], dtype=torch.bfloat16, device=device()),
    }
    return Int8Layout.from_planes(planes, shape, torch.bfloat16, {}, device())


def int4(plane: Tensor, shape: tuple[int, int]) -> Layout:
    n, k = shape
    scales = torch.ones(n, k // 128, dtype=torch.bfloat16, device=device())
    planes = {"codes": plane.view(shape), "scales": scales}
    params = {"group": 128, "symmetric": True}
    return Int4Layout.from_planes(planes, shape, torch.bfloat16, params, device())


def dense(plane: Tensor, shape: tuple[int, int]) -> Layout:
    values = plane.view(torch.bfloat16).view(shape)
    return DenseLayout.from_planes({"values": values}, shape, torch.bfloat16, {}, device())


def nibbles() -> Tensor:
    """Two codes of a quantizer with 16 steps a symbol: 3.6 bits each."""
    drawn = (torch.randn(2, UNIQUE, CHUNK) * 2.7).round().add(8).clamp(0, 15).to(torch.uint8)
    return drawn[0] | (drawn[1] << 4)


FORMS: Mapping[str, Callable[[], Form]] = {
    "int8": lambda: Form(
        symbols=Symbols(symbols=codes(0.033), precision=12),
        weights_a_symbol=1,
        plain=False,
        join=lambda streams, _: streams,
        pack=int8,
    ),
    "int4": lambda: Form(
        symbols=Symbols(symbols=nibbles(), precision=12),
        weights_a_symbol=2,
        plain=False,
        join=lambda streams, weights: join_nibbles(streams, weights)[0],
        pack=int4,
    ),
    "bf16": lambda: Form(
        symbols=Symbols(symbols=exponents(), precision=12),
        weights_a_symbol=1,
        plain=True,
        join=lambda streams, _: join_floats(streams, 2),
        pack=dense,
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor2d:
    """One weight in host memory, compressed and raw."""

    shape: tuple[int, int]
    chunks: Sequence[EncodedChunk]
    plain: Tensor | None
    raw: Tensor

    @property
    def stored_bytes(self) -> int:
        coded = sum(chunk.words.nbytes + chunk.states.nbytes for chunk in self.chunks)
        return coded + (0 if self.plain is None else self.plain.nbytes)


def layer(form: Form) -> list[Tensor2d]:
    """Every chunk in memory of its own: a cache must not answer for the host's memory."""
    encoded = chunks_of(form.symbols)
    tensors = []
    for shape in SHAPES:
        weights = shape[0] * shape[1]
        count = weights // (CHUNK * form.weights_a_symbol)
        chunks = [
            replace(chunk, words=chunk.words.clone())
            for chunk in (encoded * (1 + count // UNIQUE))[:count]
        ]
        plain = torch.randint(0, 256, (weights,), dtype=torch.uint8) if form.plain else None
        symbols = form.symbols.symbols.view(-1).repeat(1 + count // UNIQUE)[: count * CHUNK]
        streams = symbols if plain is None else torch.cat([symbols, plain])
        raw = form.join(streams, weights)
        tensors.append(Tensor2d(shape=shape, chunks=chunks, plain=plain, raw=raw))
    return tensors


def load_decoding(form: Form, tensors: Sequence[Tensor2d]) -> list[Layout]:
    staging = Staging(device())
    layouts = []
    for tensor in tensors:
        parts: list[EncodedChunk | Tensor] = [*tensor.chunks]
        if tensor.plain is not None:
            parts.append(tensor.plain)
        streams, bad = decode_parts(parts, staging, lambda _: nullcontext())
        plane = form.join(streams, tensor.shape[0] * tensor.shape[1])
        if bool(bad):
            raise RuntimeError("a chunk does not decode")
        layouts.append(form.pack(plane, tensor.shape))
    torch.cuda.synchronize()
    return layouts


def load_raw(form: Form, tensors: Sequence[Tensor2d], planes: Sequence[Tensor]) -> list[Layout]:
    layouts = [
        form.pack(plane.to(device(), non_blocking=True), tensor.shape)
        for tensor, plane in zip(tensors, planes, strict=True)
    ]
    torch.cuda.synchronize()
    return layouts


def report(form: str, way: str, raw: int, link: int, seconds: float) -> Row:
    print(
        f"  {form:<12} {way:<24} {raw / 1e6:7.0f} MB {1e3 * seconds:8.2f} ms "
        f"{raw / seconds / 1e9:7.1f} GB/s of planes {link / seconds / 1e9:7.1f} GB/s of link",
        flush=True,
    )
    return {
        "form": form,
        "way": way,
        "raw_mb": round(raw / 1e6, 1),
        "link_mb": round(link / 1e6, 1),
        "milliseconds": round(1e3 * seconds, 3),
        "decoded_gb_per_second": round(raw / seconds / 1e9, 2),
        "link_gb_per_second": round(link / seconds / 1e9, 2),
    }


def measure(name: str) -> list[Row]:
    form = FORMS[name]()
    tensors = layer(form)
    raw = sum(tensor.raw.nbytes for tensor in tensors)
    stored = sum(tensor.stored_bytes for tensor in tensors)
    planes = [tensor.raw for tensor in tensors]
    for got, expected in zip(
        load_decoding(form, tensors), load_raw(form, tensors, planes), strict=True
    ):
        if not torch.equal(got.dense(), expected.dense()):
            raise RuntimeError("a layout decoded on the GPU differs from the raw one")
    locked = [plane.pin_memory() for plane in planes]
    ways: dict[str, tuple[int, Callable[[], object]]] = {
        "decoded on the GPU": (stored, partial(load_decoding, form, tensors)),
        "raw, pageable": (raw, partial(load_raw, form, tensors, planes)),
        "raw, page-locked": (raw, partial(load_raw, form, tensors, locked)),
    }
    rows = [
        report(name, way, raw, link, record.seconds(load, repeat=REPEAT))
        for way, (link, load) in ways.items()
    ]
    largest = max(planes, key=Tensor.numel).view(-1).view(torch.uint8)
    peer = nvcomp_seconds(largest)
    if peer is None:
        print("  nvCOMP is left out: the Python package nvidia-nvcomp is not installed")
    else:
        rows.append(report(name, "nvCOMP, on the device", largest.numel(), peer[1], peer[0]))
    return rows


def bundle_rows() -> Iterator[list[Row]]:
    """A group of a real bundle, from host memory: parsing included."""
    try:
        importlib.import_module("numba")  # which bundles import only where they use it
        bundle = importlib.import_module("benchmark_bundle")
    except ImportError as error:
        print(f"  whole bundles are left out: they need {error.name}, which is not installed")
        return
    with tempfile.TemporaryDirectory() as folder:
        for form in FORMS:
            with bundle.fetched_group(Path(folder) / form, form) as group:
                raw = bundle.raw_bytes(group)
                ways = {
                    "bundle, on the GPU": (group.stored_bytes, partial(group.load, device())),
                    "bundle, on the CPU": (raw, partial(bundle.load_by_host, group, device())),
                }
                for way, (link, load) in ways.items():
                    seconds = record.seconds(partial(load_and_wait, load), repeat=3, warmup=1)
                    yield [report(form, way, raw, link, seconds)]


def load_and_wait(load: Callable[[], object]) -> None:
    load()
    torch.cuda.synchronize()


def main() -> int:
    if not torch.cuda.is_available():
        print("gpu_load.py needs a CUDA device; torch sees none", file=sys.stderr)
        return 1
    torch.manual_seed(0)
    with torch.inference_mode():
        path = record.write_groups("gpu_load", chain(map(measure, FORMS), bundle_rows()))
    print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
