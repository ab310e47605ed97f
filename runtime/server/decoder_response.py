"""What a decoder's events are on the wire of the Open Inference Protocol."""

from __future__ import annotations

import json
from collections.abc import Iterable

import numpy as np

from tersor.protos.inference import grpc_service_pb2 as pb
from tersor.runtime.engine.types import Event, Failed, Finished, TextDelta, TokenLogprobs
from tersor.runtime.server.contracts import Tokenizer
from tersor.runtime.server.decoder_request import TEXT_OUTPUT, DecoderCall
from tersor.runtime.server.parameters import FINAL_RESPONSE
from tersor.runtime.server.tensors import ResponseTensors

UNFINISHED = "None"  # finish_reason of every response but the last, as vLLM's backend says it


class DecoderAnswer:
    """Gathers the events of one generation and writes them as responses."""

    def __init__(
        self, request: pb.ModelInferRequest, version: str, call: DecoderCall, tokenizer: Tokenizer
    ) -> None:
        self._request = request
        self._version = version
        self._call = call
        self._tokenizer = tokenizer
        self._text = [call.prompt] if call.echo_prompt else []
        self._logprobs: list[TokenLogprobs] = []
        self._cumulative = 0.0
        self._tokens = 0
        self._finished: Finished | None = None

    @property
    def complete(self) -> bool:
        """Whether the last event has come."""
        return self._finished is not None

    def take(self, events: Iterable[Event]) -> None:
        """Adds `events` to the next response. Raises the error of a failed generation."""
        for event in events:
            if isinstance(event, TextDelta):
                self._text.append(event.text)
                self._tokens += len(event.token_ids)
                self._logprobs.extend(event.logprobs)
                self._cumulative += sum(token.logprob for token in event.logprobs)
            elif isinstance(event, Failed):
                raise event.error
            else:
                self._finished = event

    def response(self, *, streamed: bool) -> pb.ModelInferResponse:
        """Everything taken since the last response."""
        response = pb.ModelInferResponse(
            model_name=self._request.model_name,
            model_version=self._version,
            id=self._request.id,
        )
        if streamed:
            response.parameters[FINAL_RESPONSE].bool_param = self.complete
        tensors = ResponseTensors(response, typed=self._call.typed)
        for name in self._call.outputs:
            self._add(name, tensors)
        self._text, self._logprobs, self._tokens = [], [], 0
        return response

    def _add(self, name: str, tensors: ResponseTensors) -> None:
        if name == TEXT_OUTPUT:
            tensors.add_bytes(name, ["".join(self._text).encode()])
        elif name == "finish_reason":
            reason = self._finished.reason.value if self._finished else UNFINISHED
            tensors.add_bytes(name, [reason.encode()])
        elif name == "cumulative_logprob":
            tensors.add_array(name, "FP32", np.array([self._cumulative], dtype=np.float32))
        elif name == "logprobs":
            tensors.add_bytes(name, [self._logprobs_json()])
        elif name == "num_output_tokens":
            tensors.add_array(name, "UINT32", np.array([self._tokens], dtype=np.uint32))
        elif self._finished is not None:  # num_input_tokens is known with the last event
            count = self._finished.usage.prompt_tokens
            tensors.add_array(name, "UINT32", np.array([count], dtype=np.uint32))

    def _logprobs_json(self) -> bytes:
        """A list with an object for each token: token id -> logprob, rank, decoded_token."""
        return json.dumps([self._position(token) for token in self._logprobs]).encode()

    def _position(self, token: TokenLogprobs) -> dict[str, dict[str, object]]:
        ranked = {
            token_id: (logprob, rank)
            for rank, (token_id, logprob) in enumerate(token.top.items(), 1)
        }
        ranked.setdefault(token.token_id, (token.logprob, token.rank))
        return {
            str(token_id): {
                "logprob": logprob,
                "rank": rank,
                "decoded_token": self._tokenizer.decode([token_id], skip_special_tokens=False),
            }
            for token_id, (logprob, rank) in ranked.items()
        }
