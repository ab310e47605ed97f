"""The next token of every row of logits: greedy, or drawn from what the filters leave."""

from tersor.kernels.sampling.ops import sample_rows

__all__ = ["sample_rows"]
