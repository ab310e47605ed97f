from __future__ import annotations

import json
from typing import Any

import pytest

from tersor.runtime.engine.types import SamplingParams
from tersor.runtime.errors import ModelLoadError
from tersor.runtime.host.defaults import sampling_defaults


def defaults(config: Any) -> SamplingParams:
    return sampling_defaults(json.dumps(config).encode(), model="m", vocab_size=100)


def test_a_bundle_without_the_file_is_greedy() -> None:
    assert sampling_defaults(None, model="m", vocab_size=100) == SamplingParams()


def test_greedy_unless_the_file_says_sample() -> None:
    params = defaults({"do_sample": False, "temperature": 0.7, "top_k": 5, "max_new_tokens": 9})
    assert params == SamplingParams(max_tokens=9)


def test_sampling_takes_what_the_file_gives() -> None:
    params = defaults(
        {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 20, "min_p": None}
    )
    assert params == SamplingParams(temperature=0.6, top_p=0.9, top_k=20)
    # transformers' own defaults where the file is silent
    assert defaults({"do_sample": True}) == SamplingParams(temperature=1.0, top_k=50)


def test_other_keys_do_not_count() -> None:
    given = {"bos_token_id": 0, "eos_token_id": [1, 2], "max_length": 20, "max_new_tokens": None}
    assert defaults({**given, "repetition_penalty": 1.2}) == SamplingParams(repetition_penalty=1.2)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ([1], "got list, expected an object"),
        ({"max_new_tokens": 0}, "max_tokens is 0"),
        ({"do_sample": True, "temperature": "hot"}, "temperature is 'hot'"),
        ({"repetition_penalty": -1}, "repetition_penalty is -1"),
    ],
)
def test_a_wrong_file_is_named(config: Any, message: str) -> None:
    with pytest.raises(ModelLoadError, match=f"^model m: generation_config.json.*{message}"):
        defaults(config)


def test_a_file_that_is_not_json_is_named() -> None:
    with pytest.raises(ModelLoadError, match="is not JSON"):
        sampling_defaults(b"{", model="m", vocab_size=100)
