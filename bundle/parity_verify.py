"""The part of verification that is about parity."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from tersor.bundle.damage import Damage
from tersor.bundle.manifest import Manifest
from tersor.bundle.parity_survey import ParityReport, Survey, geometry_of, survey
from tersor.bundle.sources import ByteSource


def check_parity_section(
    file: ByteSource, manifest: Manifest, *, intact: bool
) -> tuple[list[Damage], ParityReport | None]:
    """Checks every packet, and every block by the hashes in the packets.

    Args:
        file: inside `file.using()`.
        manifest: of the file.
        intact: whether everything outside the section is known to be what was written.

    Returns:
        What is wrong with the parity itself, and what can be said of a repair; None without parity.
    """
    if manifest.parity is None:
        return [], None
    damages: list[Damage] = []
    if geometry_of(file, manifest) is None:
        message = "the parity section does not have the length that the manifest's `parity` makes"
        damages.append(Damage(kind="parity", message=message, offset=manifest.parity.offset))
    found = survey(file, manifest)
    if found is None:
        return damages, None
    damages += _damaged_packets(found)
    report = found.report()
    if intact and found.damaged.any():
        message = (
            f"the parity was computed of other bytes: {report.damaged_blocks} blocks differ though "
            "every checksum matches; protect the bundle again"
        )
        damages.append(Damage(kind="parity", message=message, offset=manifest.parity.offset))
        report = replace(report, repairable=False)
    elif intact and report.bare_stripes:
        report = replace(report, repairable=True)  # computed anew from data that is whole
    return damages, report


def _damaged_packets(found: Survey) -> Iterator[Damage]:
    """One entry for packets that follow each other."""
    geometry = found.geometry
    places = np.flatnonzero(found.misplaced())
    for run in np.split(places, np.flatnonzero(np.diff(places) != 1) + 1) if len(places) else ():
        first, last = int(run[0]), int(run[-1])
        stripes = sorted({place % geometry.stripes for place in range(first, last + 1)})
        named = ", ".join(map(str, stripes[:5])) + (", …" if len(stripes) > 5 else "")
        packets = f"packet {first}" if first == last else f"packets {first} to {last}"
        yield Damage(
            kind="parity",
            message=f"parity {packets} of {geometry.packets} damaged (stripes {named})",
            offset=geometry.packet_offset(first),
            stored_bytes=(last - first + 1) * geometry.packet_bytes,
        )
