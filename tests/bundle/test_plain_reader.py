"""A second reader, written by somebody who had only the page of the format, reads what ours does.

Neither knows the other, so that what both make of a file is what `docs/format.md` says of it.
"""

from __future__ import annotations

import runpy
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden_bundles import content_of, planes
from tiny_bundles import add, forge, noise, writer, write_tiny

from tersor.bundle.codecs import CODEC_NAMES, HuffmanCodec, RansCodec, StreamShape
from tersor.bundle.codecs.entropy.rans_model import RansModel
from tersor.bundle.dtypes import AnyArray, ByteArray
from tersor.bundle.filters import FILTERS
from tersor.bundle.manifest import Chunk
from tersor.bundle.reader import BundleReader
from tersor.bundle.validate import plane_chunks, stored_planes

HERE = Path(__file__).resolve().parent
GOLDEN = sorted((HERE / "golden").glob("*.tersor"))
# Run by its path, as it stands alone.
PLAIN = runpy.run_path(str(HERE / "plain_reader.py"))
read_bundle: Callable[[bytes], tuple[dict[str, dict[str, AnyArray]], dict[str, bytes]]]
read_bundle = PLAIN["read_bundle"]


def test_there_are_golden_files_of_every_version() -> None:
    assert {path.name[:3] for path in GOLDEN} == {"v1-", "v2-"}


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_both_readers_decode_the_same(path: Path) -> None:
    tensors, assets = read_bundle(path.read_bytes())
    with BundleReader.open(path, threads=1) as reader:
        entries = reader.manifest.tensors
        assert set(tensors) == {entry.name for entry in entries}
        for entry in entries:
            assert set(tensors[entry.name]) == {plane.name for plane in entry.planes}
            for plane in entry.planes:
                ours, theirs = reader.read_plane(plane), tensors[entry.name][plane.name]
                assert (theirs.dtype, theirs.shape) == (ours.dtype, ours.shape)
                assert theirs.tobytes() == ours.tobytes()
        assert assets == {
            asset.name: bytes(reader.read_asset(asset.name)) for asset in reader.manifest.assets
        }
