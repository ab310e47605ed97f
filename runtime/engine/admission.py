"""What a request must be to enter the engine, and the sequence it becomes."""

from __future__ import annotations

from collections.abc import Callable

from tersor.bundle.program import DecoderProgram
from tersor.models.errors import TokenizerError
from tersor.models.tokenizer import StreamDecoder, Tokenizer
from tersor.runtime.engine.answer import Answer
from tersor.runtime.engine.cache import PagedCache
from tersor.runtime.engine.sampling import SamplerState, validate_sampling
from tersor.runtime.engine.sequence import Sequence, Timeline
from tersor.runtime.engine.types import EventSink, GenerationRequest
from tersor.runtime.errors import InvalidRequestError, OutOfMemoryError

# No tokenizer's average token is this long: longer text is refused before it is tokenized, which
# would take seconds for what a message may hold.
_MAX_CHARACTERS_PER_TOKEN = 512


class Admission:
    """Validates requests of one model. Safe from many threads."""

    def __init__(
        self,
        program: DecoderProgram,
        tokenizer: Tokenizer,
        cache: PagedCache,
        *,
        seeds: Callable[[], int],
    ) -> None:
        """Binds the model's limits; `seeds` gives a seed to requests that have none."""
        self._program = program
        self._tokenizer = tokenizer
        self._cache = cache
        self._seeds = seeds

    def sequence(
        self, request: GenerationRequest, sink: EventSink, *, request_id: str, now: float
    ) -> Sequence:
        """The sequence of a valid request.

        Raises:
            InvalidRequestError: prompt or sampling parameters are wrong.
            OutOfMemoryError: the KV cache can never hold the request.
        """
        sampling = request.sampling
        validate_sampling(sampling, self._program.vocab_size)
        prompt = self._prompt(request.prompt)
        max_tokens = min(sampling.max_tokens, self._program.max_context - len(prompt))
        self._check_pages(len(prompt), max_tokens)
        eos = () if sampling.ignore_eos else self._program.eos_token_ids
        stop_ids = frozenset((*eos, *sampling.stop_token_ids))
        return Sequence(
            request_id=request_id,
            prompt_tokens=len(prompt),
            max_tokens=max_tokens,
            tokens=prompt,
            sampler=SamplerState(
                sampling,
                seed=self._seeds() if sampling.seed is None else sampling.seed,
                prompt=prompt,
                stop_ids=stop_ids,
                vocab_size=self._program.vocab_size,
            ),
            answer=Answer(
                sampling,
                self._stream(prompt),
                max_tokens=max_tokens,
                stop_ids=stop_ids,
            ),
            sink=sink,
            deadline=request.deadline,
            timeline=Timeline(submitted=now),
        )

    def _prompt(self, prompt: str | tuple[int, ...]) -> list[int]:
        limit = self._program.max_context
        if isinstance(prompt, str):
            if len(prompt) > limit * _MAX_CHARACTERS_PER_TOKEN:
                raise InvalidRequestError(
                    f"the prompt has {len(prompt)} characters, which no context of {limit} tokens "
                    "holds; shorten it"
                )
            bos = self._program.bos_token_id
            tokens = [] if bos is None else [bos]
            tokens += self._encoded(prompt)
            self._check_tokenizer(tokens)
        else:
            tokens = list(prompt)
            self._check_ids(tokens)
        if not tokens:
            raise InvalidRequestError("the prompt is empty, expected at least one token")
        if len(tokens) >= limit:
            raise InvalidRequestError(
                f"the prompt has {len(tokens)} tokens, but the context of {limit} tokens must hold "
                "it and at least one token of the answer; shorten it"
            )
        return tokens

    def _encoded(self, prompt: str) -> list[int]:
        try:
            return self._tokenizer.encode(prompt, special_tokens=False)
        except TokenizerError as error:
            raise InvalidRequestError(f"the prompt makes no tokens: {error}") from error

    def _stream(self, prompt: list[int]) -> StreamDecoder:
        try:
            return StreamDecoder(self._tokenizer, prompt=prompt)
        except TokenizerError as error:
            raise InvalidRequestError(f"the prompt's tokens make no text: {error}") from error

    def _check_tokenizer(self, tokens: list[int]) -> None:
        """A bundle's tokenizer may know more tokens than its model has embeddings."""
        size = self._program.vocab_size
        if tokens and max(tokens) >= size:
            raise InvalidRequestError(
                f"the prompt has token {max(tokens)} under the bundle's tokenizer, but the model "
                f"knows only 0 to {size - 1}; convert the model again with its own tokenizer"
            )

    def _check_ids(self, tokens: list[int]) -> None:
        size = self._program.vocab_size
        for index, token in enumerate(tokens):
            if not isinstance(token, int) or not 0 <= token < size:
                raise InvalidRequestError(
                    f"prompt token {index} is {token!r}, allowed is 0 to {size - 1}"
                )

    def _check_pages(self, prompt_tokens: int, max_tokens: int) -> None:
        # Keys and values of the last token are never needed.
        needed = self._cache.pages_for(prompt_tokens + max_tokens - 1)
        total = self._cache.pool.total
        if needed > total:
            held = total * self._cache.page_tokens
            raise OutOfMemoryError(
                f"{prompt_tokens} prompt tokens and max_tokens {max_tokens} need {needed} KV pages "
                f"of {total}; ask for at most {held} tokens in all, or raise kv_cache_bytes"
            )
