"""What two bundles share, from their manifests alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_bundles import (
    add,
    decoder_program,
    forge_text,
    graph_program,
    noise,
    weights,
    write_tiny,
    writer,
)

from tersor.bundle.diff import BundleDiff, Difference, diff
from tersor.bundle.dtypes import AnyArray
from tersor.bundle.manifest import Chunk, Manifest
from tersor.bundle.plane_data import PlaneData
from tersor.bundle.protect import protect
from tersor.bundle.reader import BundleReader

GOLDEN = Path(__file__).parent / "golden"


def compared(a: Path, b: Path) -> BundleDiff:
    with BundleReader.open(a) as first, BundleReader.open(b) as second:
        return diff(first, second)


def chunks_at_rest(manifest: Manifest) -> dict[int, Chunk]:
    """By offset: planes, tables and assets, each place once."""
    chunks = {asset.chunk.offset: asset.chunk for asset in manifest.assets}
    for tensor in manifest.tensors:
        for plane in tensor.planes:
            for stream in plane.streams:
                for chunk in (stream.table, *stream.chunks):
                    if chunk is not None:
                        chunks[chunk.offset] = chunk
    return chunks


def write(path: Path, tensors: Mapping[str, AnyArray], **changes: Any) -> Path:
    """A bundle of i8 and bf16 tensors, and one file."""
    with writer(path, **changes) as target:
        for name, array in tensors.items():
            add(target, name, "bf16" if array.dtype == np.uint16 else "i8", array)
        target.add_asset("notes.txt", b"the same in all of them" * 9, "text/plain")
        target.commit()
    return path


def test_a_bundle_shares_everything_with_itself(bundle: Path) -> None:
    found = compared(bundle, bundle)
    with BundleReader.open(bundle) as reader:
        chunks = chunks_at_rest(reader.manifest)
    assert found.same_content
    assert not found.fields
    assert found.a == found.b
    assert found.a.format_version == 2
    assert found.chunks.a == found.chunks.b
    assert found.chunks.a.count == found.a.chunks == len(chunks)
    assert found.chunks.a.stored_bytes == sum(chunk.stored_bytes for chunk in chunks.values())
    assert found.chunks.a.share == found.chunks.a.stored_bytes / bundle.stat().st_size
    assert found.planes.a.count == found.a.planes == 6  # head is the embedding again
    assert len(found.tensors.equal) == found.a.tensors == 6
    assert found.assets.equal == ("tokenizer.json", "licences/LICENSE")
    assert not (*found.tensors.changed, *found.tensors.only_a, *found.tensors.only_b)


def test_equal_weights_are_found_behind_other_codecs(tmp_path: Path) -> None:
    matrix = weights((128, 128))
    a = write(tmp_path / "a", {"x": matrix}, codec="zstd")
    b = write(tmp_path / "b", {"x": matrix}, codec="raw")
    found = compared(a, b)
    assert found.same_content
    assert found.tensors.equal == ("x",)
    assert found.planes.a.count == found.planes.b.count == 1
    assert found.planes.a.stored_bytes < found.planes.b.stored_bytes == matrix.nbytes
    assert found.chunks.b.count == 1  # the file of notes: no chunk of the weights is equal
    assert found.chunks.b.stored_bytes < 100


def test_bytes_at_hand_are_counted_in_the_other_file(tmp_path: Path) -> None:
    """Half of B's noise is in A, under another name."""
    shared, other = noise(1 << 16, 1).view(np.int8), noise(1 << 16, 2).view(np.int8)
    a = write(tmp_path / "a", {"x": shared})
    b = write(tmp_path / "b", {"y": shared, "z": other})
    found = compared(a, b)
    assert found.tensors.only_a == ("x",)
    assert found.tensors.only_b == ("y", "z")
    assert found.planes.b.stored_bytes == 1 << 16
    notes = found.chunks.b.stored_bytes - (1 << 16)
    assert 0 < notes < 100
    assert found.chunks.b.share == pytest.approx(found.chunks.b.stored_bytes / b.stat().st_size)
    assert not found.same_content


def test_chunks_that_planes_share_count_once(tmp_path: Path) -> None:
    """Two planes of other shapes, stored as the very same chunk."""
    data = noise(4096).view(np.int8)
    a = write(tmp_path / "a", {"x": data.reshape(64, 64), "y": data.reshape(32, 128)})
    found = compared(a, a)
    assert found.a.planes == 2
    assert found.a.chunks == 2
    assert found.planes.a.stored_bytes == 4096


