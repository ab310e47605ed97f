"""The frame of the file: header, footer, and the manifest between them.

header, 64 bytes                          footer, 80 bytes, at the very end
 0  magic  89 54 53 52 0d 0a 1a 0a         0  manifest offset        u64
 8  format version  u32                    8  manifest stored bytes  u64
12  flags           u32 (none known: 0)   16  manifest raw bytes     u64
16  reserved, zero                        24  file bytes             u64
                                          32  BLAKE3 of the stored manifest, 32 bytes
                                          64  format version  u32
                                          68  reserved, zero  u32
                                          72  magic  54 53 52 45 4e 44 0d 0a
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Self

import numpy as np

from tersor.bundle import limits
from tersor.bundle.codecs import ZstdCodec
from tersor.bundle.digests import digest_bytes
from tersor.bundle.errors import (
    BundleCorruptError,
    BundleFormatError,
    BundleLimitError,
    BundleTruncatedError,
)

# What is written. Version 1 has fewer codecs and filters, no tables, no shared chunks, no parity:
# every file of it is a file of version 2 but for its number.
FORMAT_VERSION = 2
READABLE_VERSIONS = (1, 2)

# A byte above 127 and both line ends, so that a transfer in text mode breaks the very first bytes.
HEADER_MAGIC = b"\x89TSR\r\n\x1a\n"
FOOTER_MAGIC = b"TSREND\r\n"

_HEADER = struct.Struct("<8sII48s")
_FOOTER = struct.Struct("<QQQQ32sII8s")
HEADER_BYTES = _HEADER.size
FOOTER_BYTES = _FOOTER.size


@dataclass(frozen=True, slots=True, kw_only=True)
class Footer:
    """Where the manifest is, and how long the file must be."""

    manifest_offset: int
    manifest_stored_bytes: int
    manifest_raw_bytes: int
    file_bytes: int
    manifest_digest: bytes  # BLAKE3 of the stored manifest

    def pack(self) -> bytes:
        """The 80 bytes of the footer."""
        return _FOOTER.pack(
            self.manifest_offset,
            self.manifest_stored_bytes,
            self.manifest_raw_bytes,
            self.file_bytes,
            self.manifest_digest,
            FORMAT_VERSION,
            0,
            FOOTER_MAGIC,
        )

    @classmethod
    def unpack(cls, data: bytes, file_bytes: int, version: int | None = None) -> Self:
        """Parses and validates the last 80 bytes of a file of `file_bytes`.

        `version` is the header's; None where the header is damaged or not looked at.

        Raises:
            BundleTruncatedError: the file was cut off (or something was appended).
            BundleFormatError: a field contradicts another.
            BundleLimitError: the manifest is larger than this build reads.
        """
        offset, stored, raw, declared, digest, repeated, reserved, magic = _FOOTER.unpack(data)
        if magic != FOOTER_MAGIC:
            raise BundleTruncatedError(
                f"the file is truncated: it starts as a bundle but after {file_bytes} bytes does "
                "not end as one; copy or convert it again"
            )
        if declared > file_bytes:
            raise BundleTruncatedError(
                f"the file is truncated: it has {file_bytes} bytes of {declared}; copy it again"
            )
        if declared != file_bytes:
            raise BundleFormatError(
                f"the file has {file_bytes} bytes, but its footer says {declared}"
            )
        expected = READABLE_VERSIONS if version is None else (version,)
        if repeated not in expected or reserved != 0:
            raise BundleFormatError(
                f"the footer has version {repeated} and reserved field {reserved}; expected "
                f"{' or '.join(map(str, expected))}{' as in the header' if version else ''}, and 0"
            )
        if stored > limits.MAX_MANIFEST_STORED_BYTES or raw > limits.MAX_MANIFEST_RAW_BYTES:
            raise BundleLimitError(
                f"the manifest has {stored} stored and {raw} raw bytes; this build reads at most "
                f"{limits.MAX_MANIFEST_STORED_BYTES} and {limits.MAX_MANIFEST_RAW_BYTES}"
            )
        if offset < HEADER_BYTES or offset + stored + FOOTER_BYTES != file_bytes:
            raise BundleFormatError(
                f"the manifest of {stored} bytes at offset {offset} does not end at the footer "
                f"of a file of {file_bytes} bytes"
            )
        if stored == 0 or raw > stored * ZstdCodec.max_ratio:
            raise BundleFormatError(
                f"a manifest of {stored} stored bytes cannot hold {raw} raw bytes"
            )
        return cls(
            manifest_offset=offset,
            manifest_stored_bytes=stored,
            manifest_raw_bytes=raw,
            file_bytes=declared,
            manifest_digest=digest,
        )


def pack_header() -> bytes:
    """The 64 bytes of the header."""
    return _HEADER.pack(HEADER_MAGIC, FORMAT_VERSION, 0, b"")


def check_header(data: bytes) -> int:
    """Validates the first bytes of a file, 64 unless it is shorter; the format version.

    Raises:
        BundleTruncatedError: shorter than a header, but a beginning of one.
        BundleFormatError: not a bundle, or one of another version.
    """
    if data[: len(HEADER_MAGIC)] != HEADER_MAGIC[: len(data)] or not data:
        raise BundleFormatError(
            f"not a bundle: it starts with {data[:8].hex(' ') or 'nothing'}, expected "
            f"{HEADER_MAGIC.hex(' ')}"
        )
    if len(data) < HEADER_BYTES:
        raise BundleTruncatedError(
            f"the file is truncated: it has {len(data)} bytes, fewer than a header; copy it again"
        )
    _, version, flags, reserved = _HEADER.unpack(data)
    if version not in READABLE_VERSIONS:
        raise BundleFormatError(
            f"the bundle has format version {version}; this build reads versions "
            f"{' and '.join(map(str, READABLE_VERSIONS))}, so update tersor"
        )
    if flags != 0 or any(reserved):
        raise BundleFormatError(
            f"the header has flags {flags:#x} or reserved bytes that this build does not know; "
            "update tersor"
        )
    return int(version)


def pack_manifest(text: bytes, offset: int, codec: ZstdCodec) -> tuple[bytes, Footer]:
    """The stored manifest, and the footer of the file that ends with both."""
    stored = codec.encode_text(np.frombuffer(text, np.uint8))
    if len(text) > limits.MAX_MANIFEST_RAW_BYTES or len(stored) > limits.MAX_MANIFEST_STORED_BYTES:
        raise BundleLimitError(
            f"the manifest has {len(text)} raw and {len(stored)} stored bytes; a bundle holds at "
            f"most {limits.MAX_MANIFEST_RAW_BYTES} and {limits.MAX_MANIFEST_STORED_BYTES}"
        )
    footer = Footer(
        manifest_offset=offset,
        manifest_stored_bytes=len(stored),
        manifest_raw_bytes=len(text),
        file_bytes=offset + len(stored) + FOOTER_BYTES,
        manifest_digest=bytes.fromhex(digest_bytes(stored)),
    )
    return stored, footer


def unpack_manifest(stored: bytes, footer: Footer, codec: ZstdCodec) -> bytes:
    """The manifest's JSON text.

    Raises:
        BundleCorruptError: the digest does not match, or the bytes do not decode.
    """
    if digest_bytes(stored) != footer.manifest_digest.hex():
        raise BundleCorruptError(
            "the manifest is damaged: its BLAKE3 digest does not match the footer; copy the "
            "bundle again"
        )
    return codec.decode(np.frombuffer(stored, np.uint8), footer.manifest_raw_bytes).tobytes()
