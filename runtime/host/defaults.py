"""Sampling defaults of a decoder, from the bundle's generation_config.json."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any, Final

from tersor.runtime.engine.sampling import validate_sampling
from tersor.runtime.engine.types import SamplingParams
from tersor.runtime.errors import InvalidRequestError, ModelLoadError

GENERATION_CONFIG: Final = "generation_config.json"

_ALWAYS: Final = {
    "max_new_tokens": "max_tokens",
    "min_new_tokens": "min_tokens",
    "repetition_penalty": "repetition_penalty",
}
_SAMPLED: Final = ("temperature", "top_k", "top_p", "min_p")
# What transformers does where `do_sample` is set and the file says no more.
_SAMPLED_DEFAULTS: Final = {"temperature": 1.0, "top_k": 50}


def sampling_defaults(data: bytes | None, *, model: str, vocab_size: int) -> SamplingParams:
    """The parameters of requests that name none; None: the bundle carries no such file.

    Greedy unless the file says `do_sample`. Keys that are null or not about sampling do not count.

    Raises:
        ModelLoadError: the file is not a JSON object, or a value is of the wrong type or range.
    """
    if data is None:
        return SamplingParams()
    where = f"model {model}: {GENERATION_CONFIG}"
    try:
        config = json.loads(data)
    except ValueError as error:
        raise ModelLoadError(f"{where} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise ModelLoadError(f"{where}: got {type(config).__name__}, expected an object")
    given: dict[str, Any] = {ours: config.get(theirs) for theirs, ours in _ALWAYS.items()}
    if config.get("do_sample"):
        for key in _SAMPLED:
            value = config.get(key)
            given[key] = _SAMPLED_DEFAULTS.get(key) if value is None else value
    params = replace(
        SamplingParams(), **{key: value for key, value in given.items() if value is not None}
    )
    try:
        validate_sampling(params, vocab_size)
    except InvalidRequestError as error:
        raise ModelLoadError(f"{where}: {error}") from error
    return params
