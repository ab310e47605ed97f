"""Tensors of the Open Inference Protocol: wire to numpy and torch, and back.

Raw contents become views of the received message; no element is copied until a kernel reads it.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.dlpack import from_dlpack

from tersor.protos.inference import grpc_service_pb2 as pb
from tersor.runtime.errors import InternalError, InvalidRequestError
from tersor.runtime.server.datatypes import BY_TENSOR, BY_WIRE, BYTES, Datatype

Array = np.ndarray[tuple[int, ...], np.dtype[np.generic]]


@dataclass(frozen=True, slots=True, kw_only=True)
class WireTensor:
    """One received input, checked: exactly shape's elements of its datatype."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    array: Array | None  # None for BYTES
    elements: tuple[bytes, ...] = ()  # row-major, for BYTES

    def values(self) -> list[object]:
        """All elements in row-major order as Python values."""
        return list(self.elements) if self.array is None else list(self.array.ravel().tolist())

    def to_torch(self) -> torch.Tensor:
        """The elements as a tensor that shares memory with the message; not for BYTES."""
        assert self.array is not None
        try:
            tensor = from_dlpack(self.array)
        except (BufferError, RuntimeError):  # this numpy or torch exports no read-only memory
            tensor = torch.from_numpy(self.array.copy())
        return tensor.view(torch.bfloat16) if self.datatype == "BF16" else tensor


def is_typed(request: pb.ModelInferRequest) -> bool:
    """Whether the request's tensors came in `contents`, so that the answer's should too."""
    return bool(request.inputs) and not request.raw_input_contents


def read_inputs(request: pb.ModelInferRequest) -> dict[str, WireTensor]:
    """Every input by name.

    Raises:
        InvalidRequestError: a tensor comes twice, has no known datatype, or other data than its
            shape needs.
    """
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise InvalidRequestError(
            f"raw_input_contents has {len(raw)} entries, expected one for each of the "
            f"{len(request.inputs)} inputs, in their order."
        )
    tensors: dict[str, WireTensor] = {}
    for index, wire in enumerate(request.inputs):
        if wire.name in tensors:
            raise InvalidRequestError(f"Input {wire.name!r} is given twice.")
        if raw and wire.HasField("contents"):
            raise InvalidRequestError(
                f"Input {wire.name!r} sets `contents` although the request has raw_input_contents: "
                "use one of the two for all inputs."
            )
        tensors[wire.name] = _read_raw(wire, raw[index]) if raw else _read_typed(wire)
    return tensors


def _shape(wire: pb.ModelInferRequest.InferInputTensor) -> tuple[int, ...]:
    shape = tuple(wire.shape)
    if any(dim < 0 for dim in shape):
        raise InvalidRequestError(
            f"Input {wire.name!r} has shape {list(shape)}: a request's dimensions are 0 or more."
        )
    return shape


def _datatype(wire: pb.ModelInferRequest.InferInputTensor) -> Datatype:
    kind = BY_WIRE.get(wire.datatype)
    if kind is None:
        raise InvalidRequestError(
            f"Input {wire.name!r} has datatype {wire.datatype!r}, expected one of "
            f"{', '.join(BY_WIRE)}, {BYTES}."
        )
    return kind


def _read_raw(wire: pb.ModelInferRequest.InferInputTensor, raw: bytes) -> WireTensor:
    shape = _shape(wire)
    if wire.datatype == BYTES:
        elements = split_bytes(wire.name, raw, math.prod(shape))
        return WireTensor(
            name=wire.name, datatype=BYTES, shape=shape, array=None, elements=elements
        )
    kind = _datatype(wire)
    expected = math.prod(shape) * kind.size
    if len(raw) != expected:
        raise InvalidRequestError(
            f"Input {wire.name!r} has {len(raw)} bytes of raw contents, expected {expected} for "
            f"{wire.datatype} of shape {list(shape)}."
        )
    if wire.datatype == "BOOL" and raw.strip(b"\0\1"):
        raise InvalidRequestError(
            f"Input {wire.name!r} is BOOL but has bytes other than 0 and 1: one byte an element."
        )
    array = np.frombuffer(raw, dtype=kind.array).reshape(shape)
    return WireTensor(name=wire.name, datatype=wire.datatype, shape=shape, array=array)


