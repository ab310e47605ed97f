"""The end of a bundle's file: the parity section, if there is one, the manifest and the footer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from tersor.bundle import limits
from tersor.bundle.atomic_file import AtomicFile
from tersor.bundle.codecs import ZstdCodec
from tersor.bundle.container import FOOTER_BYTES, pack_manifest
from tersor.bundle.manifest import Parity
from tersor.bundle.parity import ParityGeometry
from tersor.bundle.parity_encode import encode_section


def append_end(
    file: AtomicFile,
    text: bytes,
    parity: Parity | None,
    codec: ZstdCodec,
    *,
    threads: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Appends everything that follows the assets; returns the size of the parity section.

    Args:
        file: written up to the end of the assets.
        text: the manifest's JSON, with `parity` in it.
        parity: where the section goes and what its stripes are.
        codec: that compresses the manifest.
        threads: that compute parity together; the bytes do not depend on it.
        progress: called with the bytes that parity was computed of, and the bytes in all.

    Raises:
        BundleLimitError: the manifest is too large.
        BundleWriteError: the file cannot be written.
    """
    stored, footer = pack_manifest(text, file.offset, codec)
    if parity is None:
        file.append(stored)
        file.append(footer.pack())
        return 0
    file.align(limits.PARITY_BLOCK_UNIT)
    assert file.offset == parity.offset
    geometry = ParityGeometry.of(parity, len(stored) + FOOTER_BYTES)
    file.reserve(geometry.section_bytes)
    file.append(stored)
    footer = replace(
        footer, manifest_offset=geometry.manifest_offset, file_bytes=geometry.file_bytes
    )
    file.append(footer.pack())
    encode_section(file, geometry, threads=threads, progress=progress)
    return geometry.section_bytes
