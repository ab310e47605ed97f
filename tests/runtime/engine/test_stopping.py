"""Stop strings: found wherever the text is cut, and never half sent."""

from __future__ import annotations

import random

import pytest

from tersor.runtime.engine.stopping import StopStrings


def _reference(text: str, stop: list[str]) -> tuple[str, str | None]:
    """Character by character: the first moment at which a stop string is complete."""
    for end in range(1, len(text) + 1):
        found = [s for s in stop if text[:end].endswith(s)]
        if found:
            match = max(found, key=len)
            return text[: end - len(match)], match
    return text, None


def _streamed(pieces: list[str], stop: list[str]) -> tuple[str, str | None]:
    stops = StopStrings(stop)
    sent = ""
    for piece in pieces:
        text, match = stops.push(piece)
        sent += text
        if match is not None:
            return sent, match
    return sent + stops.flush(), None


def test_holds_back_only_what_may_begin_a_stop_string() -> None:
    stops = StopStrings(["END", "\n\n"])
    assert stops.push("text E") == ("text ", None)
    assert stops.push("N") == ("", None)
    assert stops.push("T") == ("ENT", None)
    assert stops.push("\n") == ("", None)
    assert stops.push("E") == ("\n", None)
    assert stops.push("ND and more") == ("", "END")


def test_without_stop_strings_text_passes() -> None:
    stops = StopStrings([])
    assert stops.push("anything") == ("anything", None)
    assert stops.flush() == ""


def test_flush_gives_what_was_held() -> None:
    stops = StopStrings(["abc"])
    assert stops.push("xab") == ("x", None)
    assert stops.flush() == "ab"
    assert stops.flush() == ""


def test_the_string_complete_first_wins_and_the_longest_of_a_tie() -> None:
    assert _streamed(["abcd"], ["abcd", "bc"]) == ("a", "bc")
    assert _streamed(["abcd"], ["cd", "bcd", "d"]) == ("a", "bcd")
    assert _streamed(["b", "c", "d"], ["cd", "bcd", "d"]) == ("", "bcd")


@pytest.mark.parametrize("seed", range(3))
def test_the_cut_does_not_matter(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(600):
        stop = ["".join(rng.choices("ab☃", k=rng.randint(1, 4))) for _ in range(rng.randint(1, 3))]
        text = "".join(rng.choices("ab☃c", k=rng.randint(0, 14)))
        expected = _reference(text, stop)
        pieces, rest = [], text
        while rest:
            cut = rng.randint(0, len(rest))
            pieces.append(rest[:cut])
            rest = rest[cut:]
        assert _streamed(pieces, stop) == expected, (pieces, stop)
