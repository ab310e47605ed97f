"""How the next token is chosen: validation, penalties, filters, seeded draws, log-probabilities."""

from tersor.runtime.engine.sampling.params import validate_sampling
from tersor.runtime.engine.sampling.sampler import Sampled, SampleFailure, sample
from tersor.runtime.engine.sampling.state import SamplerState

__all__ = ["SampleFailure", "Sampled", "SamplerState", "sample", "validate_sampling"]
