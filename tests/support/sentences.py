"""Sentences of many lengths and subjects, for comparing encoders."""

from __future__ import annotations

_SUBJECTS = (
    "The central bank", "A stray cat", "My grandmother", "The new compiler", "Photosynthesis",
    "An old lighthouse", "The defence lawyer", "Our football team", "A quantum computer",
    "The recipe for sourdough", "Heavy rain", "The museum of modern art",
)  # fmt: skip
_PREDICATES = (
    "raised interest rates by half a point, surprising most of the analysts who follow it",
    "slept.",
    "was described in 1779 by Jan Ingenhousz (who lived from 1730 to 1799)",
    "does not do what the documentation says!",
    "can't be compared with anything we saw last year; still, nobody complained",
    "turned out to be far more expensive than expected: 1,250.75 euros, plus tax",
    "is waiting outside?",
    "gewann das Spiel in der letzten Minute",
    "needs time, warmth and patience",
    "appears in the third chapter, then again on page 212, and never thereafter, which led several "
    "readers to suspect that the editor had removed a longer passage shortly before publication",
)


def varied_sentences() -> list[str]:
    """120 different sentences, most of them nonsense, all of them grammar."""
    return [f"{subject} {predicate}" for subject in _SUBJECTS for predicate in _PREDICATES]
