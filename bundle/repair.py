"""Repairing a bundle by its parity: the identical file, or a refusal that says what is lost."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tersor.bundle.atomic_file import AtomicFile
from tersor.bundle.checked_copy import damages
from tersor.bundle.codecs import ZstdCodec
from tersor.bundle.damage import Damage
from tersor.bundle.errors import BundleError, BundleParityError, BundleWriteError, path_text
from tersor.bundle.manifest import Manifest
from tersor.bundle.parity import ParityGeometry
from tersor.bundle.parity_encode import Encoder, encode_stripes
from tersor.bundle.parity_losses import losses, restored_manifest
from tersor.bundle.parity_restore import Restorer
from tersor.bundle.parity_source import DamagedFile
from tersor.bundle.parity_survey import ParityReport, Progress, Survey, geometry_of, survey
from tersor.bundle.protect import rewriting
from tersor.bundle.reader import read_manifest
from tersor.bundle.sources import FileSource

_PIECE_BYTES = 1 << 20
_SHOWN = 3  # stripes and losses that a message names; the report has all


@dataclass(frozen=True, slots=True, kw_only=True)
class RepairReport:
    """What was damaged, and what became of it."""

    bundle: Path
    output: Path | None  # None: nothing was written
    file_bytes: int  # of the whole bundle
    found_bytes: int  # of the damaged one: fewer if it was cut off, more if something was appended
    restored_blocks: int
    restored_packets: int
    parity: ParityReport  # of the damaged file
    lost: tuple[Damage, ...] = ()  # by tensor and chunk; empty if no manifest could be read


def repair(
    path: str | os.PathLike[str],
    *,
    output: str | os.PathLike[str] | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> RepairReport:
    """Restores the file that the parity was computed of, byte for byte, if parity suffices.

    Neither header, manifest nor footer need be readable: one whole packet is enough to begin with.

    Args:
        path: the bundle.
        output: what to write; None replaces the bundle itself, as soon as the new one is whole and
            checked, and writes nothing if nothing is damaged.
        force: replace `output` if it exists.
        progress: called with the bytes looked at so far and the bytes in all.

    Raises:
        BundleParityError: there is no parity, or more is damaged than it restores: `report` of the
            error says what is lost. The bundle stays as it is.
        BundleError: the file cannot be opened.
        BundleWriteError: the file cannot be written, or `output` exists and `force` is not set.
    """
    source = Path(path)
    try:
        with FileSource.opened(source) as file:
            return _Repair(file, progress).run(output, force=force)
    except BundleWriteError:
        raise
    except BundleParityError as error:
        raise BundleParityError(f"{path_text(source)}: {error}", error.report) from error
    except BundleError as error:
        raise type(error)(f"{path_text(source)}: {error}") from error


class _Repair:
    """One repair of one open file."""

    def __init__(self, file: FileSource, progress: Progress | None) -> None:
        self._file = file
        self._source = DamagedFile(file)
        self._manifest = _manifest_of(file)
        found = survey(file, self._manifest, progress)
        if found is None:
            raise BundleParityError(
                "the bundle has no parity, so that nothing can be restored; copy or convert it "
                "again"
                if self._manifest is not None
                else "no parity was found in the file, so that nothing can be restored; copy or "
                "convert the bundle again"
            )
        self._survey: Survey = found
        self._geometry: ParityGeometry = found.geometry
        state = found.report()
        self._report = RepairReport(
            bundle=file.path,
            output=None,
            file_bytes=self._geometry.file_bytes,
            found_bytes=file.size,
            restored_blocks=0,
            restored_packets=0,
            parity=state,
        )

    def run(self, output: str | os.PathLike[str] | None, *, force: bool) -> RepairReport:
        state = self._report.parity
        self._check_parity_is_of_this_file()
        if state.lost_stripes:
            raise self._refusal()
        whole = not state.damaged and self._file.size == self._geometry.file_bytes
        if whole and output is None:
            return self._report
        with rewriting(self._file.path, output, force=force) as target:
            self._copy(target)
            self._restore(target)
            self._check(target)
            target.publish()
            return replace(
                self._report,
                output=target.path,
                restored_blocks=state.damaged_blocks,
                restored_packets=state.damaged_packets,
            )

    def _check_parity_is_of_this_file(self) -> None:
        """A valid bundle in which blocks differ from their hashes was changed after its parity."""
        if self._manifest is None or not self._survey.damaged.any():
            return
        if not damages(self._source, self._manifest):
            raise BundleParityError(
                "the bundle is whole, but its parity was computed of other bytes; nothing is to be "
                "repaired, so protect the bundle again",
                self._report,
            )

    def _copy(self, target: AtomicFile) -> None:
        """The file as it is, cut or filled up to the length it should have."""
        size = self._geometry.file_bytes
        there = min(size, self._file.size)
        piece = np.empty(_PIECE_BYTES, np.uint8)
        for at in range(0, there, _PIECE_BYTES):
            part = piece[: there - at]
            self._source.read_into(at, part)
            target.append(part.tobytes())
        target.reserve(size - there)

    def _restore(self, target: AtomicFile) -> None:
        """Writes restored blocks and packets over the damaged ones, but for bare stripes."""
        survey, geometry = self._survey, self._geometry
        restorer = Restorer(survey, self._source)
        encoder = Encoder(geometry)
        misplaced = survey.misplaced()
        for stripe in survey.damaged_stripes():
            if survey.bare[stripe]:
                continue
            rows = restorer.rows(int(stripe))
            for row, block in zip(rows, survey.blocks_of(int(stripe)), strict=False):
                if survey.damaged[block]:
                    at = 0
                    for offset, size in geometry.block_pieces(block):
                        target.write_at(offset, row[at : at + size].data)
                        at += size
            indices = np.flatnonzero(misplaced[stripe :: geometry.stripes]).tolist()
            if indices:
                encoder.write_packets(target, int(stripe), rows, indices)

    def _check(self, target: AtomicFile) -> None:
        """Looks at all of the new file before it may replace anything."""
        with target.opened() as written:
            try:
                manifest = read_manifest(written, ZstdCodec())
                fits = manifest.parity is not None
                fits = fits and geometry_of(written, manifest) == self._geometry
            except BundleError as error:
                bare = self._report.parity.bare_stripes
                why = f"; {bare} stripes have no whole packet left" if bare else ""
                raise BundleParityError(
                    f"what the parity restores is no bundle: {error}{why}", self._report
                ) from error
            if not fits:
                raise BundleParityError(
                    "what the parity restores is a bundle with other parity", self._report
                )
            self._encode_bare(written, target, manifest)
            after = Survey(written, written.size, self._geometry)
            if after.report().damaged:
                raise BundleParityError("the file changed while it was repaired; try again")

    def _encode_bare(self, written: FileSource, target: AtomicFile, manifest: Manifest) -> None:
        """Packets of stripes that have none: the checksums tell whether their data is whole."""
        bare = np.flatnonzero(self._survey.bare)
        if not len(bare):
            return
        found = damages(written, manifest)
        if found:
            raise BundleParityError(
                f"{len(bare)} of {self._geometry.stripes} stripes have no whole packet left, and "
                f"their data is damaged: {_some([damage.described() for damage in found])}; "
                "nothing was written",
                replace(self._report, lost=tuple(found)),
            )
        encoder = Encoder(self._geometry)
        for stripe in bare.tolist():
            encode_stripes(written, target, encoder, range(stripe, stripe + 1))

    def _refusal(self) -> BundleParityError:
        manifest = self._manifest or restored_manifest(self._survey, self._source)
        report = replace(self._report, lost=losses(self._file, manifest, self._survey))
        stripes = _some(
            [
                f"stripe {lost.stripe} has {lost.damaged_blocks} damaged blocks for "
                f"{lost.whole_packets} whole packets, {lost.excess} too many"
                for lost in report.parity.lost_stripes
            ]
        )
        lost = _some([damage.described() for damage in report.lost])
        return BundleParityError(
            f"more is damaged than the parity restores: {stripes}"
            + (f"; lost: {lost}" if lost else "")
            + ("" if manifest else "; no manifest can be read that names tensors")
            + "; nothing was written",
            report,
        )


def _manifest_of(file: FileSource) -> Manifest | None:
    try:
        return read_manifest(file, ZstdCodec())
    except BundleError:
        return None


def _some(items: list[str]) -> str:
    more = len(items) - _SHOWN
    return "; ".join(items[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
