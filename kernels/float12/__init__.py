"""bf16 weights of twelve bits, exact."""

from tersor.kernels.float12.layout import Float12Layout

__all__ = ["Float12Layout"]
