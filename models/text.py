"""Text as an input of a graph: the bundle's tokenizer, truncated and padded per batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from tersor.bundle.program import GraphProgram, TextFrontend
from tersor.models.errors import InvalidInputError, UnsupportedProgramError
from tersor.models.tokenizer import Tokenizer
from tersor.models.weights import torch_dtype

_PAD_TOKENS: Final = ("[PAD]", "<pad>", "<|padding|>", "<|endoftext|>")


class TextEncoder:
    """Turns texts into the inputs of one graph program. Thread-safe.

    Raises UnsupportedProgramError if the frontend does not fit the program.
    """

    def __init__(self, program: GraphProgram, frontend: TextFrontend, tokenizer: Tokenizer) -> None:
        specs = {spec.name: spec for spec in program.inputs}
        self._frontend = frontend
        self._tokenizer = tokenizer
        wanted = (frontend.input_ids, frontend.attention_mask, frontend.token_type_ids)
        used = [key for key in wanted if key is not None]
        if sorted(used) != sorted(specs):
            raise UnsupportedProgramError(
                f"the text frontend fills inputs {', '.join(used)}, "
                f"expected those of the program: {', '.join(specs)}"
            )
        shapes = {specs[key].shape[1:] for key in used}
        if len(shapes) > 1 or len(next(iter(shapes))) != 1:
            raise UnsupportedProgramError(
                f"the text frontend needs inputs of one shape [batch, tokens], "
                f"got {', '.join(str(list(specs[key].shape)) for key in used)}"
            )
        self._dtypes = {key: torch_dtype(specs[key].dtype) for key in used}
        length = specs[frontend.input_ids].shape[1]
        # A program of one fixed length takes every text padded to it.
        self._fixed_length = None if length == -1 else length
        self.max_tokens = min(frontend.max_tokens, self._fixed_length or frontend.max_tokens)
        ids = (tokenizer.token_id(token) for token in _PAD_TOKENS)
        self._pad_id = next((id_ for id_ in ids if id_ is not None), 0)

    def encode(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """The program's inputs for `texts`: int tensors [len(texts), longest], masked padding.

        A text beyond `max_tokens` is cut at its end; the tokens that the tokenizer puts around
        every text stay whole.

        Raises:
            InvalidInputError: no text at all, or only texts that make no tokens.
            TokenizerError: the tokenizer fails on a text.
        """
        if not texts:
            raise InvalidInputError("got no text, expected at least one")
        rows = [self._tokens(text) for text in texts]
        length = self._fixed_length or max(len(ids) for ids, _ in rows)
        if length == 0:
            raise InvalidInputError("got only texts without tokens")
        frontend = self._frontend
        columns = {
            frontend.input_ids: [ids + [self._pad_id] * (length - len(ids)) for ids, _ in rows],
            frontend.attention_mask: [
                [1] * len(ids) + [0] * (length - len(ids)) for ids, _ in rows
            ],
            frontend.token_type_ids: [kinds + [0] * (length - len(kinds)) for _, kinds in rows],
        }
        return {
            key: torch.tensor(values, dtype=self._dtypes[key])  # [len(texts), length]
            for key, values in columns.items()
            if key is not None
        }

    def _tokens(self, text: str) -> tuple[list[int], list[int]]:
        """Token and type ids of one text, at most `max_tokens`."""
        ids, kinds = self._tokenizer.encode_types(text, special_tokens=True)
        excess = len(ids) - self.max_tokens
        if excess <= 0:
            return ids, kinds
        plain = self._tokenizer.encode(text, special_tokens=False)
        extra = len(ids) - len(plain)
        before = next((n for n in range(extra + 1) if ids[n : n + len(plain)] == plain), 0)
        end = before + len(plain) - excess  # of what stays of the text itself
        tail = before + len(plain)
        if end < before:
            return ids[: self.max_tokens], kinds[: self.max_tokens]
        return ids[:end] + ids[tail:], kinds[:end] + kinds[tail:]
