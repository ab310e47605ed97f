"""Messages of tersor.v1 from and to the runtime's own types."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from tersor.bundle.program import DecoderProgram
from tersor.protos.tersor.v1 import generation_pb2 as pb
from tersor.runtime.engine.types import (
    Event,
    Failed,
    Finished,
    FinishReason,
    SamplingParams,
    TextDelta,
    TokenLogprobs,
    Usage,
)
from tersor.runtime.errors import InvalidRequestError
from tersor.runtime.server.contracts import ServedDecoder, ServedGraph

_REASONS: Final[Mapping[FinishReason, pb.FinishReason.ValueType]] = {
    FinishReason.STOP: pb.FINISH_REASON_STOP,
    FinishReason.LENGTH: pb.FINISH_REASON_LENGTH,
}
_SCALARS: Final = (
    "max_tokens",
    "min_tokens",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "ignore_eos",
    "logprobs",
)


def prompt_of(request: pb.GenerateRequest) -> str | tuple[int, ...]:
    """The prompt. Raises InvalidRequestError if there is none."""
    choice = request.WhichOneof("prompt")
    if choice is None:
        raise InvalidRequestError("The request has no prompt: set `text` or `token_ids`.")
    return request.text if choice == "text" else tuple(request.token_ids.ids)


def token_ids_of(request: pb.TokenizeRequest, model: ServedDecoder) -> list[int]:
    """The tokens that a generation would begin with."""
    special = request.special_tokens if request.HasField("special_tokens") else True
    begin = model.program.bos_token_id
    ids = model.tokenizer.encode(request.text, special_tokens=False)
    return [begin, *ids] if special and begin is not None else ids


def sampling_of(message: pb.SamplingParams, defaults: SamplingParams) -> SamplingParams:
    """`defaults` with every field that `message` sets, be it to 0."""
    fields: dict[str, Any] = {  # Any: each field has its own type
        name: getattr(message, name) for name in _SCALARS if message.HasField(name)
    }
    if message.stop:
        fields["stop"] = tuple(message.stop)
    if message.stop_token_ids:
        fields["stop_token_ids"] = tuple(message.stop_token_ids)
    return dataclasses.replace(defaults, **fields)


class GenerationMessages:
    """Writes the events of one generation as responses."""

    def __init__(self, request_id: str) -> None:
        self._request_id = request_id
        self.complete = False

    def take(self, events: Iterable[Event]) -> Iterator[pb.GenerateResponse]:
        """One chunk for all text in `events`, then the last message. Raises a Failed's error."""
        deltas: list[TextDelta] = []
        last: Finished | None = None
        for event in events:
            if isinstance(event, TextDelta):
                deltas.append(event)
            elif isinstance(event, Failed):
                raise event.error
            else:
                last = event
        if deltas:
            yield self._chunk(deltas)
        if last is not None:
            self.complete = True
            yield pb.GenerateResponse(request_id=self._request_id, complete=_complete(last))

    def _chunk(self, deltas: list[TextDelta]) -> pb.GenerateResponse:
        chunk = pb.Chunk(text="".join(delta.text for delta in deltas))
        for delta in deltas:
            chunk.token_ids.extend(delta.token_ids)
            chunk.logprobs.extend(_logprobs(token) for token in delta.logprobs)
        return pb.GenerateResponse(request_id=self._request_id, chunk=chunk)


def _logprobs(token: TokenLogprobs) -> pb.TokenLogprobs:
    return pb.TokenLogprobs(
        token_id=token.token_id,
        logprob=token.logprob,
        rank=token.rank,
        top=[
            pb.TokenLogprob(token_id=token_id, logprob=value)
            for token_id, value in token.top.items()
        ],
    )


def _complete(event: Finished) -> pb.Complete:
    message = pb.Complete(finish_reason=_REASONS[event.reason], usage=_usage(event.usage))
    if isinstance(event.stop_match, str):
        message.stop_string = event.stop_match
    elif event.stop_match is not None:
        message.stop_token_id = event.stop_match
    if event.cumulative_logprob is not None:
        message.cumulative_logprob = event.cumulative_logprob
    return message


def _usage(usage: Usage) -> pb.Usage:
    return pb.Usage(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        queue_seconds=usage.queue_seconds,
        load_seconds=usage.load_seconds,
        prefill_seconds=usage.prefill_seconds,
        decode_seconds=usage.decode_seconds,
        time_to_first_token_seconds=usage.time_to_first_token_seconds,
    )


def model_info(model: ServedDecoder | ServedGraph) -> pb.ModelInfoResponse:
    """What `model` is."""
    program = model.program
    response = pb.ModelInfoResponse(
        model=model.name,
        version=model.version,
        program="decoder" if isinstance(program, DecoderProgram) else "graph",
        digest=model.manifest.digest,
        file_bytes=model.reader.file_bytes,
        ready=model.ready,
    )
    if isinstance(program, DecoderProgram):
        response.decoder.CopyFrom(
            pb.DecoderInfo(
                family=program.family,
                max_context=program.max_context,
                vocab_size=program.vocab_size,
                bos_token_id=program.bos_token_id,
                eos_token_ids=program.eos_token_ids,
            )
        )
    return response
