"""Importing the package loads no torch and no numba and starts no thread; its exports are exact."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import sys, threading
sys.modules["torch"] = None
sys.modules["triton"] = None
import tersor.bundle.reader, tersor.bundle.writer, tersor.bundle.verify
assert threading.active_count() == 1, threading.enumerate()
assert "numba" not in sys.modules
"""


def test_importing_needs_no_torch_no_numba_and_starts_no_thread() -> None:
    subprocess.run([sys.executable, "-c", SCRIPT], check=True)


def test_exports_are_sorted_and_there() -> None:
    from tersor import bundle

    # An editable install made before the package had an __init__ sees it as a namespace.
    names = getattr(bundle, "__all__", [])
    assert names == sorted(names)
    assert all(hasattr(bundle, name) for name in names)
