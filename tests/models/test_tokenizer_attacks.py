"""Tokenizers that panic, give up or lie: always a typed error, and no one else's exceptions."""

from __future__ import annotations

import base64
import json
from typing import Any
from unittest import mock

import pytest

from tersor.models.errors import TokenizerError
from tersor.models.tokenizer import StreamDecoder, Tokenizer

_BPE = {
    "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
    "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
    "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"],
}  # fmt: skip


def _source(**parts: Any) -> bytes:
    """A tokenizer.json of three tokens with some parts replaced."""
    whole: dict[str, Any] = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [],
        "normalizer": None, "pre_tokenizer": None, "post_processor": None, "decoder": None,
        "model": _BPE,
    }  # fmt: skip
    return json.dumps(whole | parts).encode()


def _precompiled(data: bytes) -> dict[str, Any]:
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(data).decode()}


@pytest.mark.parametrize(
    "source",
    [
        _source(normalizer=_precompiled(b"\xff" * 20)),
        _source(normalizer=_precompiled(b"")),
        _source(model=_BPE | {"continuing_subword_prefix": "#" * 18}),
        _source(pre_tokenizer={"type": "Split", "pattern": {"Regex": "("},
                               "behavior": "Isolated", "invert": False}),
    ],
    ids=["map", "empty map", "prefix", "regex"],
)  # fmt: skip
def test_panics_while_loading(source: bytes) -> None:
    with pytest.raises(TokenizerError, match="cannot be read"):
        Tokenizer.from_bytes(source)


_CATASTROPHIC = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated",
                 "invert": False}  # fmt: skip
_MISSING = {
    "type": "TemplateProcessing",
    "single": [
        {"SpecialToken": {"id": "X", "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
    ],
    "pair": [],
    "special_tokens": {},
}


@pytest.mark.parametrize(
    "source",
    [
        _source(normalizer=_precompiled(b"\x04\0\0\0\xff\xff\xff\xffabc")),
        _source(pre_tokenizer=_CATASTROPHIC),
        _source(post_processor=_MISSING),
        _source(pre_tokenizer={"type": "FixedLength", "length": 0}),
        _source(model={"type": "WordPiece", "unk_token": "[UNK]", "vocab": {"x": 0},
                       "continuing_subword_prefix": "##", "max_input_chars_per_word": 100}),
    ],
    ids=["map", "regex", "template", "length", "unknown"],
)  # fmt: skip
def test_panics_while_encoding(source: bytes) -> None:
    tokenizer = Tokenizer.from_bytes(source)
    for _ in range(2):  # the tokenizer is as good as before
        with pytest.raises(TokenizerError, match="cannot encode the text"):
            tokenizer.encode("a" * 40 + "!", special_tokens=True)
    with pytest.raises(TokenizerError):
        tokenizer.encode_types("a" * 40 + "!", special_tokens=True)


def test_panics_while_decoding() -> None:
    strip = {"type": "Strip", "content": "a", "start": 5, "stop": 5}
    tokenizer = Tokenizer.from_bytes(_source(decoder=strip))
    with pytest.raises(TokenizerError, match="cannot decode the ids"):
        tokenizer.decode([0])
    with pytest.raises(TokenizerError, match="its library panicked"):
        StreamDecoder(tokenizer).push(0)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_the_end_of_the_process_is_no_tokenizer_error(kind: type[BaseException]) -> None:
    backend = mock.Mock()
    backend.get_vocab_size.return_value = 3
    backend.get_added_tokens_decoder.return_value = {}
    tokenizer = Tokenizer(backend)
    backend.encode.side_effect = backend.decode.side_effect = kind()
    with pytest.raises(kind):
        tokenizer.encode("a", special_tokens=False)
    with pytest.raises(kind):
        tokenizer.decode([0])
