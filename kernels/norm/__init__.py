"""RMSNorm of the residual stream, which adds what the layer before left to add."""

from tersor.kernels.norm.ops import add_rms_norm, rms_norm_rows

__all__ = ["add_rms_norm", "rms_norm_rows"]
