"""Restoring a stripe: its damaged data blocks from the whole ones and the packets."""

from __future__ import annotations

import numpy as np

from tersor.bundle.decoding import Readable
from tersor.bundle.digests import checksum
from tersor.bundle.dtypes import ByteArray
from tersor.bundle.errors import BundleParityError
from tersor.bundle.parity_packet import block_of
from tersor.bundle.parity_source import read_blocks
from tersor.bundle.parity_survey import Survey


class Restorer:
    """Stripes of a surveyed file as they were when the parity was computed."""

    def __init__(self, survey: Survey, source: Readable) -> None:
        import zfec

        geometry = survey.geometry
        self._survey = survey
        self._source = source
        self._fec = zfec.Decoder(
            geometry.data_blocks, geometry.data_blocks + geometry.parity_blocks
        )

    def rows(self, stripe: int) -> ByteArray:
        """All data blocks of a stripe, [data_blocks, block_bytes].

        Raises:
            BundleParityError: its packets contradict each other. A stripe of which more is damaged
                than it has packets must not be asked for.
        """
        survey, geometry = self._survey, self._survey.geometry
        rows = np.zeros((geometry.data_blocks, geometry.block_bytes), np.uint8)
        blocks = survey.blocks_of(stripe)
        for row, block in zip(rows, blocks, strict=False):
            read_blocks(self._source, geometry, block, 1, row)
        damaged = [at for at, block in enumerate(blocks) if survey.damaged[block]]
        if not damaged:
            return rows
        numbers = list(range(geometry.data_blocks))
        known: list[memoryview] = [row.data for row in rows]
        whole = (place for place in survey.places_of(stripe) if survey.packets[place] >= 0)
        packet = np.empty(geometry.packet_bytes, np.uint8)
        for at, place in zip(damaged, whole, strict=False):
            self._source.read_into(int(survey.packets[place]), packet)
            known[at] = memoryview(bytes(block_of(packet.data, geometry)))
            numbers[at] = geometry.data_blocks + place // geometry.stripes
        decoded = self._fec.decode(tuple(known), tuple(numbers))
        for at in damaged:
            if checksum(decoded[at]) != survey.hashes[blocks[at]]:
                raise BundleParityError(
                    f"the parity contradicts itself: block {blocks[at]}, restored from it, does "
                    "not have the hash that its packets give"
                )
            rows[at] = np.frombuffer(decoded[at], np.uint8)
        return rows

    def read(self, offset: int, size: int) -> bytes:
        """Protected bytes, restored where damaged; those of lost stripes as they are.

        Args:
            offset: among the protected bytes.
            size: how many.
        """
        geometry = self._survey.geometry
        lost = {stripe.stripe for stripe in self._survey.lost_stripes()}
        first, last = offset // geometry.block_bytes, (offset + size - 1) // geometry.block_bytes
        data = np.empty((last - first + 1, geometry.block_bytes), np.uint8)
        for row, block in zip(data, range(first, last + 1), strict=True):
            stripe = block % geometry.stripes
            if self._survey.damaged[block] and stripe not in lost:
                row[:] = self.rows(stripe)[block // geometry.stripes]
            else:
                read_blocks(self._source, geometry, block, 1, row)
        start = offset - first * geometry.block_bytes
        return data.reshape(-1)[start : start + size].tobytes()
