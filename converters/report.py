"""What a conversion did, per tensor and in total: for the certificate and for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log10
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorReport:
    """The cost and the gain of one tensor."""

    name: str
    layout: str
    elements: int
    stored_bytes: int  # planes at rest; a duplicate of an earlier plane counts again
    relative_error: float  # |decoded - source| / |source|, Euclidean; 0 is exact
    zeros: float | None  # share of exact zeros after a prune step; None where none ran

    @property
    def bits_per_weight(self) -> float:
        """Stored bits per element."""
        return 8 * self.stored_bytes / max(1, self.elements)

    @property
    def sqnr_db(self) -> float | None:
        """Signal to quantization noise in dB; None if exact."""
        return -20 * log10(self.relative_error) if self.relative_error else None

    def to_json(self) -> Mapping[str, Any]:
        """As the certificate holds it; rounded, so that it reads well."""
        sqnr = self.sqnr_db
        values: dict[str, Any] = {
            "name": self.name,
            "layout": self.layout,
            "bits_per_weight": round(self.bits_per_weight, 4),
            "relative_error": float(f"{self.relative_error:.6g}"),
            "sqnr_db": None if sqnr is None else round(sqnr, 3),
        }
        if self.zeros is not None:
            values["zeros"] = round(self.zeros, 6)
        return values


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertReport:
    """A finished conversion."""

    bundle: Path
    source_bytes: int  # weight files on disk
    bundle_bytes: int  # the whole bundle, tokenizer and manifest included
    digest: str
    recipe: str
    ratio: float  # bundle_bytes / source_bytes
    bits_per_weight: float  # stored bits per weight over all tensors
    tensors: tuple[TensorReport, ...]
    elapsed_seconds: float


def certificate(tensors: Sequence[TensorReport]) -> Mapping[str, Any]:
    """The measured cost of a recipe, as the manifest keeps it."""
    return {
        "bits_per_weight": round(bits_per_weight(tensors), 4),
        "weights_bytes": sum(tensor.stored_bytes for tensor in tensors),
        "max_relative_error": max((t.to_json()["relative_error"] for t in tensors), default=0.0),
        "tensors": [tensor.to_json() for tensor in tensors],
    }


def bits_per_weight(tensors: Sequence[TensorReport]) -> float:
    """Stored bits per weight over all tensors."""
    elements = sum(tensor.elements for tensor in tensors)
    return 8 * sum(tensor.stored_bytes for tensor in tensors) / max(1, elements)
