"""Giving parity to a bundle that is there, or other parity than it has."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from tersor.bundle.atomic_file import AtomicFile
from tersor.bundle.checked_copy import checked_bytes
from tersor.bundle.codecs import ZstdCodec
from tersor.bundle.container import pack_header
from tersor.bundle.decoding import default_threads
from tersor.bundle.ending import Ending
from tersor.bundle.errors import BundleError, BundleWriteError, path_text
from tersor.bundle.manifest import Parity
from tersor.bundle.manifest_json import manifest_to_json
from tersor.bundle.parity import check_fraction, plan_parity
from tersor.bundle.reader import read_manifest
from tersor.bundle.sources import FileSource

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProtectReport:
    """What became of a bundle."""

    bundle: Path  # that was written
    file_bytes: int
    parity_bytes: int
    replaced: bool  # parity that was there
    parity: Parity


def protect(
    path: str | os.PathLike[str],
    fraction: float,
    *,
    output: str | os.PathLike[str] | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> ProtectReport:
    """Writes a bundle anew with parity; weights and assets stay as they are, byte for byte.

    Args:
        path: the bundle. Parity that it has is replaced.
        fraction: parity blocks for each data block, 0.005 to 0.5.
        output: what to write; None replaces the bundle itself, as soon as the new one is whole.
        force: replace `output` if it exists.
        progress: called with the bytes done so far and the bytes in all.

    Raises:
        BundleCorruptError: the bundle is damaged; parity would preserve that.
        BundleError: it cannot be opened as a bundle.
        BundleWriteError: the file cannot be written, `fraction` is out of range, or `output` exists
            and `force` is not set.
    """
    check_fraction(fraction)
    source = Path(path)
    try:
        with FileSource.opened(source) as file, rewriting(source, output, force=force) as target:
            return _protect(file, target, fraction, progress)
    except BundleWriteError:
        raise
    except BundleError as error:
        raise type(error)(f"{path_text(source)}: {error}") from error


@contextmanager
def rewriting(
    source: Path, output: str | os.PathLike[str] | None, *, force: bool
) -> Iterator[AtomicFile]:
    """The file that a bundle is written to anew: `output`, or else the bundle itself.

    In its own place it keeps its permissions, and a link to it stays a link. Unless the block
    publishes the file, nothing is left of it.

    Raises:
        BundleWriteError: `output` exists and `force` is not set, or cannot be written.
    """
    if output is None:
        target = Path(os.path.realpath(source))
        file = AtomicFile(target, like=target)
    else:
        target = Path(output)
        if target.exists() and not force:
            raise BundleWriteError(
                f"{path_text(target)} exists; choose another name, or replace it with --force"
            )
        file = AtomicFile(target)
    try:
        yield file
    finally:
        file.discard()


def _protect(
    file: FileSource, target: AtomicFile, fraction: float, progress: Progress | None
) -> ProtectReport:
    codec = ZstdCodec()
    manifest = read_manifest(file, codec)
    # Version 1 has no parity, and its files are files of this version but for the number.
    target.append(pack_header())
    for piece in checked_bytes(file, manifest):
        target.append(piece.tobytes())
    parity = plan_parity(target.offset, fraction)
    text = manifest_to_json(replace(manifest, parity=parity))
    ending = Ending.of(text, target.offset, parity, codec)
    ending.append(target, threads=default_threads(), progress=progress)
    target.publish()
    return ProtectReport(
        bundle=target.path,
        file_bytes=target.offset,
        parity_bytes=ending.geometry.section_bytes if ending.geometry else 0,
        replaced=manifest.parity is not None,
        parity=parity,
    )
