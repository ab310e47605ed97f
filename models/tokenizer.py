"""Text to token ids and back, whole or as a stream."""

from __future__ import annotations

from collections.abc import Sequence

import tokenizers
from tersor.models.errors import TokenizerError

_REPLACEMENT = "\ufffd"  # what a decoder prints for bytes that are no character yet
_MAX_PENDING_TOKENS = 3  # a UTF-8 character has 4 bytes: older tokens cannot wait for this one
_PROMPT_WINDOWS = (6, 12, 24)  # tokens of the prompt a stream starts from


class Tokenizer:
    """A `tokenizer.json`. Safe from many threads."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        # A file may ask for truncation or padding; lengths are the caller's business here.
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self.vocab_size: int = backend.get_vocab_size(with_added_tokens=True)
        added = backend.get_added_tokens_decoder()
        self.special_ids = frozenset(id_ for id_, token in added.items() if token.special)

    @classmethod
    def from_bytes(cls, tokenizer_json: bytes) -> Tokenizer:
        """Reads a `tokenizer.json`.

        Raises:
            TokenizerError: the bytes are not one that this version of `tokenizers` reads.
        """
        try:
            return cls(tokenizers.Tokenizer.from_buffer(tokenizer_json))
        except Exception as error:  # noqa: BLE001 - the library raises bare Exception
            raise TokenizerError(f"tokenizer.json cannot be read: {error}") from error

    def encode(self, text: str, *, special_tokens: bool) -> list[int]:
        """Token ids of `text`; `special_tokens` adds those its post-processor would add."""
        ids: list[int] = self._backend.encode(text, add_special_tokens=special_tokens).ids
        return ids

    def encode_types(self, text: str, *, special_tokens: bool) -> tuple[list[int], list[int]]:
        """Token ids of `text` and the type (segment) id of each."""
        encoding = self._backend.encode(text, add_special_tokens=special_tokens)
        return encoding.ids, encoding.type_ids

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:  # noqa: FBT001, FBT002 - the name the field gives it
        """Text of `ids`.

        Raises:
            TokenizerError: an id is negative or does not fit 32 bits.
        """
        try:
            text: str = self._backend.decode(ids, skip_special_tokens=skip_special_tokens)
        except (OverflowError, TypeError) as error:
            raise TokenizerError(f"token ids must be integers from 0 up: {error}") from error
        return text

    def token(self, token_id: int) -> str | None:
        """The vocabulary's entry for an id, in the vocabulary's own spelling; None if unused."""
        entry: str | None = self._backend.id_to_token(token_id)
        return entry

    def token_id(self, token: str) -> int | None:
        """The id of a vocabulary entry; None if there is no such entry."""
        id_: int | None = self._backend.token_to_id(token)
        return id_


class StreamDecoder:
    """Text of a growing sequence, as soon as it is certain. One per sequence; not thread-safe.

    A token's text depends on its neighbours: the bytes of a character may be spread over tokens,
    and SentencePiece-style decoders drop the space of the very first token. So a token is decoded
    with those before it, and what it added to their text is its own. The concatenation of all that
    `push` and `flush` return is the text of the tokens after `prompt`.
    """

    def __init__(
        self, tokenizer: Tokenizer, *, prompt: Sequence[int] = (), skip_special_tokens: bool = True
    ) -> None:
        """Starts after `prompt`, whose text is not repeated but decides about the first space."""
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._dropped = tokenizer.special_ids if skip_special_tokens else frozenset[int]()
        self._ids = self._context(prompt)  # context, then what is pending
        self._read = len(self._ids)  # tokens of it whose text was returned
        self._context_text = self._decode(self._ids)

    def push(self, token_id: int) -> str:
        """Adds a token; returns the text that is complete with it, often "" inside a character."""
        if token_id in self._dropped:
            return ""  # decoders never see skipped tokens, so neither does the window
        self._ids.append(token_id)
        text = self._decode(self._ids)
        if not text.endswith(_REPLACEMENT):
            return self._advance(text, len(self._ids))
        if len(self._ids) - self._read > _MAX_PENDING_TOKENS:
            # The oldest bytes are no character whatever follows; without this a model that emits
            # nothing but broken bytes would be decoded in quadratic time.
            read = len(self._ids) - _MAX_PENDING_TOKENS
            return self._advance(self._decode(self._ids[:read]), read)
        return ""

    def flush(self) -> str:
        """What is still held back at the end of the sequence: an unfinished character."""
        if self._read == len(self._ids):
            return ""
        return self._advance(self._decode(self._ids), len(self._ids))

    def _advance(self, text: str, read: int) -> str:
        """Returns what `text`, of the first `read` tokens, adds to the context's text."""
        added = text[len(self._context_text) :]
        if added:  # else the context must stay, or the next token would lose its space
            del self._ids[: self._read]
            self._read = read - self._read if read > self._read else 0
            self._context_text = self._decode(self._ids[: self._read])
        return added

    def _context(self, prompt: Sequence[int]) -> list[int]:
        """The shortest tail of the prompt that does not begin inside a character."""
        visible = [id_ for id_ in prompt[-64:] if id_ not in self._dropped]
        tail: list[int] = []
        for window in _PROMPT_WINDOWS:
            tail = visible[-window:]
            if not self._decode(tail).startswith(_REPLACEMENT):
                break
        return tail

    def _decode(self, ids: Sequence[int]) -> str:
        if not ids:
            return ""
        return self._tokenizer.decode(ids, skip_special_tokens=self._skip_special_tokens)
