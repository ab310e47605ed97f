"""The end of a bundle's file: the parity section, if there is one, the manifest and the footer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Self

from tersor.bundle import limits
from tersor.bundle.atomic_file import AtomicFile
from tersor.bundle.codecs import ZstdCodec
from tersor.bundle.container import FOOTER_BYTES, Footer, pack_manifest
from tersor.bundle.manifest import Parity
from tersor.bundle.parity import ParityGeometry
from tersor.bundle.parity_encode import encode_section


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """What follows the assets, ready to be appended."""

    stored_manifest: bytes
    footer: Footer
    geometry: ParityGeometry | None  # None: no parity

    @classmethod
    def of(cls, text: bytes, data_end: int, parity: Parity | None, codec: ZstdCodec) -> Self:
        """The end of a file whose assets end at `data_end`.

        Args:
            text: the manifest's JSON, with `parity` in it.
            data_end: where parity, or else the manifest, begins but for alignment.
            parity: as planned for `data_end`.
            codec: that compresses the manifest.

        Raises:
            BundleLimitError: the manifest is too large.
        """
        stored, footer = pack_manifest(text, data_end, codec)
        if parity is None:
            return cls(stored_manifest=stored, footer=footer, geometry=None)
        # The section's length follows from the manifest's, whose text only says where it begins.
        geometry = ParityGeometry.of(parity, len(stored) + FOOTER_BYTES)
        footer = replace(
            footer, manifest_offset=geometry.manifest_offset, file_bytes=geometry.file_bytes
        )
        return cls(stored_manifest=stored, footer=footer, geometry=geometry)

    def append(
        self,
        file: AtomicFile,
        *,
        threads: int = 1,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Appends it, and computes the parity of all that is in the file then.

        Args:
            file: written up to `data_end`.
            threads: that compute parity together; the bytes do not depend on it.
            progress: called with the bytes that parity was computed of, and the bytes in all.

        Raises:
            BundleWriteError: the file cannot be written.
        """
        if self.geometry is not None:
            file.align(limits.PARITY_BLOCK_UNIT)
            assert file.offset == self.geometry.offset
            file.reserve(self.geometry.section_bytes)
        file.append(self.stored_manifest)
        file.append(self.footer.pack())
        if self.geometry is not None:
            encode_section(file, self.geometry, threads=threads, progress=progress)
