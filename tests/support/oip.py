"""Short ways to write requests of the Open Inference Protocol."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping

import numpy as np

from tersor.protos.inference import grpc_service_pb2 as pb

Array = np.ndarray[tuple[int, ...], np.dtype[np.generic]]
Value = str | list[str] | Array
WIRE = {"f4": "FP32", "i1": "INT8", "i4": "INT32", "i8": "INT64", "u8": "UINT64", "b1": "BOOL"}


def pack_bytes(elements: Iterable[bytes]) -> bytes:
    """Raw BYTES contents."""
    return b"".join(struct.pack("<I", len(element)) + element for element in elements)


def unpack_bytes(raw: bytes) -> list[bytes]:
    """Elements of raw BYTES contents."""
    elements = []
    while raw:
        length = struct.unpack_from("<I", raw)[0]
        elements.append(raw[4 : 4 + length])
        raw = raw[4 + length :]
    return elements


def infer_request(
    model: str,
    inputs: Mapping[str, Value],
    *,
    outputs: Iterable[str] = (),
    request_id: str = "",
    **parameters: bool | str | float,
) -> pb.ModelInferRequest:
    """A request with raw contents: strings are BYTES, arrays what they are."""
    request = pb.ModelInferRequest(model_name=model, id=request_id)
    for name, value in inputs.items():
        if isinstance(value, np.ndarray):
            datatype = WIRE[value.dtype.str[1:]]
            request.inputs.add(name=name, datatype=datatype, shape=value.shape)
            request.raw_input_contents.append(value.tobytes())
        else:
            texts = [value] if isinstance(value, str) else value
            request.inputs.add(name=name, datatype="BYTES", shape=[len(texts)])
            request.raw_input_contents.append(pack_bytes(text.encode() for text in texts))
    for output in outputs:
        request.outputs.add(name=output)
    for name, setting in parameters.items():
        set_parameter(request.parameters[name], setting)
    return request


def set_parameter(parameter: pb.InferParameter, value: bool | str | float) -> None:
    """Sets the choice that fits `value`."""
    if isinstance(value, bool):
        parameter.bool_param = value
    elif isinstance(value, int):
        parameter.int64_param = value
    elif isinstance(value, float):
        parameter.double_param = value
    else:
        parameter.string_param = value


def raw_output(response: pb.ModelInferResponse, name: str) -> bytes:
    """Raw contents of one output."""
    names = [output.name for output in response.outputs]
    return response.raw_output_contents[names.index(name)]


def text_output(response: pb.ModelInferResponse, name: str = "text_output") -> str:
    """The only element of a BYTES output, as text."""
    (element,) = unpack_bytes(raw_output(response, name))
    return element.decode()


def array_output(response: pb.ModelInferResponse, name: str, dtype: str) -> Array:
    """One output as an array."""
    shape = next(output.shape for output in response.outputs if output.name == name)
    return np.frombuffer(raw_output(response, name), dtype=dtype).reshape(tuple(shape))
