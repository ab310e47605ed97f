"""The datatypes of the wire, and what they are in numpy, torch, a bundle and a typed message."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch

from tersor.protos.inference import grpc_service_pb2 as pb

BYTES: Final = "BYTES"


@dataclass(frozen=True, slots=True, kw_only=True)
class Datatype:
    """One fixed-size datatype."""

    wire: str  # "FP32"
    array: np.dtype[np.generic]  # little-endian; BF16 is carried as its 16 bits
    tensor: torch.dtype
    plane: str  # name in a bundle's manifest
    contents: str | None  # field of InferTensorContents; None: legal only as raw
    config: pb.DataType.ValueType

    @property
    def size(self) -> int:
        """Bytes of one element."""
        return self.array.itemsize


def _datatype(
    wire: str,
    array: str,
    tensor: torch.dtype,
    plane: str,
    contents: str | None,
    config: pb.DataType.ValueType,
) -> Datatype:
    return Datatype(
        wire=wire,
        array=np.dtype(array),
        tensor=tensor,
        plane=plane,
        contents=contents,
        config=config,
    )


_ALL: Final = (
    _datatype("BOOL", "?", torch.bool, "bool", "bool_contents", pb.TYPE_BOOL),
    _datatype("UINT8", "u1", torch.uint8, "u8", "uint_contents", pb.TYPE_UINT8),
    _datatype("UINT16", "<u2", torch.uint16, "u16", "uint_contents", pb.TYPE_UINT16),
    _datatype("UINT32", "<u4", torch.uint32, "u32", "uint_contents", pb.TYPE_UINT32),
    _datatype("UINT64", "<u8", torch.uint64, "u64", "uint64_contents", pb.TYPE_UINT64),
    _datatype("INT8", "i1", torch.int8, "i8", "int_contents", pb.TYPE_INT8),
    _datatype("INT16", "<i2", torch.int16, "i16", "int_contents", pb.TYPE_INT16),
    _datatype("INT32", "<i4", torch.int32, "i32", "int_contents", pb.TYPE_INT32),
    _datatype("INT64", "<i8", torch.int64, "i64", "int64_contents", pb.TYPE_INT64),
    _datatype("FP16", "<f2", torch.float16, "f16", None, pb.TYPE_FP16),
    _datatype("BF16", "<u2", torch.bfloat16, "bf16", None, pb.TYPE_BF16),
    _datatype("FP32", "<f4", torch.float32, "f32", "fp32_contents", pb.TYPE_FP32),
    _datatype("FP64", "<f8", torch.float64, "f64", "fp64_contents", pb.TYPE_FP64),
)

BY_WIRE: Final[Mapping[str, Datatype]] = {kind.wire: kind for kind in _ALL}
BY_PLANE: Final[Mapping[str, Datatype]] = {kind.plane: kind for kind in _ALL}
BY_TENSOR: Final[Mapping[torch.dtype, Datatype]] = {kind.tensor: kind for kind in _ALL}
