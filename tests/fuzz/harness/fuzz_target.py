"""The contract of a target: one way to make inputs, and what is done with them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from random import Random
from typing import ClassVar

from fuzz_seeds import Seeds


class Target(ABC):
    """A part of the format under attack. One object a process; keeps nothing between cases."""

    name: ClassVar[str]
    weight: ClassVar[float]  # how often, relative to the others

    # What the last case was made of, for who wants to look at it.
    input: bytes | bytearray = b""

    @abstractmethod
    def __init__(self, seeds: Seeds, folder: Path) -> None:
        """Prepares what all cases begin with; `folder` is for files of one case at a time."""

    @abstractmethod
    def run(self, rng: Random) -> str:
        """Makes one input from `rng` alone, and tries it.

        Returns:
            "accepted", or the name of the error that refuses it.

        Raises:
            Exception: any, for a finding.
        """
