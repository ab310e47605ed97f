from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping

import pytest
import torch
from kernel_cases import Int4Case, Int8Case, activations
from torch import Tensor

from tersor.kernels.errors import LayoutError
from tersor.kernels.layout import Layout, PlaneSpec, layouts

CPU = torch.device("cpu")
BF16 = torch.bfloat16
SYMMETRIC = {"group": 32, "symmetric": True}


def test_layouts_are_found_by_their_names() -> None:
    assert {name: cls.name for name, cls in layouts().items()} == {
        "bitmap": "bitmap",
        "codebook4": "codebook4",
        "dense": "dense",
        "float12": "float12",
        "fp8": "fp8",
        "int4": "int4",
        "int6": "int6",
        "int8": "int8",
    }


def test_plane_specs() -> None:
    registry = layouts()
    assert registry["dense"].plane_specs((2, 3, 4), BF16, {}) == {
        "values": PlaneSpec("bf16", (2, 3, 4))
    }
    assert registry["float12"].plane_specs((3, 5), BF16, {}) == {
        "values": PlaneSpec("bf16", (3, 5))
    }
    assert registry["int8"].plane_specs((3, 5), BF16, {}) == {
        "codes": PlaneSpec("i8", (3, 5)),
        "scales": PlaneSpec("bf16", (3,)),
    }
    assert registry["int4"].plane_specs((3, 65), BF16, {"group": 32, "symmetric": False}) == {
        "codes": PlaneSpec("u4", (3, 65)),
        "scales": PlaneSpec("bf16", (3, 3)),
        "zeros": PlaneSpec("u4", (3, 3)),
    }
    assert registry["int4"].plane_specs((3, 65), BF16, {"group": 0, "symmetric": True}) == {
        "codes": PlaneSpec("u4", (3, 65)),
        "scales": PlaneSpec("bf16", (3, 1)),
    }


@pytest.mark.parametrize(
    ("name", "shape", "dtype", "params", "message"),
    [
        ("dense", (2,), BF16, {"group": 1}, "takes no parameters, got \\['group'\\]"),
        ("dense", (2,), torch.complex64, {}, "no plane of torch.complex64"),
        ("int8", (4,), BF16, {}, r"matrices \[N, K\].*got shape \[4\]"),
        ("int8", (4, 0), BF16, {}, r"N, K >= 1, got shape \[4, 0\]"),
        ("int8", (4, 4), torch.int64, {}, "got torch.int64"),
        ("float12", (4,), BF16, {}, r"matrices \[N, K\].*got shape \[4\]"),
        ("float12", (4, 4), torch.float32, {}, "bfloat16 weights, got torch.float32; use `dense`"),
        ("float12", (4, 4), BF16, {"x": 1}, "takes no parameters"),
        ("int8", (4, 4), BF16, {"x": 1}, "`step` and `activations`, got \\['x'\\]"),
        ("int4", (4, 4), BF16, {"group": 32}, "`group` and `symmetric`.*got \\['group'\\]"),
        ("int4", (4, 4), BF16, {"group": -1, "symmetric": True}, "integer >= 0, got -1"),
        ("int4", (4, 4), BF16, {"group": True, "symmetric": True}, "integer >= 0, got True"),
        ("int4", (4, 4), BF16, {"group": 32, "symmetric": 1}, "boolean, got 1"),
    ],
)
def test_unsupported_weights_are_refused_in_words(
    name: str,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    params: Mapping[str, int | bool],
    message: str,
) -> None:
    with pytest.raises(LayoutError, match=message):
        layouts()[name].plane_specs(shape, dtype, params)


def _int8(planes: Mapping[str, Tensor]) -> Layout:
    return layouts()["int8"].from_planes(planes, (4, 8), BF16, {}, CPU)


def _int4(planes: Mapping[str, Tensor]) -> Layout:
    return layouts()["int4"].from_planes(planes, (4, 8), BF16, SYMMETRIC, CPU)


def test_planes_must_be_the_declared_ones() -> None:
    planes = Int8Case.random(4, 8).planes
    with pytest.raises(LayoutError, match=r"missing: \['scales'\], unknown: \['steps'\]"):
        _int8({"codes": planes["codes"], "steps": planes["scales"]})
    with pytest.raises(LayoutError, match=r"`int8.codes` has shape \[3, 8\], expected \[4, 8\]"):
        _int8(planes | {"codes": planes["codes"][:3]})
    with pytest.raises(LayoutError, match=r"`int8.scales` has dtype torch.float32, expected"):
        _int8(planes | {"scales": planes["scales"].float()})
    codes = Int4Case.random(4, 8, group=32, symmetric=True).planes
    with pytest.raises(LayoutError, match=r"`int4.codes` holds 16, expected symbols 0..15"):
        _int4(codes | {"codes": torch.full_like(codes["codes"], 16)})


@pytest.mark.parametrize("name", ["dense", "float12", "int8", "int4"])
def test_operands_are_checked_by_name(name: str) -> None:
    planes = {
        "dense": {"values": activations(4, 8, BF16)},
        "float12": {"values": activations(4, 8, BF16)},
        "int8": Int8Case.random(4, 8).planes,
        "int4": Int4Case.random(4, 8, group=32, symmetric=True).planes,
    }[name]
    params = SYMMETRIC if name == "int4" else {}
    layout = layouts()[name].from_planes(planes, (4, 8), BF16, params, CPU)
    with pytest.raises(LayoutError, match=r"`x` has shape \[1, 7\], expected \[..., 8\]"):
        layout.matmul(activations(1, 7))
    with pytest.raises(LayoutError, match=r"`x` has dtype torch\.float64"):
        layout.matmul(activations(1, 8, torch.float64))
    with pytest.raises(LayoutError, match=r"`bias` has shape \[5\], expected \[4\]"):
        layout.matmul(activations(1, 8), torch.zeros(5))
    with pytest.raises(LayoutError, match=r"`indices` has dtype torch\.int32"):
        layout.rows(torch.zeros(1, dtype=torch.int32), torch.float32)


def test_the_cpu_paths_never_import_triton() -> None:
    program = """
import sys
sys.modules["triton"] = None
import torch
from tersor.kernels.layout import layouts
planes = {"codes": torch.ones(4, 8, dtype=torch.int8), "scales": torch.ones(4).bfloat16()}
cpu = torch.device("cpu")
made = layouts()["int8"].from_planes(planes, (4, 8), torch.bfloat16, {}, cpu)
assert made.matmul(torch.ones(1, 8)).tolist() == [[8.0] * 4]
"""
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
