"""The way back: a bundle's weights as a checkpoint under their original names, and its files."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tersor.bundle.errors import BundleFormatError
from tersor.bundle.location import Location
from tersor.bundle.manifest import DTYPES, Manifest, SourceSlice, TensorEntry
from tersor.bundle.reader import BundleReader
from tersor.converters.errors import DestinationError
from tersor.converters.progress import ByteMeter, Progress
from tersor.converters.safetensors_file import FileTensor, SafetensorsFile
from tersor.converters.sources.checkpoint import INDEX_FILE, SINGLE_FILE
from tersor.converters.tensors import SAFETENSORS_NAMES, from_plane, tensor_bytes
from tersor.kernels.layout import ROWS_MULTIPLE, layouts
from tersor.models.weights import torch_dtype

_SHARD_BYTES = 5 << 30  # what the field's tools write; memory does not depend on it
_CPU = torch.device("cpu")
_EXACT_LAYOUTS = ("dense", "float12")  # their plane `values` is the tensor, untouched
_DECODED_ELEMENTS = 1 << 22


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtractReport:
    """What was written."""

    output: Path
    files: tuple[str, ...]
    tensors: int
    weights_bytes: int
    exact: bool  # every weight is bit for bit that of the source
    elapsed_seconds: float


def extract(
    bundle: Location,
    output: Path,
    *,
    progress: Progress | None = None,
    force: bool = False,
    shard_bytes: int = _SHARD_BYTES,
    clock: Callable[[], float] = time.perf_counter,
) -> ExtractReport:
    """Writes the original tensors under their original names, and the carried files.

    Tensors of lossless bundles are bit for bit those of the source; compressed ones are decoded
    and rounded to the source's dtype. Peak memory is a few times the largest tensor.

    Args:
        bundle: its path or URL.
        output: the folder to write, created if missing.
        progress: told of every bundle tensor.
        force: write even if `output` holds files.
        shard_bytes: weights beyond this go into several files with an index.
        clock: seconds, for the report's `elapsed_seconds`.

    Raises:
        BundleError: the bundle cannot be read, is damaged, or its manifest contradicts itself.
        DestinationError: `output` holds files and `force` is not set, or cannot be written.
    """
    start = clock()
    fresh = not output.exists() or (output.is_dir() and not any(output.iterdir()))
    if not fresh and not force:
        raise DestinationError(
            f"{output} is not an empty folder; choose another, or write into it with --force."
        )
    with BundleReader.open(bundle) as reader:
        shards = _shards(reader.manifest, shard_bytes)
        with _all_or_nothing(output) if fresh else nullcontext():
            try:
                output.mkdir(parents=True, exist_ok=True)
                _write_assets(reader, output)
                _write_weights(reader, output, shards, progress)
            except OSError as error:
                reason = error.strerror or str(error)
                raise DestinationError(f"{output} cannot be written: {reason}.") from error
        pieces = [piece for shard in shards.values() for piece in shard]
        return ExtractReport(
            output=output,
            files=(*(asset.name for asset in reader.manifest.assets), *shards),
            tensors=len(pieces),
            weights_bytes=sum(piece.tensor.num_bytes for piece in pieces),
            exact=_is_exact(reader.manifest),
            elapsed_seconds=clock() - start,
        )


@contextmanager
def _all_or_nothing(output: Path) -> Iterator[None]:
    """Removes a folder that held nothing before if its files do not all come about."""
    try:
        yield
    except BaseException:
        shutil.rmtree(output, ignore_errors=True)
        raise


@dataclass(frozen=True, slots=True)
class _Piece:
    """One source tensor: where it lies in the bundle, and how it is written."""

    entry: TensorEntry
    start_row: int
    source: SourceSlice
    tensor: FileTensor


def _pieces(manifest: Manifest) -> list[_Piece]:
    """All source tensors, by element size and then in bundle order: every offset is aligned.

    Tensors without sources are constants that tracing made; no checkpoint held them.
    """
    pieces: list[_Piece] = []
    for entry in manifest.tensors:
        _check_sources(entry)
        start = 0
        for source in entry.sources:
            names = (source.tensor, *entry.aliases)
            for name in names:
                tensor = FileTensor(
                    name=name,
                    dtype=SAFETENSORS_NAMES[source.dtype],
                    shape=source.shape,
                    num_bytes=tensor_bytes(source.dtype, source.shape),
                )
                pieces.append(_Piece(entry, start, source, tensor))
            start += source.rows
    if not pieces:
        raise BundleFormatError("the bundle does not say which source tensors it was made from.")
    return sorted(pieces, key=lambda piece: -DTYPES[piece.source.dtype])


def _check_sources(entry: TensorEntry) -> None:
    """The reader has checked that sources cover the tensor; here they have to be storable."""
    for source in entry.sources:
        if source.dtype not in SAFETENSORS_NAMES:
            raise BundleFormatError(
                f"source {source.tensor!r} of {entry.name!r} has dtype {source.dtype}, "
                "which no checkpoint can hold."
            )


def _shards(manifest: Manifest, shard_bytes: int) -> Mapping[str, Sequence[_Piece]]:
    """File name -> its tensors; one file if they fit."""
    shards: list[list[_Piece]] = [[]]
    size = 0
    for piece in _pieces(manifest):
        if shards[-1] and size + piece.tensor.num_bytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(piece)
        size += piece.tensor.num_bytes
    if len(shards) == 1:
        return {SINGLE_FILE: shards[0]}
    count = len(shards)
    return {
        f"model-{index:05d}-of-{count:05d}.safetensors": shard
        for index, shard in enumerate(shards, 1)
    }


def _write_weights(
    reader: BundleReader,
    output: Path,
    shards: Mapping[str, Sequence[_Piece]],
    progress: Progress | None,
) -> None:
    total = sum(piece.tensor.num_bytes for shard in shards.values() for piece in shard)
    meter = ByteMeter(progress, total)
    for name, shard in shards.items():
        with SafetensorsFile(output / name, [piece.tensor for piece in shard]) as file:
            value, held = None, None
            for piece in shard:
                meter.begin(piece.tensor.name)
                if held is not piece.entry:  # the parts of a fused tensor follow each other
                    value, held = _read(reader, piece.entry), piece.entry
                assert value is not None
                file.append(_cut(value, piece))
                meter.finish(piece.tensor.name, piece.tensor.num_bytes)
        _verify(output / name, shard)
    (output / INDEX_FILE).unlink(missing_ok=True)
    if len(shards) > 1:
        weight_map = {piece.tensor.name: name for name, shard in shards.items() for piece in shard}
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (output / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", "utf-8")


def _read(reader: BundleReader, entry: TensorEntry) -> Tensor:
    """The whole tensor, dense, in its logical dtype."""
    planes = {p.name: from_plane(reader.read_plane(p), p.dtype) for p in entry.planes}
    layout = layouts().get(entry.layout)
    if layout is None:
        raise BundleFormatError(
            f"tensor {entry.name!r} is in layout {entry.layout!r}, which this build does not have."
        )
    if entry.layout in _EXACT_LAYOUTS:
        return planes["values"]
    dtype = torch_dtype(entry.dtype)
    value = torch.empty(entry.shape, dtype=dtype)
    # Row by row: decoding goes through float32 and a packed form, several times the tensor's size.
    blocks = _DECODED_ELEMENTS // max(1, entry.shape[1] * ROWS_MULTIPLE)
    step = max(1, blocks) * ROWS_MULTIPLE
    for start in range(0, entry.shape[0], step):
        rows = value[start : start + step]
        cut = layout.rows_of_planes(planes, start, start + step, entry.params)
        params = layout.params_of_planes(cut, entry.params)
        part = {name: plane.clone() for name, plane in cut.items()}
        shape = tuple(rows.shape)
        rows.copy_(layout.from_planes(part, shape, dtype, params, _CPU).dense())
    return value


def _cut(value: Tensor, piece: _Piece) -> Tensor:
    rows = value[piece.start_row :][: piece.source.rows] if value.shape else value
    return rows.reshape(piece.source.shape).to(torch_dtype(piece.source.dtype))


def _verify(path: Path, shard: Sequence[_Piece]) -> None:
    """Opens what was written with the safetensors library, as its next reader will."""
    try:
        with safe_open(path, framework="pt") as file:
            found = {
                name: (file.get_slice(name).get_dtype(), tuple(file.get_slice(name).get_shape()))
                for name in file.keys()  # noqa: SIM118 - the handle is no mapping
            }
    except SafetensorError as error:
        raise DestinationError(f"{path} does not read back: {error}.") from error
    if found != {piece.tensor.name: (piece.tensor.dtype, piece.tensor.shape) for piece in shard}:
        raise DestinationError(f"{path} does not read back as it was written; check the disk.")


def _write_assets(reader: BundleReader, output: Path) -> None:
    for asset in reader.manifest.assets:
        target = output / asset.name  # the reader admits plain relative paths only
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(reader.read_asset(asset.name))


def _is_exact(manifest: Manifest) -> bool:
    """In exact layouts throughout and not pruned."""
    exact = all(entry.layout in _EXACT_LAYOUTS for entry in manifest.tensors)
    return exact and not manifest.recipe.get("prune")
