"""Sentences of many lengths and subjects, for comparing encoders."""

from __future__ import annotations

from pathlib import Path

_FILE = Path(__file__).resolve().parent.parent.parent / "examples" / "sentences.txt"


def varied_sentences() -> list[str]:
    """120 different sentences, most of them nonsense, all of them grammar."""
    return _FILE.read_text(encoding="utf-8").splitlines()
