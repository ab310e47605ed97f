"""Strict reading of the JSON files of a model folder: messages name key, got, expected."""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import Any

from tersor.converters.errors import SourceError

_MAX_JSON_BYTES = 256 << 20  # the index of the largest known checkpoint is 10 MB


class JsonObject:
    """A JSON object with typed access."""

    def __init__(self, path: Path, values: Mapping[str, Any], prefix: str = "") -> None:
        self.path = path
        self._values = values
        self._prefix = prefix

    @classmethod
    def load(cls, path: Path) -> JsonObject:
        """Reads `path`. Raises SourceError if it is missing, too big, or not a JSON object."""
        values = _read(path)
        if not isinstance(values, dict):
            raise SourceError(f"{path} holds {_kind(values)}; expected an object.")
        return cls(path, values)

    @classmethod
    def load_list(cls, path: Path) -> list[JsonObject]:
        """Reads a list of objects. Raises SourceError for anything else."""
        values = _read(path)
        if not isinstance(values, list) or not all(isinstance(item, dict) for item in values):
            raise SourceError(f"{path} holds {_kind(values)}; expected a list of objects.")
        return [cls(path, item, f"[{index}].") for index, item in enumerate(values)]

    def __contains__(self, key: str) -> bool:
        """Whether `key` is there with a value other than null."""
        return self._values.get(key) is not None

    def get(self, key: str) -> Any:
        """The raw value, None if absent."""
        return self._values.get(key)

    def integer(
        self, key: str, default: int | None = None, *, low: int = 1, high: int = 1 << 31
    ) -> int:
        """A whole number in [low, high]."""
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self._wrong(key, value, f"a whole number from {low} to {high}")
        return value

    def optional_integer(self, key: str, *, low: int = 1) -> int | None:
        """A whole number, or None if absent or null."""
        return self.integer(key, low=low) if key in self else None

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number above zero."""
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._wrong(key, value, "a number")
        if not isfinite(value) or value <= 0:
            raise self._wrong(key, value, "a finite number above 0")
        return float(value)

    def boolean(self, key: str, default: bool) -> bool:  # noqa: FBT001 - the value of a key
        """A JSON boolean."""
        value = self._value(key, default)
        if not isinstance(value, bool):
            raise self._wrong(key, value, "true or false")
        return value

    def string(self, key: str, default: str | None = None) -> str:
        """A string."""
        value = self._value(key, default)
        if not isinstance(value, str):
            raise self._wrong(key, value, "a string")
        return value

    def strings(self, key: str) -> tuple[str, ...]:
        """A list of strings; empty if absent."""
        value = self._value(key, [])
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self._wrong(key, value, "a list of strings")
        return tuple(value)

    def token_ids(self, key: str) -> tuple[int, ...]:
        """A token id or a list of them; empty if absent."""
        value = self._value(key, [])
        ids = value if isinstance(value, list) else [value]
        if not all(isinstance(item, int) and not isinstance(item, bool) for item in ids):
            raise self._wrong(key, value, "a token id or a list of token ids")
        return tuple(ids)

    def mapping(self, key: str) -> Mapping[str, Any]:
        """A nested object, raw."""
        value = self._value(key, None)
        if not isinstance(value, dict):
            raise self._wrong(key, value, "an object")
        return value

    def child(self, key: str) -> JsonObject:
        """A nested object with typed access."""
        return JsonObject(self.path, self.mapping(key), f"{self._prefix}{key}.")

    def _value(self, key: str, default: Any) -> Any:
        value = self._values.get(key)
        if value is not None:
            return value
        if default is None:
            raise SourceError(f"{self.path} has no {self._prefix}{key}, which is needed.")
        return default

    def _wrong(self, key: str, value: Any, expected: str) -> SourceError:
        shown = json.dumps(value)
        got = shown if len(shown) <= 60 else _kind(value)
        return SourceError(f"{self.path}: {self._prefix}{key} is {got}; expected {expected}.")


def _read(path: Path) -> Any:
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise SourceError(f"{path} is larger than {_MAX_JSON_BYTES >> 20} MiB.")
        return json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise SourceError(f"{path} does not exist.") from error
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{path} is not valid JSON: {error}.") from error


def _kind(value: Any) -> str:
    names = {list: "a list", dict: "an object", str: "a string", type(None): "null"}
    return names.get(type(value), f"a {type(value).__name__}")