def test_what_changed_in_a_tensor_is_told(tmp_path: Path) -> None:
    def layouts(path: Path, layout: str, group: int, codes: int, shape: tuple[int, int]) -> Path:
        with writer(path) as target:
            target.add_tensor(
                name="x",
                group="embedding",
                shape=shape,
                dtype="bf16",
                layout=layout,
                params={"group": group},
                planes={
                    "codes": PlaneData(dtype="u4", array=np.full(shape, codes, np.uint8)),
                    f"{layout}_scales": PlaneData(dtype="bf16", array=weights((4, 1))),
                },
            )
            target.commit()
        return path

    a = layouts(tmp_path / "a", "int4", 32, 1, (4, 6))
    assert not compared(a, layouts(tmp_path / "same", "int4", 32, 1, (4, 6))).tensors.changed
    (change,) = compared(a, layouts(tmp_path / "b", "other", 64, 2, (4, 8))).tensors.changed
    assert change.name == "x"
    differences = {each.field: (each.a, each.b) for each in change.differences}
    assert differences["shape"] == ((4, 6), (4, 8))
    assert differences["layout"] == ("int4", "other")
    assert differences["params.group"] == (32, 64)
    assert differences["planes.codes"][0].startswith("u4 [4, 6] ")
    assert differences["planes.int4_scales"][1] is None
    assert differences["planes.other_scales"][0] is None
    assert len(differences) == 6


def test_what_changed_around_the_weights_is_told(tmp_path: Path) -> None:
    recipe = {"name": "x", "steps": [{"bits": 4, "only": True}], "match": ["a", "b"]}
    other = {"name": "x", "steps": [{"bits": 3, "only": 1}], "match": ["a"], "more": {"deep": 1}}
    tensors = {"x": weights((4, 4))}
    a = write(tmp_path / "a", tensors, recipe=recipe)
    b = write(tmp_path / "b", tensors, recipe=other, program=decoder_program(max_context=64))
    assert compared(a, b).fields == (
        Difference(field="program.max_context", a=128, b=64),
        Difference(field="recipe.steps[0].bits", a=4, b=3),
        Difference(field="recipe.steps[0].only", a=True, b=1),
        Difference(field="recipe.match", a=["a", "b"], b=["a"]),
        Difference(field="recipe.more", a=None, b={"deep": 1}),
    )


def test_programs_of_other_kinds_and_other_files(tmp_path: Path) -> None:
    a = write(tmp_path / "a", {"x": weights((4, 4))})
    with writer(tmp_path / "b", program=graph_program()) as target:
        add(target, "x", "bf16", weights((4, 4)))
        target.add_asset("graph.json", b"{}", "application/json")
        target.add_asset("notes.txt", b"something else", "text/plain")
        target.commit()
    found = compared(a, tmp_path / "b")
    assert Difference(field="program.kind", a="decoder", b="graph") in found.fields
    assert found.assets.only_b == ("graph.json",)
    (change,) = found.assets.changed
    assert change.name == "notes.txt"
    assert {each.field for each in change.differences} >= {"raw_bytes", "checksum"}


def test_an_old_format_compares_with_a_new_one(tmp_path: Path) -> None:
    write_tiny(tmp_path / "b")
    found = compared(GOLDEN / "v1-raw.tersor", tmp_path / "b")
    assert found.same_content
    assert Difference(field="format_version", a=1, b=2) in found.fields
    assert len(found.tensors.equal) == 6


def test_parity_is_a_difference_but_not_of_the_content(bundle: Path, tmp_path: Path) -> None:
    protected = tmp_path / "protected.tersor"
    protect(bundle, 0.05, output=protected)
    found = compared(bundle, protected)
    assert found.same_content
    assert found.chunks.b.count == found.b.chunks
    (difference,) = found.fields
    assert (difference.field, difference.a) == ("parity", None)
    assert set(difference.b) == {"block_bytes", "data_blocks", "parity_blocks"}


def test_weights_are_not_read(bundle: Path, tmp_path: Path) -> None:
    """Every byte between header and manifest is gone, and nothing is missed."""
    data = bytearray(bundle.read_bytes())
    with BundleReader.open(bundle) as reader:
        end = max(
            chunk.offset + chunk.stored_bytes for chunk in chunks_at_rest(reader.manifest).values()
        )
    data[64:end] = bytes(end - 64)
    empty = tmp_path / "empty"
    empty.write_bytes(data)
    assert compared(bundle, empty).chunks.b.count == compared(bundle, bundle).chunks.b.count


def test_a_manifest_that_lies_about_a_checksum_only_misleads_the_report(bundle: Path) -> None:
    before = compared(bundle, bundle).chunks.a.count

    def change(text: bytes) -> bytes:
        value = json.loads(text)
        value["assets"][0]["chunk"]["checksum"] = "0" * 16
        return json.dumps(value).encode()

    honest = bundle.with_name("honest")
    honest.write_bytes(bundle.read_bytes())
    forge_text(bundle, change)
    found = compared(bundle, honest)
    assert found.chunks.a.count == before - 1
    assert [each.name for each in found.assets.changed] == ["tokenizer.json"]
