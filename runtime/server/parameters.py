"""Request parameters of the Open Inference Protocol that mean the same for every model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from tersor.protos.inference import grpc_service_pb2 as pb
from tersor.runtime.errors import InvalidRequestError, UnsupportedError

FINAL_RESPONSE: Final = "triton_final_response"

# Clients set these for the server's sake; none is a sampling parameter.
_ACCEPTED_UNUSED: Final = ("priority", "headers", "binary_data_output")
_SEQUENCE: Final = ("sequence_id", "sequence_start", "sequence_end")

Value = bool | int | float | str


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameters:
    """The parameters of one request."""

    timeout_seconds: float | None  # None: no limit beyond the call's deadline
    model: Mapping[str, Value]  # what is left for the model


def read_parameters(request: pb.ModelInferRequest) -> Parameters:
    """Parses the request's parameters.

    Raises:
        InvalidRequestError: a parameter without a value, or a timeout that is no positive integer.
        UnsupportedError: the request belongs to a stateful sequence.
    """
    timeout: float | None = None
    model: dict[str, Value] = {}
    for name, parameter in request.parameters.items():
        if name == "timeout":
            timeout = _timeout_seconds(_value(name, parameter))
        elif name in _SEQUENCE:
            _refuse_sequence(name, _value(name, parameter))
        elif name not in _ACCEPTED_UNUSED and not name.startswith("triton_"):
            model[name] = _value(name, parameter)
    return Parameters(timeout_seconds=timeout, model=model)


def _value(name: str, parameter: pb.InferParameter) -> Value:
    choice = parameter.WhichOneof("parameter_choice")
    if choice is None:
        raise InvalidRequestError(f"Parameter {name!r} has no value.")
    value: Value = getattr(parameter, choice)
    return value


def _timeout_seconds(value: Value) -> float | None:
    try:
        microseconds = int(value)
    except ValueError:
        microseconds = -1
    if isinstance(value, bool) or microseconds < 0:
        raise InvalidRequestError(
            f"Parameter 'timeout' is {value!r}, expected microseconds as an integer of 0 or more "
            "(0: no limit)."
        )
    return microseconds / 1e6 if microseconds else None


def _refuse_sequence(name: str, value: Value) -> None:
    if value:
        raise UnsupportedError(
            f"Parameter {name!r} is set, but no model here keeps state between requests: leave it "
            "out."
        )
