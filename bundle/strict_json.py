"""JSON without its loose ends: no duplicate keys, no NaN, no surrogates, bounded depth and size."""

from __future__ import annotations

import json
import math
import re
from typing import Any

from tersor.bundle import limits
from tersor.bundle.errors import BundleFormatError, BundleLimitError

# An escaped surrogate half would become a string that cannot be printed or written as UTF-8;
# characters outside the basic plane need no escape in UTF-8.
_SURROGATE_ESCAPE = re.compile(rb"(?<!\\)(?:\\\\)*\\u[dD][89a-fA-F]")


def loads(data: bytes, *, what: str) -> object:
    """Parses UTF-8 JSON text.

    Raises:
        BundleFormatError: not UTF-8, not JSON, duplicate keys, NaN or infinities, nested too deep.
        BundleLimitError: more values than `limits.MAX_MANIFEST_VALUES`.
    """
    values = 1 + data.count(b",") + data.count(b"[") + data.count(b"{")
    if values > limits.MAX_MANIFEST_VALUES:
        raise BundleLimitError(
            f"{what} has about {values} JSON values; this build reads at most "
            f"{limits.MAX_MANIFEST_VALUES}"
        )
    # The plain search is a hundred times faster, and nearly always enough.
    suspicious = b"\\ud" in data or b"\\uD" in data
    if suspicious and _SURROGATE_ESCAPE.search(data):
        raise BundleFormatError(
            f"{what} escapes a surrogate (\\ud800 … \\udfff); expected plain UTF-8"
        )
    try:
        return json.loads(
            data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant
        )
    except UnicodeDecodeError as error:
        raise BundleFormatError(f"{what} is not UTF-8: {error}") from error
    except RecursionError as error:
        raise BundleFormatError(f"{what} is nested too deep") from error
    except ValueError as error:  # JSONDecodeError, or an integer of thousands of digits
        raise BundleFormatError(f"{what} is not valid JSON: {error}") from error


def dumps(value: object) -> bytes:
    """Compact UTF-8 JSON with keys in their own order: the same value gives the same bytes.

    Raises:
        BundleFormatError: the value holds something that is not JSON.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        return text.encode("utf-8")
    except (TypeError, ValueError, RecursionError) as error:
        raise BundleFormatError(f"not a JSON value: {error}") from error


def check_free(value: object, where: str, depth: int = 0) -> None:
    """Checks a value whose structure the format leaves open (recipe, source, certificate).

    Raises:
        BundleFormatError: a value JSON cannot carry, a number out of range, or too deep.
    """
    if depth > limits.MAX_JSON_DEPTH:
        raise BundleFormatError(
            f"{where} is nested deeper than {limits.MAX_JSON_DEPTH} levels; flatten it"
        )
    if isinstance(value, list | tuple):
        for item in value:
            check_free(item, where, depth + 1)
    elif isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise BundleFormatError(f"{where} has the key {key!r}; expected a string")
            check_text(key, where)
            check_free(item, where, depth + 1)
    else:
        _check_scalar(value, where)


def _check_scalar(value: object, where: str) -> None:
    if value is None or isinstance(value, bool):
        return
    if isinstance(value, int):
        if not -limits.MAX_JSON_INTEGER <= value < limits.MAX_JSON_INTEGER:
            raise BundleFormatError(f"{where} holds an integer beyond 64 bits")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise BundleFormatError(f"{where} holds {value}; expected a finite number")
    elif isinstance(value, str):
        check_text(value, where)
    else:
        raise BundleFormatError(f"{where} holds a {type(value).__name__}, which is not JSON")


def check_text(text: str, where: str, max_bytes: int = limits.MAX_STRING_BYTES) -> None:
    """Raises BundleFormatError unless `text` is valid UTF-8 of at most `max_bytes`."""
    try:
        size = len(text) if text.isascii() else len(text.encode("utf-8"))
    except UnicodeEncodeError as error:
        raise BundleFormatError(f"{where} is not valid Unicode: {error}") from error
    if size > max_bytes:
        raise BundleFormatError(f"{where} is {size} bytes long; expected at most {max_bytes}")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"the key {key[:100]!r} appears twice in one object")
            seen.add(key)
    return result


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is not JSON")
