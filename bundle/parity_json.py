"""The manifest's optional field `parity` as JSON and back."""

from __future__ import annotations

from typing import Any

from tersor.bundle import limits
from tersor.bundle.json_fields import Fields
from tersor.bundle.manifest import Parity


def parity_to_json(parity: Parity) -> dict[str, Any]:
    """The field's value."""
    return {
        "offset": parity.offset,
        "block_bytes": parity.block_bytes,
        "data_blocks": parity.data_blocks,
        "parity_blocks": parity.parity_blocks,
    }


def parity_from_json(manifest: Fields) -> Parity | None:
    """Takes the field from a manifest; None if it is not there.

    Raises:
        BundleFormatError: it is not an object of four integers in range.
    """
    if not manifest.has("parity"):
        return None
    fields = Fields(manifest.take("parity"), "parity of the manifest")
    parity = Parity(
        offset=fields.integer("offset", 0, limits.MAX_FILE_BYTES),
        block_bytes=fields.integer("block_bytes", 1, limits.MAX_PARITY_BLOCK_BYTES),
        data_blocks=fields.integer("data_blocks", 1, limits.MAX_STRIPE_BLOCKS),
        parity_blocks=fields.integer("parity_blocks", 1, limits.MAX_STRIPE_BLOCKS),
    )
    fields.finish()
    return parity
