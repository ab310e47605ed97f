"""What an evaluation works on and what it reports."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tersor.bundle.errors import BundleNotFoundError
from tersor.bundle.manifest import Manifest
from tersor.bundle.reader import BundleReader
from tersor.converters.errors import EvaluationError
from tersor.models.weights import ResidentWeights


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalReport:
    """Measured quality, speed and size; None where a measure does not apply."""

    kind: str  # "decoder" or "graph"
    recipe: str
    bundle_bytes: int
    source_bytes: int  # of the tensors the bundle was made from
    ratio: float  # bundle_bytes / source_bytes
    resident_bytes: int  # weights in device memory
    load_seconds: float  # from the path to all weights resident
    tokens_per_second: float | None = None  # decoder: greedy generation of one sequence
    scored_tokens_per_second: float | None = None  # decoder: whole windows at once
    sentences_per_second: float | None = None  # graph: one sentence at a time
    tokens: int | None = None  # scored
    sentences: int | None = None  # compared
    bits_per_byte: float | None = None
    reference_bits_per_byte: float | None = None
    kl_mean: float | None = None  # nats per token, reference || bundle
    kl_p99: float | None = None
    top1_agreement: float | None = None  # share of tokens with the same most likely successor
    cosine_mean: float | None = None  # of sentence vectors with the reference's
    cosine_min: float | None = None


@dataclass(frozen=True, slots=True)
class LoadedBundle:
    """A bundle with all its weights resident."""

    reader: BundleReader
    weights: ResidentWeights
    load_seconds: float
    device: torch.device
    activations: torch.dtype

    @property
    def manifest(self) -> Manifest:
        """The bundle's manifest."""
        return self.reader.manifest

    def tokenizer_json(self) -> bytes:
        """The tokenizer. Raises EvaluationError if the bundle has none."""
        try:
            return self.reader.read_asset("tokenizer.json")
        except BundleNotFoundError as error:
            raise EvaluationError(
                f"{self.reader.name} carries no tokenizer.json, so text cannot be measured on it."
            ) from error
