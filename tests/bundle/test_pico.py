"""The trained example model: real weights reach the ratio that random ones only promise."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from tiny_bundles import add, writer

from tersor.bundle.reader import BundleReader
from tersor.bundle.verify import verify


def test_bf16_weights_take_at_most_69_percent(pico_dir: Path, tmp_path: Path) -> None:
    data = (pico_dir / "model.safetensors").read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    header.pop("__metadata__", None)
    arrays = {}
    for name, entry in header.items():
        assert entry["dtype"] == "BF16"
        start, end = (8 + size + offset for offset in entry["data_offsets"])
        arrays[name] = np.frombuffer(data[start:end], "<u2").reshape(entry["shape"])
    raw_bytes = sum(array.nbytes for array in arrays.values())
    path = tmp_path / "pico.tersor"
    with writer(path) as target:
        for name, array in arrays.items():
            add(target, name, "bf16", array)
        target.commit()
    with BundleReader.open(path) as reader:
        stored_bytes = 0
        for entry in reader.manifest.tensors:
            (plane,) = entry.planes
            stored_bytes += plane.stored_bytes
            assert np.array_equal(reader.read_plane(plane), arrays[entry.name])
    # The order-0 bound of these weights is 66.3 %; classes of rows know more than order 0.
    assert stored_bytes / raw_bytes == pytest.approx(0.661, abs=0.002)
    assert path.stat().st_size / raw_bytes <= 0.69
    assert verify(path).ok
