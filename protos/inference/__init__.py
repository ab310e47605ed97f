"""The Open Inference Protocol with Triton's extensions, in a descriptor pool of its own."""
