"""Keys and values of a pass written into the cache, quantized where it is int8."""
