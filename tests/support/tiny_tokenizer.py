"""A tokenizer with one token per byte: id 0 ends, id b+1 is byte b."""

from __future__ import annotations

from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers

from tersor.models.tokenizer import Tokenizer

EOS = 0
VOCAB_SIZE = 257


def byte_tokenizer() -> Tokenizer:
    """Any text round-trips, and any byte sequence can come out of a random model."""
    symbols = {EOS: "<eos>"} | {byte + 1: _symbol(byte) for byte in range(256)}
    backend = Backend(models.BPE(vocab={text: id_ for id_, text in symbols.items()}, merges=[]))
    backend.add_special_tokens(["<eos>"])
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return Tokenizer.from_bytes(backend.to_str().encode())


def ids_of(text: str) -> tuple[int, ...]:
    """The token ids of a text, without the tokenizer."""
    return tuple(byte + 1 for byte in text.encode())


def text_of(ids: tuple[int, ...] | list[int]) -> str:
    """The text of token ids, without the tokenizer; broken characters as U+FFFD."""
    return bytes(id_ - 1 for id_ in ids if id_ != EOS).decode(errors="replace")


def _symbol(byte: int) -> str:
    """GPT-2's visible character of a byte: printable ones stand for themselves."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    if byte in visible:
        return chr(byte)
    hidden = [other for other in range(256) if other not in visible]
    return chr(256 + hidden.index(byte))
