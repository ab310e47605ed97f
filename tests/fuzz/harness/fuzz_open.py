"""What every opened bundle is held to, whatever it was made of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random

import numpy as np
from memory_source import MemorySource, RemoteMemorySource

from tersor.bundle.digests import digest_bytes
from tersor.bundle.dtypes import AnyArray, Geometry, numpy_dtype
from tersor.bundle.errors import BundleError
from tersor.bundle.manifest import Plane
from tersor.bundle.reader import BundleReader
from tersor.bundle.validate import stored_planes
from tersor.bundle.verify import VerifyReport, verify

ACCEPTED = "accepted"

# What a host that serves strangers' bundles would read at most: of a larger plane only row 0, if
# its block is not much larger.
PLANE_BYTES = 16 << 20
BLOCK_BYTES = 64 << 20


class Finding(Exception):  # noqa: N818 - not an error of what is tested alone
    """The code under test broke a promise."""


@dataclass(slots=True)
class _Content:
    """What was read of a bundle."""

    read: int = 0
    refused: list[str] = field(default_factory=list)  # the errors' names
    changed: int = 0  # planes that decode to other bytes than their digest says
    partly: int = 0  # planes and assets that were too large to read whole


def examine(data: bytes, rng: Random, *, verify_share: float, changed: bool = False) -> str:
    """Opens a bundle, reads all of it within reason, and for a share of cases verifies it.

    Args:
        data: the file.
        rng: decides whether to verify.
        verify_share: how often.
        changed: the file differs, in a byte that means something, from one whose digests it still
            has: verification must say so.

    Returns:
        `ACCEPTED`, or the name of the first error.

    Raises:
        Finding: a promise was broken.
    """
    try:
        reader = BundleReader.open(MemorySource(data), threads=1)
    except BundleError as error:
        return refusal(error)
    with reader:
        content = _read(reader)
        manifest = reader.manifest
        declared = sum(plane.raw_bytes for plane in stored_planes(manifest))
        declared += sum(asset.chunk.raw_bytes for asset in manifest.assets)
    if rng.random() < verify_share and declared <= BLOCK_BYTES:
        source = RemoteMemorySource(data) if rng.random() < 0.2 else MemorySource(data)
        _compare(content, verify(source), changed=changed)
    return content.refused[0] if content.refused else ACCEPTED


def refusal(error: BundleError) -> str:
    """The name of an error that says what is wrong, in one line."""
    text = str(error)
    if not text or not text.isprintable():
        raise Finding(f"the message of {type(error).__name__} is not printable: {text!r}")
    if len(text) > 20_000:
        raise Finding(f"a message has {len(text)} characters: {text[:200]!r}")
    return type(error).__name__


def check_array(plane: Plane, array: AnyArray, rows: int) -> None:
    """Raises Finding unless `array` is `rows` rows of a plane as its manifest declares it."""
    shape = (rows, *plane.shape[1:]) if plane.shape else ()
    if array.dtype != numpy_dtype(plane.dtype) or array.shape != shape:
        raise Finding(f"a plane {plane.shape} of {plane.dtype} is {array.shape} {array.dtype}")


def readable_planes(reader: BundleReader) -> Iterator[tuple[Plane, tuple[int, int] | None]]:
    """Each plane at rest with the rows to read of it: None for all."""
    for plane in stored_planes(reader.manifest):
        if plane.raw_bytes <= PLANE_BYTES:
            yield plane, None
        elif Geometry.of_plane(plane).block_bytes <= BLOCK_BYTES:
            yield plane, (0, 1)


def _read(reader: BundleReader) -> _Content:
    content = _Content()
    for plane, rows in readable_planes(reader):
        try:
            array = reader.read_plane(plane, rows=rows)
        except BundleError as error:
            content.refused.append(refusal(error))
            continue
        check_array(plane, array, Geometry.of_plane(plane).rows if rows is None else 1)
        if rows is None:
            content.read += 1
            raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            content.changed += digest_bytes(raw.data) != plane.digest
    for asset in reader.manifest.assets:
        if asset.chunk.raw_bytes > PLANE_BYTES:
            content.partly += 1
            continue
        try:
            size = len(reader.read_asset(asset.name))
        except BundleError as error:
            content.refused.append(refusal(error))
            continue
        if size != asset.chunk.raw_bytes:
            raise Finding(f"an asset of {asset.chunk.raw_bytes} bytes has {size}")
    planes = sum(1 for _ in stored_planes(reader.manifest))
    content.partly += planes - content.read - len(content.refused)
    return content


def _compare(content: _Content, report: VerifyReport, *, changed: bool) -> None:
    """Verification must find what reading finds, and nothing that it does not."""
    for damage in report.damages:
        if not damage.message.isprintable():
            raise Finding(f"a damage is not printable: {damage.message!r}")
    if report.ok:
        if content.refused:
            raise Finding(f"verification passes, but reading raises {content.refused[0]}")
        if content.changed:
            raise Finding("verification passes, but a plane has another digest")
        if changed:
            raise Finding("verification passes, but the file is not what was written")
    elif content.partly <= 0 and not content.refused and not content.changed:
        kinds = {damage.kind for damage in report.damages}
        if not kinds <= {"padding", "digest", "parity"}:
            raise Finding(f"everything reads, but verification lists {sorted(kinds)}")
