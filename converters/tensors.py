"""Between the three worlds a converter connects: bundle planes, torch, safetensors."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from tersor.bundle.manifest import DTYPES
from tersor.models.weights import dtype_name, torch_dtype

SAFETENSORS_NAMES: Mapping[str, str] = {
    "bool": "BOOL",
    "u8": "U8",
    "i8": "I8",
    "f8_e4m3": "F8_E4M3",
    "f8_e5m2": "F8_E5M2",
    "u16": "U16",
    "i16": "I16",
    "f16": "F16",
    "bf16": "BF16",
    "u32": "U32",
    "i32": "I32",
    "f32": "F32",
    "u64": "U64",
    "i64": "I64",
    "f64": "F64",
}
FROM_SAFETENSORS: Mapping[str, str] = {theirs: ours for ours, theirs in SAFETENSORS_NAMES.items()}

# numpy has no bfloat16 and no float8: their planes travel as unsigned integers of the same width.
_NUMPY_VIEWS: Mapping[str, torch.dtype] = {
    "bf16": torch.uint16,
    "f8_e4m3": torch.uint8,
    "f8_e5m2": torch.uint8,
}


def tensor_bytes(dtype: str, shape: tuple[int, ...]) -> int:
    """Bytes of a dense tensor of `shape`."""
    return prod(shape) * DTYPES[dtype]


def to_plane(tensor: Tensor) -> NDArray[Any]:
    """A host tensor as the array that a plane of its dtype holds; shares memory."""
    view = _NUMPY_VIEWS.get(dtype_name(tensor.dtype))
    return tensor.contiguous().view(view).numpy() if view else tensor.contiguous().numpy()


def from_plane(array: NDArray[Any], dtype: str) -> Tensor:
    """The inverse of `to_plane` for a plane of `dtype` (`u4` stays uint8, one symbol a byte)."""
    owned = array if array.flags.writeable and array.flags.c_contiguous else array.copy(order="C")
    tensor = torch.from_numpy(owned)
    return tensor.view(torch_dtype(dtype)) if dtype in _NUMPY_VIEWS else tensor
