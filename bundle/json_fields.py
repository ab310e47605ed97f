"""Typed access to one JSON object: every field checked, none left over."""

from __future__ import annotations

import math
from typing import Any

from tersor.bundle import limits
from tersor.bundle.errors import BundleFormatError, BundleLimitError
from tersor.bundle.strict_json import check_text


class Fields:
    """Takes the fields of a JSON object one by one; `finish` refuses what nobody asked for.

    `where` names the object in messages. Every method raises BundleFormatError for a missing field,
    a wrong type or a value out of range.
    """

    __slots__ = ("_rest", "where")

    def __init__(self, value: object, where: str) -> None:
        if not isinstance(value, dict):
            raise BundleFormatError(f"{where} is {_kind(value)}; expected an object")
        self._rest: dict[str, object] = dict(value)
        self.where = where

    def take(self, key: str) -> object:
        """Any value; the field must be there."""
        try:
            return self._rest.pop(key)
        except KeyError:
            raise BundleFormatError(f"{self.where} has no field {key!r}") from None

    def has(self, key: str) -> bool:
        """Whether an optional field is there and not taken yet."""
        return key in self._rest

    def text(self, key: str, *, max_bytes: int = limits.MAX_STRING_BYTES) -> str:
        """A non-empty string without control characters."""
        return as_text(self.take(key), self._at(key), max_bytes=max_bytes)

    def name(self, key: str) -> str:
        """A name: a text of at most `limits.MAX_NAME_BYTES`."""
        return self.text(key, max_bytes=limits.MAX_NAME_BYTES)

    def choice(self, key: str, allowed: tuple[str, ...]) -> str:
        """One of the given strings."""
        value = self.take(key)
        if not isinstance(value, str) or value not in allowed:
            raise BundleFormatError(
                f"{self._at(key)} is {show(value)}; expected one of {', '.join(allowed)}"
            )
        return value

    def integer(self, key: str, low: int, high: int) -> int:
        """An integer in [low, high]."""
        return as_integer(self.take(key), self._at(key), low, high)

    def optional_integer(self, key: str, low: int, high: int) -> int | None:
        """An integer in [low, high], or null."""
        value = self.take(key)
        return None if value is None else as_integer(value, self._at(key), low, high)

    def number(self, key: str, low: float, high: float) -> float:
        """A finite number in [low, high], as a float."""
        value = self.take(key)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise BundleFormatError(f"{self._at(key)} is {_kind(value)}; expected a number")
        # Compared before the conversion: a huge integer does not fit a float.
        if not (math.isfinite(value) if isinstance(value, float) else True):
            raise BundleFormatError(f"{self._at(key)} is {value}; expected a finite number")
        if not low <= value <= high:
            raise BundleFormatError(
                f"{self._at(key)} is {show(value)}; expected {low:g} to {high:g}"
            )
        return float(value)

    def boolean(self, key: str) -> bool:
        """True or false."""
        value = self.take(key)
        if not isinstance(value, bool):
            raise BundleFormatError(f"{self._at(key)} is {_kind(value)}; expected true or false")
        return value

    def items(self, key: str, max_items: int) -> list[object]:
        """An array of at most `max_items`."""
        value = self.take(key)
        if not isinstance(value, list):
            raise BundleFormatError(f"{self._at(key)} is {_kind(value)}; expected an array")
        if len(value) > max_items:
            raise BundleLimitError(
                f"{self._at(key)} has {len(value)} items; this build reads at most {max_items}"
            )
        return value

    def shape(self, key: str) -> tuple[int, ...]:
        """An array of dimensions, each at least 0."""
        where = self._at(key)
        return tuple(
            as_integer(dim, where, 0, limits.MAX_DIMENSION)
            for dim in self.items(key, limits.MAX_RANK)
        )

    def names(self, key: str, max_items: int) -> tuple[str, ...]:
        """An array of different names."""
        where = self._at(key)
        names = tuple(
            as_text(item, where, max_bytes=limits.MAX_NAME_BYTES)
            for item in self.items(key, max_items)
        )
        check_unique(names, where)
        return names

    def digest(self, key: str) -> str:
        """64 lowercase hexadecimal digits."""
        return as_hex(self.take(key), self._at(key), 64)

    def finish(self) -> None:
        """Raises BundleFormatError if a field was not taken."""
        if self._rest:
            unknown = ", ".join(repr(key[:100]) for key in sorted(self._rest)[:5])
            raise BundleFormatError(
                f"{self.where} has unknown fields: {unknown}; "
                "it may come from a newer version of tersor"
            )

    def _at(self, key: str) -> str:
        return f"{key} of {self.where}"


def as_integer(value: object, where: str, low: int, high: int) -> int:
    """`value` if it is an integer in [low, high]; a boolean is none."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise BundleFormatError(f"{where} is {_kind(value)}; expected an integer")
    if not low <= value <= high:
        raise BundleFormatError(f"{where} is {show(value)}; expected {low} to {high}")
    return value


def as_text(value: object, where: str, *, max_bytes: int) -> str:
    """`value` if it is a non-empty printable string of at most `max_bytes`."""
    if not isinstance(value, str):
        raise BundleFormatError(f"{where} is {_kind(value)}; expected a string")
    check_text(value, where, max_bytes)
    # Names reach terminals and logs: no control characters, no line breaks.
    if not value or not value.isprintable():
        raise BundleFormatError(f"{where} is {show(value)}; expected printable characters")
    return value


def as_hex(value: object, where: str, digits: int) -> str:
    """`value` if it is a string of exactly `digits` lowercase hexadecimal digits."""
    if (
        not isinstance(value, str)
        or len(value) != digits
        or not value.isascii()
        or value.strip("0123456789abcdef")
    ):
        raise BundleFormatError(
            f"{where} is {show(value)}; expected {digits} lowercase hexadecimal digits"
        )
    return value


def check_unique(names: tuple[str, ...], where: str) -> None:
    """Raises BundleFormatError if a name appears twice."""
    if len(set(names)) != len(names):
        seen: set[str] = set()
        for name in names:
            if name in seen:
                raise BundleFormatError(f"{where} has {name!r} twice; names must differ")
            seen.add(name)


def show(value: Any) -> str:
    """A short form of any JSON value for messages."""
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 256:
        return f"an integer of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _kind(value: object) -> str:
    if value is None:
        return "null"
    return {
        bool: "a boolean", int: "an integer", float: "a number", str: "a string",
        list: "an array", dict: "an object",
    }.get(type(value), f"a {type(value).__name__}")  # fmt: skip
