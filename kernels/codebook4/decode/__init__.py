"""Codes and scales become weights inside a kernel."""
