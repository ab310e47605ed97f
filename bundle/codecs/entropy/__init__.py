"""Entropy codecs made for weights: static tables, small independent blocks, no string matching."""
