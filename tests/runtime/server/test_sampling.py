"""Every spelling of a sampling parameter ends as the same SamplingParams."""

from __future__ import annotations

import pytest

from tersor.runtime.engine.types import SamplingParams
from tersor.runtime.errors import InvalidRequestError, UnsupportedError
from tersor.runtime.server.sampling import parse_json, resolve, sampling_names

DEFAULTS = SamplingParams(max_tokens=7, temperature=0.25, top_k=3)


@pytest.mark.parametrize(
    ("name", "value", "field", "expected"),
    [
        ("max_tokens", 16, "max_tokens", 16),
        ("max_tokens", "16", "max_tokens", 16),
        ("max_tokens", 16.0, "max_tokens", 16),
        ("max_new_tokens", "16", "max_tokens", 16),
        ("min_length", 2, "min_tokens", 2),
        ("temperature", "0.5", "temperature", 0.5),
        ("temperature", 0, "temperature", 0.0),
        ("top_k", -1, "top_k", 0),
        ("top_k", "-1", "top_k", 0),
        ("runtime_top_p", "0.9", "top_p", 0.9),
        ("seed", str(2**63), "seed", 2**63),
        ("random_seed", 5, "seed", 5),
        ("stop", "end", "stop", ("end",)),
        ("stop_words", ["a", "b"], "stop", ("a", "b")),
        ("end_id", 5, "stop_token_ids", (5,)),
        ("stop_token_ids", ["5", 6], "stop_token_ids", (5, 6)),
        ("ignore_eos", "true", "ignore_eos", True),
        ("ignore_eos", False, "ignore_eos", False),
        ("logprobs", "2", "logprobs", 2),
    ],
)
def test_spellings(name: str, value: object, field: str, expected: object) -> None:
    assert getattr(resolve(DEFAULTS, [(name, value)]), field) == expected


def test_defaults_stay_where_nothing_or_null_is_given() -> None:
    assert resolve(DEFAULTS, []) == DEFAULTS
    assert resolve(DEFAULTS, [("max_tokens", None), ("seed", None), ("n", None)]) == DEFAULTS


def test_an_explicit_zero_is_not_unset() -> None:
    params = resolve(DEFAULTS, [("temperature", 0), ("top_k", 0)])
    assert (params.temperature, params.top_k) == (0.0, 0)


def test_the_later_of_two_spellings_holds() -> None:
    assert resolve(DEFAULTS, [("max_tokens", 1), ("max_new_tokens", 2)]).max_tokens == 2


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_token", 1),
        ("max_tokens", "many"),
        ("max_tokens", 1.5),
        ("max_tokens", True),
        ("max_tokens", [1]),
        ("temperature", "nan"),
        ("temperature", float("inf")),
        ("temperature", "warm"),
        ("temperature", False),
        ("stop", 3),
        ("stop", ["a", 3]),
        ("ignore_eos", "yes"),
        ("use_beam_search", "perhaps"),
        ("top_p", 10**400),
    ],
)
def test_wrong_values_name_the_parameter(name: str, value: object) -> None:
    with pytest.raises(InvalidRequestError, match=name):
        resolve(DEFAULTS, [(name, value)])


@pytest.mark.parametrize(
    ("name", "same", "other"),
    [
        ("n", "1", 2),
        ("beam_width", 1, 4),
        ("length_penalty", "1.0", 0.5),
        ("use_beam_search", False, True),
        ("skip_special_tokens", "True", False),
        ("bad_words", [], ["a"]),
        ("lora_name", "", "adapter"),
    ],
)
def test_what_no_model_can_do_is_refused_unless_it_asks_for_nothing(
    name: str, same: object, other: object
) -> None:
    assert resolve(DEFAULTS, [(name, same)]) == DEFAULTS
    with pytest.raises(UnsupportedError, match=name):
        resolve(DEFAULTS, [(name, other)])


@pytest.mark.parametrize("text", ["", "{", "[1]", "3", "null", b"\xff", "[" * 100_000])
def test_sampling_parameters_must_be_a_json_object(text: str | bytes) -> None:
    with pytest.raises(InvalidRequestError, match="sampling_parameters"):
        parse_json(text)


def test_every_field_has_a_spelling_of_its_own_name() -> None:
    assert set(SamplingParams.__dataclass_fields__) <= set(sampling_names())
