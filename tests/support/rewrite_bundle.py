"""Bundles made from a good one: other assets, or a flipped byte in a tensor."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tersor.bundle.reader import BundleReader
from tersor.bundle.writer import BundleWriter, PlaneData


def with_assets(source: Path, target: Path, assets: Mapping[str, bytes | None]) -> Path:
    """A copy of `source` whose assets are replaced, or left out where None."""
    with BundleReader.open(source) as reader:
        manifest = reader.manifest
        groups = {name: group.name for group in manifest.groups for name in group.tensors}
        with BundleWriter(
            target,
            program=manifest.program,
            source=manifest.source,
            recipe=manifest.recipe,
            codec="raw",
        ) as writer:
            for entry in manifest.tensors:
                writer.add_tensor(
                    name=entry.name,
                    group=groups[entry.name],
                    shape=entry.shape,
                    dtype=entry.dtype,
                    layout=entry.layout,
                    params=entry.params,
                    planes={
                        plane.name: PlaneData(dtype=plane.dtype, array=reader.read_plane(plane))
                        for plane in entry.planes
                    },
                )
            kept = {asset.name: reader.read_asset(asset.name) for asset in manifest.assets}
            for name, data in {**kept, **assets}.items():
                if data is not None:
                    writer.add_asset(name, data, "application/json")
            writer.commit()
    return target


def flip_a_byte(bundle: Path, tensor: str) -> None:
    """Damages one stored byte of `tensor`, in place; a second call repairs it."""
    with BundleReader.open(bundle) as reader:
        chunk = reader.manifest.tensor(tensor).planes[0].streams[0].chunks[0]
    with bundle.open("r+b") as file:
        file.seek(chunk.offset + chunk.stored_bytes // 2)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 0x40]))
