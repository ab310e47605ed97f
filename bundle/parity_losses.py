"""What is lost where more is damaged than parity restores, as far as a manifest can be read."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator

import numpy as np

from tersor.bundle.checked_copy import check_place
from tersor.bundle.codecs import ZstdCodec
from tersor.bundle.container import FOOTER_BYTES, HEADER_BYTES, Footer, unpack_manifest
from tersor.bundle.damage import Damage
from tersor.bundle.decoding import memory_for
from tersor.bundle.errors import BundleError
from tersor.bundle.manifest import Manifest
from tersor.bundle.manifest_json import manifest_from_json
from tersor.bundle.parity_restore import Restorer
from tersor.bundle.parity_source import DamagedFile
from tersor.bundle.parity_survey import Survey
from tersor.bundle.places import places
from tersor.bundle.sources import ByteSource


def losses(file: ByteSource, manifest: Manifest | None, survey: Survey) -> tuple[Damage, ...]:
    """Names what damaged blocks of lost stripes take with them.

    Args:
        file: inside `file.using()`.
        manifest: of the file; None if there is no way to read it.
        survey: of the file.
    """
    geometry = survey.geometry
    ranges = list(_lost_ranges(survey))
    found = []
    if ranges[0][0] < HEADER_BYTES:
        found.append(Damage(kind="header", message="the header may be lost", offset=0))
    if manifest is not None:
        source = DamagedFile(file)
        ends = [end for _, end in ranges]
        for place in places(manifest):
            at = bisect_right(ends, place.chunk.offset)
            # Bytes of the block beside a chunk that is whole may be all that is damaged.
            if (
                at < len(ends)
                and ranges[at][0] < place.end
                and (damage := check_place(source, place))
            ):
                found.append(damage)
    if ranges[-1][1] > geometry.manifest_offset:
        found.append(
            Damage(
                kind="manifest",
                message="manifest and footer are lost"
                if manifest is None
                else "manifest or footer may be lost",
                offset=geometry.manifest_offset,
                stored_bytes=geometry.file_bytes - geometry.manifest_offset,
            )
        )
    return tuple(found)


def restored_manifest(survey: Survey, source: DamagedFile) -> Manifest | None:
    """The manifest of a damaged file, from its blocks restored; None if they are lost."""
    geometry = survey.geometry
    size = geometry.file_bytes - geometry.manifest_offset
    codec = ZstdCodec()
    try:
        with memory_for("the manifest", size):
            tail = Restorer(survey, source).read(geometry.offset, size)
        footer = Footer.unpack(tail[-FOOTER_BYTES:], geometry.file_bytes)
        with memory_for("the manifest", footer.manifest_raw_bytes):
            text = unpack_manifest(tail[:-FOOTER_BYTES], footer, codec)
            return manifest_from_json(text, data_end=footer.manifest_offset)
    except BundleError:
        return None


def _lost_ranges(survey: Survey) -> Iterator[tuple[int, int]]:
    """Where in the file (start, end) the damaged blocks of lost stripes are, in order."""
    lost = np.zeros(survey.geometry.stripes, np.bool_)
    lost[[stripe.stripe for stripe in survey.lost_stripes()]] = True
    blocks = np.flatnonzero(survey.damaged)
    for block in blocks[lost[blocks % len(lost)]]:
        for offset, size in survey.geometry.block_pieces(int(block)):
            yield offset, offset + size
