"""One inference request to a graph: checked against the program before it joins a batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from torch import Tensor

from tersor.bundle.program import GraphProgram, TensorSpec
from tersor.protos.inference import grpc_service_pb2 as pb
from tersor.runtime.errors import InvalidRequestError, UnsupportedError
from tersor.runtime.server.datatypes import BY_PLANE, BYTES, Datatype
from tersor.runtime.server.tensors import WireTensor

TEXT_INPUT: Final = "text"


def wire_datatype(spec: TensorSpec) -> Datatype:
    """The datatype of a program's tensor. Raises UnsupportedError if the wire has none for it."""
    kind = BY_PLANE.get(spec.dtype)
    if kind is None:
        raise UnsupportedError(
            f"Tensor {spec.name!r} is {spec.dtype}, which the Open Inference Protocol cannot carry."
        )
    return kind


def takes_text(program: GraphProgram) -> bool:
    """Whether a BYTES input `text` may stand for the program's own tensors."""
    return program.text is not None and all(spec.name != TEXT_INPUT for spec in program.inputs)


def read_text(inputs: Mapping[str, WireTensor], program: GraphProgram) -> list[str] | None:
    """The texts of a request that sends text, one a row; None if it sends the program's tensors.

    Raises:
        InvalidRequestError: text beside other tensors, of a shape other than [n] or [n, 1], or no
            UTF-8.
    """
    tensor = inputs.get(TEXT_INPUT)
    if tensor is None or not takes_text(program):
        return None
    if len(inputs) > 1:
        others = ", ".join(repr(name) for name in inputs if name != TEXT_INPUT)
        raise InvalidRequestError(
            f"Input {TEXT_INPUT!r} stands alone, but the request also has {others}."
        )
    if tensor.datatype != BYTES or len(tensor.shape) > 2 or tensor.shape[1:] not in {(), (1,)}:
        raise InvalidRequestError(
            f"Input {TEXT_INPUT!r} is {tensor.datatype} of shape {list(tensor.shape)}, expected "
            f"{BYTES} of shape [n] or [n, 1]."
        )
    _check_rows(len(tensor.elements), program)
    try:
        return [element.decode() for element in tensor.elements]
    except UnicodeDecodeError as error:
        raise InvalidRequestError(f"Input {TEXT_INPUT!r} is not UTF-8: {error.reason}.") from error


def read_tensors(inputs: Mapping[str, WireTensor], program: GraphProgram) -> dict[str, Tensor]:
    """The program's own inputs, checked: names, datatypes, shapes, rows.

    Raises:
        InvalidRequestError: the first thing that is wrong.
        UnsupportedError: the program has an input that the wire cannot carry.
    """
    specs = {spec.name: spec for spec in program.inputs}
    _check_names(inputs, specs, program)
    for name, spec in specs.items():
        _check_tensor(inputs[name], spec)
    if program.batch_dim_dynamic and specs:
        rows = {name: inputs[name].shape[0] for name in specs}
        if len(set(rows.values())) > 1:
            raise InvalidRequestError(
                f"The inputs differ in their first dimension, the batch: {rows}."
            )
        _check_rows(next(iter(rows.values())), program)
    if program.text is not None:  # ids, mask and types are columns of one table
        shapes = {name: list(inputs[name].shape) for name in specs}
        if any(shape != shapes[program.text.input_ids] for shape in shapes.values()):
            raise InvalidRequestError(f"The inputs differ in shape, expected one: {shapes}.")
    return {name: inputs[name].to_torch() for name in specs}


def requested_outputs(request: pb.ModelInferRequest, program: GraphProgram) -> list[str]:
    """Names of the outputs to return, in the request's order; all if it names none."""
    known = [spec.name for spec in program.outputs]
    requested = [output.name for output in request.outputs]
    for name in requested:
        if name not in known:
            raise InvalidRequestError(
                f"Output {name!r} is unknown, expected one of {', '.join(known)}."
            )
    return requested or known


def _check_names(
    inputs: Mapping[str, WireTensor], specs: Mapping[str, TensorSpec], program: GraphProgram
) -> None:
    also = f", or {TEXT_INPUT} alone" if takes_text(program) else ""
    expected = f"expected {', '.join(specs)}{also}"
    for name in inputs:
        if name not in specs:
            raise InvalidRequestError(f"Input {name!r} is unknown, {expected}.")
    for name in specs:
        if name not in inputs:
            raise InvalidRequestError(f"Input {name!r} is missing, {expected}.")


def _check_tensor(tensor: WireTensor, spec: TensorSpec) -> None:
    kind = wire_datatype(spec)
    if tensor.datatype != kind.wire:
        raise InvalidRequestError(
            f"Input {spec.name!r} has datatype {tensor.datatype}, expected {kind.wire}."
        )
    fits = len(tensor.shape) == len(spec.shape) and all(
        want in {-1, got} for want, got in zip(spec.shape, tensor.shape, strict=True)
    )
    if not fits:
        raise InvalidRequestError(
            f"Input {spec.name!r} has shape {list(tensor.shape)}, expected {list(spec.shape)} "
            "(-1: any)."
        )


def _check_rows(rows: int, program: GraphProgram) -> None:
    most = program.max_batch_size if program.batch_dim_dynamic else 1
    if not 1 <= rows <= most:
        raise InvalidRequestError(
            f"The request has {rows} rows, expected 1 to {most}: split it into several requests."
        )
