"""Enough of PromQL to tell which metrics and labels an expression uses; promtool knows the rest."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_TOKEN = re.compile(
    r"""\s+ | "(?P<double>[^"\\]*)" | '(?P<single>[^'\\]*)'
      | (?P<name>[A-Za-z_:][A-Za-z0-9_:]*) | (?P<number>[0-9.]+[a-z]*) | (?P<range>\[[^\]]*\])
      | (?P<operator>=~|!~|!=|>=|<=|==|[-+*/%^<>={}(),@])""",
    re.VERBOSE,
)
_LABEL_LISTS = {"by", "without", "on", "ignoring", "group_left", "group_right"}
_KEYWORDS = {"and", "or", "unless", "bool", "offset"}


@dataclass(frozen=True, slots=True)
class Selector:
    """`metric{label op "value", …}`."""

    metric: str
    matchers: dict[str, tuple[str, str]]  # label -> (operator, value)


@dataclass(slots=True)
class Usage:
    """What an expression reads: selectors, and labels named in `by (…)` and its kin."""

    selectors: list[Selector] = field(default_factory=list)
    grouping: set[str] = field(default_factory=set)


def tokens(expression: str) -> list[tuple[str, str]]:
    """(kind, text) of every token. Raises ValueError where none matches."""
    result: list[tuple[str, str]] = []
    position = 0
    while position < len(expression):
        match = _TOKEN.match(expression, position)
        if match is None:
            raise ValueError(f"cannot read {expression[position : position + 20]!r}")
        position = match.end()
        if match.lastgroup is not None:
            kind = "string" if match.lastgroup in {"single", "double"} else match.lastgroup
            result.append((kind, match.group(match.lastgroup)))
    return result


def analyse(expression: str) -> Usage:
    """The selectors and grouping labels of an expression, in order of appearance."""
    stream = [*tokens(expression), ("end", "")]
    usage = Usage()
    index = 0
    while stream[index][0] != "end":
        kind, text = stream[index]
        following = stream[index + 1][1]
        index += 1
        if kind != "name" or text in _KEYWORDS:
            continue
        if text in _LABEL_LISTS:
            if following == "(":
                index += 1
                while stream[index][1] != ")":
                    if stream[index][0] == "name":
                        usage.grouping.add(stream[index][1])
                    index += 1
        elif following == "{":
            matchers, index = _matchers(stream, index + 1)
            usage.selectors.append(Selector(text, matchers))
        elif following != "(" and following not in _LABEL_LISTS:
            usage.selectors.append(Selector(text, {}))
    return usage


def _matchers(stream: list[tuple[str, str]], index: int) -> tuple[dict[str, tuple[str, str]], int]:
    """The matchers up to the closing brace, and the index after it."""
    matchers: dict[str, tuple[str, str]] = {}
    while stream[index][1] != "}":
        (kind, label), (_, operator), (value_kind, value) = stream[index : index + 3]
        if kind != "name" or value_kind != "string" or label in matchers:
            raise ValueError(f"cannot read the matcher of {label!r}")
        matchers[label] = (operator, value)
        index += 3
        if stream[index][1] == ",":
            index += 1
    return matchers, index + 1
