"""Products of the `int8` layout whose activations are signed bytes, too (w8a8)."""
