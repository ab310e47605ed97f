"""Loads that decode on their device, under Triton's interpreter; and what is left to the host."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

CASES = Path(__file__).parent / "interpreted" / "device_decode_cases.py"


def test_bundles_load_as_on_the_host_under_the_interpreter() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "pytest", str(CASES), "-q", "-x", "-p", "no:cacheprovider"],
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
