"""Tokens to text as a stream: whatever the kind of tokenizer, the pieces make the whole."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_tokenizers import byte_fallback, byte_level, metaspace

from tersor.models.errors import TokenizerError
from tersor.models.tokenizer import StreamDecoder, Tokenizer

TEXTS = [
    "the fox",
    "the quick brown fox jumps over the lazy dog.",
    "def add(first, second):\n    return first + second\n",
    "東京 café 👩🏽‍🚀 ž 🇨🇿!",
    "👩🏽‍🚀",
    "two  spaces   three",
    "tail \ufffd inside",
    "ends with \ufffd",
    "",
]
KINDS = {"byte-level": byte_level, "metaspace": metaspace, "byte-fallback": byte_fallback}


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    make: Callable[[], Tokenizer] = KINDS[request.param]
    return make()


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_make_the_whole_text(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text, special_tokens=True)
    stream = StreamDecoder(tokenizer)
    pieces = [stream.push(token_id) for token_id in ids]
    pieces.append(stream.flush())
    assert "".join(pieces) == tokenizer.decode(ids)
    if "\ufffd" not in text and tokenizer.token_id("<0x00>") is None:
        assert not any("\ufffd" in piece for piece in pieces[:-1])


@pytest.mark.parametrize("text", TEXTS)
def test_a_continuation_keeps_its_first_space(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(f"the quick brown fox jumps {text}", special_tokens=True)
    whole = tokenizer.decode(ids)
    for cut in range(1, len(ids)):
        prompt = tokenizer.decode(ids[:cut])
        if prompt.endswith("\ufffd"):
            continue  # a prompt is text: it never ends inside a character
        stream = StreamDecoder(tokenizer, prompt=ids[:cut])
        pieces = [stream.push(token_id) for token_id in ids[cut:]]
        assert prompt + "".join(pieces) + stream.flush() == whole


def test_characters_spread_over_tokens_arrive_complete() -> None:
    tokenizer = byte_level()
    ids = tokenizer.encode("a🚀b", special_tokens=False)
    stream = StreamDecoder(tokenizer)
    assert [stream.push(token_id) for token_id in ids] == ["a", "", "", "", "🚀", "b"]
    fallback = byte_fallback()
    ids = fallback.encode("fox 🚀🚀", special_tokens=False)
    stream = StreamDecoder(fallback)
    pieces = [stream.push(token_id) for token_id in ids]
    assert [piece for piece in pieces if piece] == ["fox", " ", "🚀", "🚀"]


def test_a_character_cut_off_by_the_end_is_flushed() -> None:
    tokenizer = byte_level()
    ids = tokenizer.encode("a🚀", special_tokens=False)[:-1]
    stream = StreamDecoder(tokenizer)
    assert "".join(stream.push(token_id) for token_id in ids) == "a"
    assert stream.flush() == "\ufffd"
    assert stream.flush() == ""


def test_special_tokens_are_silent_and_do_not_cost_a_space(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("the fox", special_tokens=False)
    assert tokenizer.special_ids == {0, 1, 2}
    ids = [1, *ids[:-1], 2, 2, ids[-1], 2]
    stream = StreamDecoder(tokenizer)
    assert "".join(stream.push(token_id) for token_id in ids) + stream.flush() == "the fox"
    spoken = StreamDecoder(tokenizer, skip_special_tokens=False)
    text = "".join(spoken.push(token_id) for token_id in ids) + spoken.flush()
    assert text == tokenizer.decode(ids, skip_special_tokens=False)
    assert text.count("</s>") == 3


def test_random_ids_stream_to_their_text_in_bounded_windows() -> None:
    tokenizer = byte_level()
    rng = random.Random(5)
    for _ in range(20):
        ids = [rng.randrange(3, tokenizer.vocab_size) for _ in range(200)]
        stream = StreamDecoder(tokenizer)
        pieces = []
        for token_id in ids:
            pieces.append(stream.push(token_id))
            assert len(stream._ids) < 40
        assert "".join(pieces) + stream.flush() == tokenizer.decode(ids)


def test_endless_broken_bytes_are_returned_as_they_age() -> None:
    for make, broken in ((byte_level, "ł"), (byte_fallback, "<0x9F>")):
        tokenizer = make()
        token_id = tokenizer.token_id(broken)
        assert token_id is not None
        stream = StreamDecoder(tokenizer)
        pieces = [stream.push(token_id) for _ in range(500)]
        assert len(stream._ids) < 40
        assert len("".join(pieces) + stream.flush()) == 500


def test_pico_round_trips_its_heldout_text(pico_dir: Path, heldout_text: str) -> None:
    tokenizer = Tokenizer.from_bytes((pico_dir / "tokenizer.json").read_bytes())
    assert tokenizer.vocab_size == 4096
    text = heldout_text[:4000]
    ids = tokenizer.encode(text, special_tokens=False)
    assert tokenizer.decode(ids) == text
    stream = StreamDecoder(tokenizer, prompt=ids[:100])
    head = tokenizer.decode(ids[:100])
    assert head + "".join(stream.push(token_id) for token_id in ids[100:]) == text


def test_truncation_and_padding_of_the_file_are_ignored(minilm_dir: Path) -> None:
    source = (minilm_dir / "tokenizer.json").read_bytes()
    assert json.loads(source)["truncation"] or json.loads(source)["padding"]
    tokenizer = Tokenizer.from_bytes(source)
    assert len(tokenizer.encode("word " * 1000, special_tokens=False)) == 1000
    ids, types = tokenizer.encode_types("a sentence", special_tokens=True)
    assert tokenizer.token(ids[0]) == "[CLS]"
    assert tokenizer.token(ids[-1]) == "[SEP]"
    assert types == [0] * len(ids)


def test_vocabulary_lookups() -> None:
    tokenizer = byte_level()
    assert tokenizer.token_id("</s>") == 2
    assert tokenizer.token(2) == "</s>"
    assert tokenizer.token_id("no such token") is None
    assert tokenizer.token(10**6) is None


@pytest.mark.parametrize("source", [b"", b"{}", b"\xff\xfe", b'{"version": "1.0"}', b"[" * 10000])
def test_unreadable_tokenizers_are_typed_errors(source: bytes) -> None:
    with pytest.raises(TokenizerError, match=r"tokenizer\.json cannot be read"):
        Tokenizer.from_bytes(source)


def test_impossible_ids_are_typed_errors() -> None:
    with pytest.raises(TokenizerError, match="must be integers from 0 up"):
        byte_level().decode([-1])
