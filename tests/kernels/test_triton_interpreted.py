from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tersor.kernels.errors import LayoutError
from tersor.kernels.int8 import triton as int8

CASES = Path(__file__).parent / "interpreted"


@pytest.mark.parametrize("name", sorted(path.name for path in CASES.glob("*_cases.py")))
def test_kernels_agree_with_their_references_under_the_interpreter(name: str) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "pytest", str(CASES / name), "-q", "-x", "-p", "no:cacheprovider"],
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]


def test_kernels_refuse_cpu_operands_without_the_interpreter() -> None:
    codes = torch.zeros(4, 32, dtype=torch.int8)
    with pytest.raises(LayoutError, match="need operands on a GPU, got cpu"):
        int8.matmul(torch.zeros(1, 32), codes, torch.ones(4).bfloat16(), None)
