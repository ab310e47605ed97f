"""A group of a real bundle for `gpu_load.py`, which runs where bundles cannot be read, too."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from tersor.bundle.dtypes import AnyArray
from tersor.bundle.plane_data import PlaneData
from tersor.bundle.program import DecoderProgram
from tersor.bundle.reader import BundleReader
from tersor.bundle.writer import BundleWriter
from tersor.kernels.layout import Layout, layouts
from tersor.models.weights import EncodedGroup, fetch_group, torch_dtype

GROUP = "layers.0"
SHAPE = (8192, 4096)
COUNT = 4
_PROGRAM = DecoderProgram(
    family="llama",
    vocab_size=64,
    hidden_size=16,
    intermediate_size=32,
    num_layers=1,
    num_heads=4,
    num_kv_heads=2,
    head_dim=4,
    max_context=128,
    norm_eps=1e-5,
    rope_theta=10000.0,
    eos_token_ids=(2,),
)


@contextmanager
def fetched_group(path: Path, form: str) -> Iterator[EncodedGroup]:
    """COUNT Gaussian weights of SHAPE in one group, written by `rans` and fetched again.

    Inside, the reader's threads decode.
    """
    rng = np.random.default_rng(0)
    with BundleWriter(path, program=_PROGRAM, source={}, recipe={}, codec="rans") as writer:
        for number in range(COUNT):
            normal = rng.normal(size=SHAPE).astype(np.float32)
            layout, dtype, params, planes = _planes(form, normal)
            writer.add_tensor(
                name=f"{form}.{number}",
                group=GROUP,
                shape=SHAPE,
                dtype=dtype,
                layout=layout,
                params=params,
                planes=planes,
            )
        writer.commit()
    with BundleReader.open(path) as reader:
        yield fetch_group(reader, GROUP)


def raw_bytes(group: EncodedGroup) -> int:
    """Of all planes, decoded."""
    return sum(plane.plane.raw_bytes for tensor in group.tensors for plane in tensor.planes)


def load_by_host(group: EncodedGroup, device: torch.device) -> list[Layout]:
    """What `group.load` does where no plane is decoded on the device."""
    loaded = []
    for tensor in group.tensors:
        entry = tensor.entry
        planes = {
            each.plane.name: torch.from_numpy(each.decode())
            .view(torch_dtype(each.plane.dtype))
            .to(device)
            for each in tensor.planes
        }
        loaded.append(
            layouts()[entry.layout].from_planes(
                planes, entry.shape, torch_dtype(entry.dtype), entry.params, device
            )
        )
    return loaded


def _planes(
    form: str, normal: AnyArray
) -> tuple[str, str, dict[str, str | int | float | bool | None], dict[str, PlaneData]]:
    """Layout, logical dtype, parameters and planes of a weight."""
    if form == "bf16":
        bits = (normal.view(np.uint32) >> 16).astype(np.uint16)
        return "dense", "bf16", {}, {"values": PlaneData(dtype="bf16", array=bits)}
    rows = normal.shape[0]
    if form == "int8":
        codes = np.clip(np.round(normal * 30), -127, 127).astype(np.int8)
        scales = np.full(rows, 0x3F80, np.uint16)
        return (
            "int8",
            "bf16",
            {},
            {
                "codes": PlaneData(dtype="i8", array=codes),
                "scales": PlaneData(dtype="bf16", array=scales),
            },
        )
    codes4 = np.clip(np.round(normal * 2.7 + 8), 0, 15).astype(np.uint8)
    scales = np.full((rows, 1), 0x3F80, np.uint16)
    planes = {
        "codes": PlaneData(dtype="u4", array=codes4),
        "scales": PlaneData(dtype="bf16", array=scales),
    }
    return "int4", "bf16", {"group": 0, "symmetric": True}, planes
