"""Every spelling of a sampling parameter, as SamplingParams.

Clients of vLLM's Triton backend send a JSON object or request parameters, often with numbers as
strings; clients of TensorRT-LLM send one tensor for each. All of them end here.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from tersor.runtime.engine.types import SamplingParams
from tersor.runtime.errors import InvalidRequestError, UnsupportedError

_TRUE: Final = ("true", "1")
_FALSE: Final = ("false", "0")


def _expected(name: str, value: object, what: str) -> InvalidRequestError:
    return InvalidRequestError(f"Sampling parameter {name!r} is {value!r}, expected {what}.")


def _real(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise _expected(name, value, "a number")
    try:
        number = float(value)
    except (ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise _expected(name, value, "a finite number")
    return number


def _integer(name: str, value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    try:
        if isinstance(value, str):
            return int(value)
    except ValueError:
        pass
    number = _real(name, value)
    if number != math.floor(number):
        raise _expected(name, value, "an integer")
    return int(number)


def _boolean(name: str, value: object) -> bool:
    text = str(value).lower()
    if text not in _TRUE + _FALSE:
        raise _expected(name, value, "true or false")
    return text in _TRUE


def _items(value: object) -> list[object]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _strings(name: str, value: object) -> tuple[str, ...]:
    items = _items(value)
    if not all(isinstance(item, str) for item in items):
        raise _expected(name, value, "a string or a list of strings")
    return tuple(str(item) for item in items)


def _integers(name: str, value: object) -> tuple[int, ...]:
    return tuple(_integer(name, item) for item in _items(value))


def _top_k(name: str, value: object) -> int:
    return max(0, _integer(name, value)) if str(value) == "-1" else _integer(name, value)


_Parser = Callable[[str, object], Any]  # Any: the type of the field it is for

_FIELDS: Final[Mapping[str, tuple[str, _Parser]]] = {
    "max_tokens": ("max_tokens", _integer),
    "max_new_tokens": ("max_tokens", _integer),
    "min_tokens": ("min_tokens", _integer),
    "min_length": ("min_tokens", _integer),
    "temperature": ("temperature", _real),
    "top_k": ("top_k", _top_k),
    "runtime_top_k": ("top_k", _top_k),
    "top_p": ("top_p", _real),
    "runtime_top_p": ("top_p", _real),
    "min_p": ("min_p", _real),
    "repetition_penalty": ("repetition_penalty", _real),
    "presence_penalty": ("presence_penalty", _real),
    "frequency_penalty": ("frequency_penalty", _real),
    "seed": ("seed", _integer),
    "random_seed": ("seed", _integer),
    "stop": ("stop", _strings),
    "stop_words": ("stop", _strings),
    "stop_token_ids": ("stop_token_ids", _integers),
    "end_id": ("stop_token_ids", _integers),
    "ignore_eos": ("ignore_eos", _boolean),
    "logprobs": ("logprobs", _integer),
}

# Known elsewhere, and fine here as long as they ask for what is done anyway.
_FIXED: Final[Mapping[str, object]] = {
    "n": 1,
    "best_of": 1,
    "beam_width": 1,
    "use_beam_search": False,
    "length_penalty": 1,
    "early_stopping": False,
    "skip_special_tokens": True,
    "spaces_between_special_tokens": True,
    "include_stop_str_in_output": False,
    "detokenize": True,
    "bad_words": (),
    "lora_name": "",
}


def sampling_names() -> tuple[str, ...]:
    """Every accepted spelling."""
    return tuple(_FIELDS)


def is_sampling_name(name: str) -> bool:
    """Whether `name` is a sampling parameter, supported or known as unsupported."""
    return name in _FIELDS or name in _FIXED


def parse_json(text: bytes | str) -> dict[str, object]:
    """The object in a `sampling_parameters` tensor.

    Raises:
        InvalidRequestError: the text is no JSON object.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidRequestError(f"sampling_parameters is not JSON: {error}.") from error
    if not isinstance(value, dict):
        raise InvalidRequestError(
            f"sampling_parameters is a JSON {type(value).__name__}, expected an object."
        )
    return value


def resolve(defaults: SamplingParams, given: Iterable[tuple[str, object]]) -> SamplingParams:
    """`defaults` with everything in `given`; of two spellings of one parameter the later holds.

    A value of None leaves the default. Ranges are the engine's business.

    Raises:
        InvalidRequestError: an unknown name, or a value of the wrong type.
        UnsupportedError: a known parameter with a value that no model here can honour.
    """
    fields: dict[str, Any] = {}
    for name, value in given:
        if not is_sampling_name(name):
            raise InvalidRequestError(
                f"Sampling parameter {name!r} is unknown, expected one of {', '.join(_FIELDS)}."
            )
        if value is None:
            continue
        if name in _FIXED:
            _check_fixed(name, value)
        else:
            field, parse = _FIELDS[name]
            fields[field] = parse(name, value)
    return dataclasses.replace(defaults, **fields)


def _check_fixed(name: str, value: object) -> None:
    allowed = _FIXED[name]
    if isinstance(allowed, bool):
        same = _boolean(name, value) == allowed
    elif isinstance(allowed, int):
        same = _real(name, value) == allowed
    else:
        same = not value
    if not same:
        raise UnsupportedError(
            f"Sampling parameter {name!r} is {value!r}, but only {allowed!r} is supported here: "
            "leave it out."
        )
