"""Text to token ids and back, whole or as a stream."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import tokenizers

from tersor.models.errors import TokenizerError

_REPLACEMENT = "\ufffd"  # what a decoder prints for bytes that are no character yet
_MAX_UNFINISHED_BYTES = 3  # a UTF-8 character has at most 4
_MAX_WINDOW_TOKENS = 24  # decoded for every token; only broken bytes ever fill it
_PROMPT_WINDOWS = (6, 12, 24)  # tokens of the prompt a stream starts from


@contextmanager
def _typed(what: str) -> Iterator[None]:
    """Turns what the library raises into TokenizerError.

    A panic inside it is a BaseException, so that no handler takes it for an ordinary error. A file
    can bring one about (regular expressions that give up, prefixes longer than their tokens, maps
    that do not parse), and none of them leaves the tokenizer broken.
    """
    try:
        yield
    except Exception as error:
        raise TokenizerError(f"{what}: {error}") from error
    except BaseException as error:
        kind = type(error)
        if (kind.__module__, kind.__name__) != ("pyo3_runtime", "PanicException"):
            raise  # the end of the process, or of a coroutine
        raise TokenizerError(f"{what}: its library panicked: {error}") from error


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
        with _typed("tokenizer.json cannot be read"):
            return cls(tokenizers.Tokenizer.from_buffer(tokenizer_json))

    def encode(self, text: str, *, special_tokens: bool) -> list[int]:
        """Token ids of `text`; `special_tokens` adds those its post-processor would add.

        Raises:
            TokenizerError: the tokenizer fails on this text.
        """
        return self.encode_types(text, special_tokens=special_tokens)[0]

    def encode_types(self, text: str, *, special_tokens: bool) -> tuple[list[int], list[int]]:
        """Token ids of `text` and the type (segment) id of each.

        Raises:
            TokenizerError: the tokenizer fails on this text.
        """
        with _typed("the tokenizer cannot encode the text"):
            encoding = self._backend.encode(text, add_special_tokens=special_tokens)
            return encoding.ids, encoding.type_ids

    def encode_spans(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids of `text` without special tokens, and the characters [start, end) of each.

        Raises:
            TokenizerError: the tokenizer fails on this text.
        """
        with _typed("the tokenizer cannot encode the text"):
            encoding = self._backend.encode(text, add_special_tokens=False)
            return encoding.ids, encoding.offsets

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:  # noqa: FBT001, FBT002 - the name the field gives it
        """Text of `ids`.

        Raises:
            TokenizerError: an id is negative or does not fit 32 bits, or the tokenizer fails on
                these.
        """
        with _typed("the tokenizer cannot decode the ids, which must be integers from 0 up"):
            text: str = self._backend.decode(ids, skip_special_tokens=skip_special_tokens)
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
        self._ids = self._tail(prompt)  # the window: context, then tokens pending
        self._context = len(self._ids)
        self._returned = len(self._decode(self._ids))  # characters of the window's text

    def push(self, token_id: int) -> str:
        """Adds a token; returns the text that is complete with it, often "" inside a character."""
        if token_id in self._dropped:
            return ""  # decoders never see skipped tokens, so neither does the window
        self._ids.append(token_id)
        text = self._decode(self._ids)
        open_end = len(text) - len(text.rstrip(_REPLACEMENT))
        if not open_end:
            piece = text[self._returned :]
            if piece:  # else the context must stay, or the next token would lose its space
                self._move_window(self._context)
            return piece
        if len(self._ids) - self._context <= _MAX_UNFINISHED_BYTES:
            return ""
        # Bytes that are no character whatever follows must not be held for ever.
        certain = len(text) - min(open_end, _MAX_UNFINISHED_BYTES)
        piece = text[self._returned : certain]
        self._returned = max(self._returned, certain)
        if len(self._ids) > _MAX_WINDOW_TOKENS:
            self._shorten_window(text)
        return piece

    def flush(self) -> str:
        """What is still held back at the end of the sequence: an unfinished character."""
        text = self._decode(self._ids)
        piece = text[self._returned :]
        self._returned = max(self._returned, len(text))
        return piece

    def _move_window(self, start: int) -> None:
        """Makes the tokens from `start`, all returned, the context of those to come."""
        del self._ids[:start]
        self._context = len(self._ids)
        self._returned = len(self._decode(self._ids))

    def _shorten_window(self, text: str) -> None:
        """Drops old tokens where the text falls apart cleanly: broken bytes may never end."""
        newest = len(self._ids) - _MAX_UNFINISHED_BYTES - 1
        for start in range(newest, max(newest - 8, 0), -1):
            left = self._decode(self._ids[:start])
            if len(left) <= self._returned and left + self._decode(self._ids[start:]) == text:
                del self._ids[:start]
                self._context = 0
                self._returned -= len(left)
                return

    def _tail(self, prompt: Sequence[int]) -> list[int]:
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
