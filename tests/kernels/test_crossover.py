from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from kernel_cases import Int4Case, Int8Case, activations

from tersor.kernels import crossover
from tersor.kernels.crossover import BATCH_ROWS, Path, forced_path, packed_max_rows, path_of
from tersor.kernels.int4 import Int4Layout
from tersor.kernels.int8 import Int8Layout
from tersor.kernels.layout import Layout

CPU = torch.device("cpu")


def _layout(name: str) -> Layout:
    if name == "int8":
        eight = Int8Case.random(70, 96)
        return Int8Layout.from_planes(eight.planes, (70, 96), torch.bfloat16, {}, CPU)
    four = Int4Case.random(70, 96, group=32, symmetric=True)
    return Int4Layout.from_planes(four.planes, (70, 96), torch.bfloat16, four.params, CPU)


@pytest.fixture
def capability(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    name: str = request.param
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: name)
    packed_max_rows.cache_clear()
    yield name
    packed_max_rows.cache_clear()


@pytest.mark.parametrize("capability", [*crossover.BREAK_EVEN, "DEFAULT", "SVE256"], indirect=True)
@pytest.mark.parametrize("layout", ["int8", "int4", "int3"])
def test_a_decode_batch_is_never_decoded(layout: str, capability: str) -> None:
    measured = crossover.BREAK_EVEN.get(capability, {}).get(layout, 0)
    assert packed_max_rows(layout) == max(BATCH_ROWS, measured)
    assert path_of(layout, BATCH_ROWS) is Path.PACKED
    assert path_of(layout, 10_000) is Path.DECODED


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_a_forced_path_is_taken_whatever_the_rows(name: str) -> None:
    layout = _layout(name)
    x = activations(64, 96)
    with forced_path(Path.PACKED):
        packed = layout.matmul(x)
        assert torch.equal(layout.matmul(x[:1]), packed[:1])
    with forced_path(Path.DECODED):
        decoded = layout.matmul(x)
        assert path_of(name, 1) is Path.DECODED
    assert path_of(name, 1) is Path.PACKED
    # The decoded path does not round the result to bf16, so forcing it shows.
    assert not torch.equal(packed, decoded)
    torch.testing.assert_close(packed, decoded, rtol=2**-6, atol=2**-6 * float(decoded.abs().max()))