def split_bytes(name: str, raw: bytes, count: int) -> tuple[bytes, ...]:
    """The `count` elements of raw BYTES contents: each a u32 length, then its bytes."""
    elements: list[bytes] = []
    position = 0
    while position < len(raw) and len(elements) < count:
        start = position + 4
        length = struct.unpack_from("<I", raw, position)[0] if start <= len(raw) else len(raw)
        if start + length > len(raw):
            break
        elements.append(raw[start : start + length])
        position = start + length
    if len(elements) != count or position != len(raw):
        raise InvalidRequestError(
            f"Input {name!r} has {len(raw)} bytes of raw contents that do not split into "
            f"{count} BYTES elements: each is a 4-byte little-endian length and then its bytes."
        )
    return tuple(elements)


def _read_typed(wire: pb.ModelInferRequest.InferInputTensor) -> WireTensor:
    shape = _shape(wire)
    count = math.prod(shape)
    field = "bytes_contents" if wire.datatype == BYTES else _datatype(wire).contents
    if field is None:
        raise InvalidRequestError(
            f"Input {wire.name!r} is {wire.datatype}, which the protocol carries only in "
            "raw_input_contents."
        )
    wrong = [found.name for found, _ in wire.contents.ListFields() if found.name != field]
    values: Sequence[int | float | bool | bytes] = getattr(wire.contents, field)
    if wrong or len(values) != count:
        got = wrong[0] if wrong else f"{len(values)} elements"
        raise InvalidRequestError(
            f"Input {wire.name!r} has {got} in `contents`, expected {count} elements in {field} "
            f"for {wire.datatype} of shape {list(shape)}."
        )
    if wire.datatype == BYTES:
        elements = tuple(wire.contents.bytes_contents)
        return WireTensor(
            name=wire.name, datatype=BYTES, shape=shape, array=None, elements=elements
        )
    array = _narrow(wire.name, values, _datatype(wire)).reshape(shape)
    return WireTensor(name=wire.name, datatype=wire.datatype, shape=shape, array=array)


def _narrow(name: str, values: Sequence[int | float | bool | bytes], kind: Datatype) -> Array:
    if kind.array.kind in "iu" and kind.size < 4:  # INT8 travels in an int32, UINT8 in a uint32
        wide = np.array(values, dtype=np.int64)
        info = np.iinfo(kind.array)  # type: ignore[type-var]  # its kind was just checked
        if wide.size and (wide.min() < info.min or wide.max() > info.max):
            raise InvalidRequestError(
                f"Input {name!r} has a value outside {kind.wire}: {info.min} to {info.max}."
            )
        return wide.astype(kind.array)
    return np.array(values, dtype=kind.array)


class ResponseTensors:
    """Appends outputs to one response, all raw or all typed."""

    def __init__(self, response: pb.ModelInferResponse, *, typed: bool) -> None:
        self._response = response
        self._typed = typed

    def add_torch(self, name: str, tensor: torch.Tensor) -> None:
        """Appends `tensor`, from whatever device."""
        kind = BY_TENSOR.get(tensor.dtype)
        if kind is None:
            raise InternalError(f"Output {name!r} is {tensor.dtype}, which the wire cannot carry.")
        host = tensor.detach().cpu().contiguous()
        array = host.view(torch.uint16) if kind.wire == "BF16" else host
        self._add(name, kind, tuple(tensor.shape), array.numpy())

    def add_array(self, name: str, wire: str, array: Array) -> None:
        """Appends `array`, whose dtype is that of `wire`."""
        self._add(name, BY_WIRE[wire], array.shape, array)

    def add_bytes(self, name: str, elements: Sequence[bytes]) -> None:
        """Appends a BYTES vector."""
        output = self._response.outputs.add(name=name, datatype=BYTES, shape=(len(elements),))
        if self._typed:
            output.contents.bytes_contents.extend(elements)
            return
        raw = b"".join(struct.pack("<I", len(element)) + element for element in elements)
        self._response.raw_output_contents.append(raw)

    def _add(self, name: str, kind: Datatype, shape: tuple[int, ...], array: Array) -> None:
        output = self._response.outputs.add(name=name, datatype=kind.wire, shape=shape)
        if not self._typed:
            self._response.raw_output_contents.append(array.tobytes())
            return
        assert kind.contents is not None  # `can_type` was asked before
        getattr(output.contents, kind.contents).extend(array.ravel().tolist())


def can_type(tensors: Sequence[torch.Tensor]) -> bool:
    """Whether every tensor has a datatype that is legal outside raw contents."""
    kinds = (BY_TENSOR.get(tensor.dtype) for tensor in tensors)
    return all(kind is not None and kind.contents is not None for kind in kinds)
