"""Requests that are refused at `submit`, and what they are told."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from engine_rig import SMALL, make_rig, tiny_program
from tiny_tokenizer import VOCAB_SIZE

from tersor.runtime.errors import InvalidRequestError, OutOfMemoryError

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        ({"max_tokens": 0}, "max_tokens is 0, allowed is a whole number, 1 or more"),
        ({"max_tokens": True}, "max_tokens is True"),
        ({"max_tokens": 2.5}, r"max_tokens is 2\.5"),
        ({"min_tokens": -1}, "min_tokens is -1"),
        ({"max_tokens": 4, "min_tokens": 5}, r"min_tokens is 5, .* 0 to 4 \(max_tokens\)"),
        ({"temperature": -0.1}, r"temperature is -0\.1, allowed is a finite number, 0 or more"),
        ({"temperature": NAN}, "temperature is nan"),
        ({"temperature": INF}, "temperature is inf"),
        ({"temperature": "1"}, "temperature is '1'"),
        ({"top_k": -1}, "top_k is -1"),
        ({"top_p": 0.0}, r"top_p is 0\.0, allowed is a finite number, more than 0, at most 1"),
        ({"top_p": 1.1}, r"top_p is 1\.1"),
        ({"top_p": NAN}, "top_p is nan"),
        ({"min_p": -0.5}, r"min_p is -0\.5, allowed is a finite number, 0 to 1"),
        ({"min_p": NAN}, "min_p is nan"),
        ({"repetition_penalty": 0.0}, r"repetition_penalty is 0\.0, .* more than 0"),
        ({"repetition_penalty": INF}, "repetition_penalty is inf"),
        ({"presence_penalty": 2.1}, r"presence_penalty is 2\.1, .* -2 to 2"),
        ({"frequency_penalty": -3.0}, r"frequency_penalty is -3\.0, .* -2 to 2"),
        ({"frequency_penalty": NAN}, "frequency_penalty is nan"),
        ({"seed": 1 << 64}, "seed is 18446744073709551616"),
        ({"logprobs": 65}, "logprobs is 65, allowed is a whole number, 0 to 64"),
        ({"logprobs": -1}, "logprobs is -1"),
        ({"stop": ("",)}, "stop has '', allowed are strings of 1 to 1024 characters"),
        ({"stop": ("x" * 1025,)}, "stop has 1025 characters"),
        ({"stop": ("a",) * 65}, "stop has 65 strings, allowed are at most 64"),
        ({"stop_token_ids": (VOCAB_SIZE,)}, "stop_token_ids is 257, .* 0 to 256"),
        ({"stop_token_ids": (-1,)}, "stop_token_ids is -1"),
    ],
    ids=str,
)
def test_sampling_parameters(sampling: dict[str, Any], message: str) -> None:
    rig = make_rig()
    with pytest.raises(InvalidRequestError, match=message):
        rig.submit("text", **sampling)
    assert rig.metrics.failures == ["invalid_request"]
    assert (rig.engine.waiting, rig.engine.step()) == (0, False)


@pytest.mark.parametrize(
    "sampling",
    [
        {"seed": -(1 << 63)},
        {"seed": (1 << 64) - 1, "temperature": 1},
        {"top_p": 1, "min_p": 0, "presence_penalty": -2, "frequency_penalty": 2},
        {"logprobs": 64, "top_k": 10**9, "temperature": 1e30},
        {"repetition_penalty": 1e-3, "stop": ("x" * 1024,), "stop_token_ids": (0, 256)},
    ],
    ids=str,
)
def test_extreme_parameters_that_are_allowed(sampling: dict[str, Any]) -> None:
    assert make_rig().answer("text", max_tokens=3, **sampling).finished.usage.prompt_tokens == 4


def test_prompts() -> None:
    rig = make_rig()  # a context of 96 tokens, no bos
    with pytest.raises(InvalidRequestError, match="the prompt is empty"):
        rig.submit("")
    with pytest.raises(InvalidRequestError, match="the prompt is empty"):
        rig.submit(())
    with pytest.raises(InvalidRequestError, match="96 tokens, but the context of 96 tokens must"):
        rig.submit("x" * 96)
    with pytest.raises(InvalidRequestError, match="1000000 characters"):
        rig.submit("x" * 1_000_000)
    with pytest.raises(InvalidRequestError, match="prompt token 1 is 257, allowed is 0 to 256"):
        rig.submit((5, 257))
    with pytest.raises(InvalidRequestError, match="prompt token 0 is -1"):
        rig.submit((-1,))
    assert rig.engine.waiting == 0


def test_bos_is_prepended_to_text_only() -> None:
    rig = make_rig(program=tiny_program(bos_token_id=7))
    assert rig.answer("ab", max_tokens=1).finished.usage.prompt_tokens == 3
    assert rig.answer("", max_tokens=1).finished.usage.prompt_tokens == 1
    assert rig.answer((98, 99), max_tokens=1).finished.usage.prompt_tokens == 2
    same = rig.answer((7, 98, 99), max_tokens=8).token_ids
    assert rig.answer("ab", max_tokens=8).token_ids == same


PAGE_BYTES = 4 * 2 * 2 * 2 * 16 * 4  # tokens, layers, k and v, kv heads, head_dim, float32


def test_what_never_fits_the_cache_is_refused() -> None:
    rig = make_rig(config=replace(SMALL, kv_cache_bytes=5 * PAGE_BYTES))
    assert rig.engine.kv_pages_total == 5
    with pytest.raises(
        OutOfMemoryError, match="12 prompt tokens and max_tokens 10 need 6 KV pages of 5"
    ):
        rig.submit("x" * 12, max_tokens=10)
    sink = rig.answer("x" * 12, max_tokens=9)  # 20 tokens need keys and values
    assert len(sink.token_ids) == 9
    assert rig.metrics.failures == ["out_of_memory"]


def test_a_cache_without_a_page_is_refused() -> None:
    with pytest.raises(OutOfMemoryError, match="does not hold one page of 2048 bytes"):
        make_rig(config=replace(SMALL, kv_cache_bytes=PAGE_BYTES - 1))


def test_the_cache_is_no_larger_than_full_contexts_need() -> None:
    assert make_rig(config=SMALL).engine.kv_pages_total == 4 * 96 // 4


def test_a_tokenizer_larger_than_the_model_is_refused() -> None:
    rig = make_rig(program=tiny_program(vocab_size=98))  # tokens 0 to 97: bytes up to "`"
    with pytest.raises(InvalidRequestError, match=r"token 123 .* the model knows only 0 to 97"):
        rig.submit("AZz")
    assert rig.answer("AZ", max_tokens=1).finished.usage.prompt_tokens == 2
