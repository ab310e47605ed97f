"""Who writes a bundle: this program and its version, as the manifest names it."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def producer() -> str:
    """For example "tersor 0.1.0"."""
    try:
        return f"tersor {version('tersor')}"
    except PackageNotFoundError:  # run from a source tree that is not installed
        return "tersor"
