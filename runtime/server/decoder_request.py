"""One inference request to a decoder, in any convention that clients of other servers use."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from tersor.protos.inference import grpc_service_pb2 as pb
from tersor.runtime.engine.types import SamplingParams
from tersor.runtime.errors import InvalidRequestError
from tersor.runtime.server.datatypes import BYTES
from tersor.runtime.server.parameters import Value, read_parameters
from tersor.runtime.server.sampling import is_sampling_name, parse_json, resolve, sampling_names
from tersor.runtime.server.tensors import WireTensor, is_typed, read_inputs

TEXT_INPUT: Final = "text_input"
TEXT_OUTPUT: Final = "text_output"
SAMPLING_INPUT: Final = "sampling_parameters"
STREAM_FLAGS: Final = ("stream", "streaming")
EXCLUDE_FLAG: Final = "exclude_input_in_output"

# Output -> its datatype. Each but the text is asked for by the flag `return_<output>`.
OUTPUTS: Final[Mapping[str, str]] = {
    TEXT_OUTPUT: BYTES,
    "finish_reason": BYTES,
    "cumulative_logprob": "FP32",
    "logprobs": BYTES,
    "num_input_tokens": "UINT32",
    "num_output_tokens": "UINT32",
}
RETURN_FLAGS: Final = {f"return_{name}": name for name in OUTPUTS if name != TEXT_OUTPUT}
# These cost a pass over the vocabulary for every token. Load generators name every output of a
# model, so a name alone does not turn them on; the flag or the parameter `logprobs` does.
COSTLY_OUTPUTS: Final = frozenset({"cumulative_logprob", "logprobs"})
_FLAGS: Final = (*STREAM_FLAGS, EXCLUDE_FLAG, *RETURN_FLAGS)
_LISTS: Final = frozenset({"stop", "stop_words", "bad_words", "stop_token_ids", "end_id"})


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderCall:
    """What one request asks for."""

    prompt: str
    sampling: SamplingParams
    stream: bool
    echo_prompt: bool  # the prompt stands before the continuation in text_output
    outputs: tuple[str, ...]  # in the order of OUTPUTS
    typed: bool
    timeout_seconds: float | None


def read_decoder_call(request: pb.ModelInferRequest, defaults: SamplingParams) -> DecoderCall:
    """Reads `request`; what it leaves open comes from `defaults`.

    Raises:
        InvalidRequestError: a tensor or parameter that is unknown, missing or wrong.
        UnsupportedError: a known parameter that no model here can honour.
    """
    inputs = read_inputs(request)
    parameters = read_parameters(request)
    _check_names(inputs, parameters.model)
    flags = _read_flags(inputs, parameters.model)
    sampling = resolve(defaults, _sampling_pairs(inputs, parameters.model))
    outputs = _outputs(request, flags, logprobs=sampling.logprobs is not None)
    if sampling.logprobs is None and not COSTLY_OUTPUTS.isdisjoint(outputs):
        sampling = dataclasses.replace(sampling, logprobs=0)
    stream = any(flags.get(name, False) for name in STREAM_FLAGS)
    return DecoderCall(
        prompt=_prompt(inputs),
        sampling=sampling,
        stream=stream,
        echo_prompt=not flags.get(EXCLUDE_FLAG, stream),
        outputs=outputs,
        typed=is_typed(request),
        timeout_seconds=parameters.timeout_seconds,
    )


def input_datatypes() -> dict[str, str]:
    """Every input by name with its datatype in the metadata; text_input alone is required."""
    known = {
        "temperature": "FP32", "top_p": "FP32", "runtime_top_p": "FP32", "min_p": "FP32",
        "repetition_penalty": "FP32", "presence_penalty": "FP32", "frequency_penalty": "FP32",
        "seed": "UINT64", "random_seed": "UINT64", "ignore_eos": "BOOL", "stop": BYTES,
        "stop_words": BYTES,
    }  # fmt: skip
    sampling = {name: known.get(name, "INT32") for name in sampling_names()}
    return {TEXT_INPUT: BYTES, SAMPLING_INPUT: BYTES} | dict.fromkeys(_FLAGS, "BOOL") | sampling


def is_list_input(name: str) -> bool:
    """Whether the input may have several elements."""
    return name in _LISTS


def _check_names(inputs: Mapping[str, WireTensor], parameters: Mapping[str, Value]) -> None:
    for kind, names in (("Input", inputs), ("Parameter", parameters)):
        for name in names:
            plain = name in {TEXT_INPUT, SAMPLING_INPUT} and kind == "Input"
            if not (plain or name in _FLAGS or is_sampling_name(name)):
                known = ", ".join(input_datatypes() if kind == "Input" else sampling_names())
                raise InvalidRequestError(f"{kind} {name!r} is unknown, expected one of {known}.")


def _single(tensor: WireTensor) -> object:
    values = tensor.values()
    if len(values) != 1:
        raise InvalidRequestError(
            f"Input {tensor.name!r} has shape {list(tensor.shape)}, expected one element: [1] or "
            "[1, 1]."
        )
    return values[0]


def _text(name: str, value: object) -> str:
    if not isinstance(value, bytes):
        raise InvalidRequestError(f"Input {name!r} has the wrong datatype, expected {BYTES}.")
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise InvalidRequestError(
            f"Input {name!r} is not UTF-8: {error.reason} at byte {error.start}."
        ) from error


def _prompt(inputs: Mapping[str, WireTensor]) -> str:
    tensor = inputs.get(TEXT_INPUT)
    if tensor is None:
        raise InvalidRequestError(
            f"Input {TEXT_INPUT!r} is missing: it holds the prompt as {BYTES} of shape [1]."
        )
    return _text(TEXT_INPUT, _single(tensor))


def _read_flags(
    inputs: Mapping[str, WireTensor], parameters: Mapping[str, Value]
) -> dict[str, bool]:
    flags: dict[str, bool] = {}
    for name in _FLAGS:
        tensor = inputs.get(name)
        if tensor is None:
            value: object = parameters.get(name, False)
            if name not in parameters:
                continue
        elif tensor.datatype != "BOOL":
            raise InvalidRequestError(
                f"Input {name!r} has datatype {tensor.datatype}, expected BOOL of shape [1]."
            )
        else:
            value = _single(tensor)
        if str(value).lower() not in {"true", "false"}:
            raise InvalidRequestError(f"Parameter {name!r} is {value!r}, expected true or false.")
        flags[name] = str(value).lower() == "true"
    return flags


def _sampling_pairs(
    inputs: Mapping[str, WireTensor], parameters: Mapping[str, Value]
) -> Iterator[tuple[str, object]]:
    """Names and values from the least to the most specific place."""
    yield from ((name, value) for name, value in parameters.items() if name not in _FLAGS)
    sampling = inputs.get(SAMPLING_INPUT)
    if sampling is not None:
        yield from parse_json(_text(SAMPLING_INPUT, _single(sampling))).items()
    for name, tensor in inputs.items():
        if is_sampling_name(name):
            values = tensor.values() if is_list_input(name) else [_single(tensor)]
            plain = [_text(name, value) if isinstance(value, bytes) else value for value in values]
            yield name, plain if is_list_input(name) else plain[0]


def _outputs(
    request: pb.ModelInferRequest, flags: Mapping[str, bool], *, logprobs: bool
) -> tuple[str, ...]:
    requested = {output.name for output in request.outputs}
    for name in requested:
        if name not in OUTPUTS:
            raise InvalidRequestError(
                f"Output {name!r} is unknown, expected one of {', '.join(OUTPUTS)}."
            )
    wanted = {TEXT_OUTPUT} | {out for flag, out in RETURN_FLAGS.items() if flags.get(flag, False)}
    if requested:
        free = OUTPUTS.keys() if logprobs else OUTPUTS.keys() - COSTLY_OUTPUTS
        wanted = requested & (wanted | free)
    return tuple(name for name in OUTPUTS if name in wanted)
