"""Wire tensors to numpy and torch and back, and every way a client can get them wrong."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tersor.protos.inference import grpc_service_pb2 as pb
from tersor.runtime.errors import InternalError, InvalidRequestError
from tersor.runtime.server.datatypes import BY_WIRE, Datatype
from tersor.runtime.server.tensors import ResponseTensors, can_type, is_typed, read_inputs

DATATYPES = tuple(BY_WIRE.values())
TYPED = tuple(kind for kind in DATATYPES if kind.contents is not None)


def request_of(
    datatype: str, shape: list[int], raw: bytes | None = None, **contents: object
) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest()
    tensor = request.inputs.add(name="x", datatype=datatype, shape=shape)
    if contents:
        tensor.contents.CopyFrom(pb.InferTensorContents(**contents))  # type: ignore[arg-type]
    if raw is not None:
        request.raw_input_contents.append(raw)
    return request


def sample(kind: Datatype) -> torch.Tensor:
    return torch.tensor([[0, 1, 1], [1, 0, 1]]).to(kind.tensor)


@pytest.mark.parametrize("kind", DATATYPES, ids=lambda kind: kind.wire)
def test_raw_round_trip(kind: Datatype) -> None:
    tensor = sample(kind)
    response = pb.ModelInferResponse()
    ResponseTensors(response, typed=False).add_torch("x", tensor)
    raw = response.raw_output_contents[0]
    assert len(raw) == 6 * kind.size
    assert (response.outputs[0].datatype, list(response.outputs[0].shape)) == (kind.wire, [2, 3])
    back = read_inputs(request_of(kind.wire, [2, 3], raw))["x"].to_torch()
    assert back.dtype == kind.tensor
    assert torch.equal(back.to(torch.float64), tensor.to(torch.float64))


@pytest.mark.parametrize("kind", TYPED, ids=lambda kind: kind.wire)
def test_typed_round_trip(kind: Datatype) -> None:
    response = pb.ModelInferResponse()
    ResponseTensors(response, typed=True).add_torch("x", sample(kind))
    assert not response.raw_output_contents
    request = request_of(kind.wire, [2, 3])
    request.inputs[0].contents.CopyFrom(response.outputs[0].contents)
    assert is_typed(request)
    back = read_inputs(request)["x"].to_torch()
    assert back.dtype == kind.tensor
    assert torch.equal(back.to(torch.float64), sample(kind).to(torch.float64))


def test_raw_contents_are_not_copied() -> None:
    raw = np.arange(8, dtype="<f4").tobytes()
    tensor = read_inputs(request_of("FP32", [8], raw))["x"]
    assert tensor.array is not None
    assert not tensor.array.flags.owndata
    assert tensor.to_torch().data_ptr() == tensor.array.ctypes.data


@pytest.mark.parametrize("shape", [[0], [0, 3], [2, 0]])
def test_empty_tensors(shape: list[int]) -> None:
    assert list(read_inputs(request_of("INT64", shape, b""))["x"].to_torch().shape) == shape


def test_scalars_have_an_empty_shape() -> None:
    tensor = read_inputs(request_of("INT32", [], (5).to_bytes(4, "little")))["x"]
    assert tensor.to_torch().item() == 5


def test_bytes_raw_and_typed() -> None:
    response = pb.ModelInferResponse()
    ResponseTensors(response, typed=False).add_bytes("x", [b"", b"ab", b"\xff"])
    raw = response.raw_output_contents[0]
    assert raw == b"\0\0\0\0" + b"\2\0\0\0ab" + b"\1\0\0\0\xff"
    assert read_inputs(request_of("BYTES", [3], raw))["x"].elements == (b"", b"ab", b"\xff")
    typed = request_of("BYTES", [1, 2], bytes_contents=[b"a", b""])
    assert read_inputs(typed)["x"].elements == (b"a", b"")


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (request_of("FP32", [2], b"\0" * 7), "7 bytes of raw contents, expected 8"),
        (request_of("FP32", [-1], b"\0" * 4), r"shape \[-1\]"),
        (request_of("FP33", [1], b"\0" * 4), "datatype 'FP33', expected one of BOOL"),
        (request_of("BOOL", [2], b"\0\2"), "BOOL but has bytes other than 0 and 1"),
        (request_of("BYTES", [1], b"\5\0\0\0ab"), "do not split into 1 BYTES"),
        (request_of("BYTES", [1], b"\1\0"), "do not split"),
        (request_of("BYTES", [1], b"\0\0\0\0" * 2), "do not split"),
        (request_of("BYTES", [2], b"\0\0\0\0"), "do not split into 2"),
        (request_of("BYTES", [2**62, 2**62], b"\0\0\0\0"), "do not split"),
        (request_of("BYTES", [1], b"\xff\xff\xff\xff"), "do not split"),
        (request_of("INT64", [2**62, 2**62], b""), "expected"),
        (request_of("FP32", [2], fp32_contents=[1.0]), "1 elements in `contents`, expected 2"),
        (request_of("FP32", [1], fp64_contents=[1.0]), "fp64_contents in `contents`"),
        (request_of("FP32", [1]), "0 elements"),
        (request_of("INT8", [1], int_contents=[128]), "outside INT8: -128 to 127"),
        (request_of("UINT16", [1], uint_contents=[70_000]), "outside UINT16"),
        (request_of("FP16", [1], fp32_contents=[1.0]), "only in raw_input_contents"),
        (request_of("BF16", [1], fp32_contents=[1.0]), "only in raw_input_contents"),
        (request_of("INT32", [1], b"\0" * 4, int_contents=[1]), "sets `contents` although"),
    ],
)  # fmt: skip
def test_wrong_tensors_say_what_is_wrong(request_: pb.ModelInferRequest, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        read_inputs(request_)


def test_raw_contents_must_match_the_inputs_one_to_one() -> None:
    request = request_of("INT8", [1], b"\0")
    request.raw_input_contents.append(b"\0")
    with pytest.raises(InvalidRequestError, match="2 entries, expected one for each of the 1"):
        read_inputs(request)
    twice = request_of("INT8", [1], b"\0")
    twice.inputs.add(name="x", datatype="INT8", shape=[1])
    twice.raw_input_contents.append(b"\0")
    with pytest.raises(InvalidRequestError, match="given twice"):
        read_inputs(twice)


def test_a_tensor_that_the_wire_cannot_carry_is_our_defect() -> None:
    tensors = ResponseTensors(pb.ModelInferResponse(), typed=False)
    with pytest.raises(InternalError, match="complex64"):
        tensors.add_torch("x", torch.zeros(1, dtype=torch.complex64))


def test_half_precision_makes_a_typed_answer_impossible() -> None:
    assert can_type([torch.zeros(1), torch.zeros(1, dtype=torch.bool)])
    assert not can_type([torch.zeros(1), torch.zeros(1, dtype=torch.bfloat16)])


def test_strided_tensors_are_written_in_row_major_order() -> None:
    response = pb.ModelInferResponse()
    ResponseTensors(response, typed=False).add_torch("x", torch.arange(6).reshape(2, 3).T)
    values = np.frombuffer(response.raw_output_contents[0], dtype="<i8")
    assert values.tolist() == [0, 3, 1, 4, 2, 5]
