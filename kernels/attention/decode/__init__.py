"""Attention of one token per sequence: keys and values in segments, each a program's."""
