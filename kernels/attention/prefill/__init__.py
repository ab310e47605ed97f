"""Attention of many tokens per sequence: chunks of prompts over what is cached before them."""
