"""Machine code of the residual stream's norm, compiled ahead of time (see aot.py)."""

from __future__ import annotations

from aot import Kernel, budget_tests

from tersor.kernels.norm.triton import add_rms_norm_kernel, block_size, warps


def _norm(width: int, *, splits: int, select: bool = False, partials: str = "fp32") -> Kernel:
    block = block_size(width)
    pointers = {
        "residual_ptr": "*bf16",
        "partials_ptr": f"*{partials}",
        "rows_ptr": "*i64",
        "gain_ptr": "*bf16",
        "out_ptr": "*bf16",
    }
    return Kernel(
        function=add_rms_norm_kernel,
        types=pointers | {"tokens": "i32", "width": "i32", "eps": "fp32"},
        constants={"SPLITS": splits, "SELECT": select, "BLOCK": block, "WIDE": width > block},
        aligned=(*pointers, "width"),
        options={"num_warps": warps(block)},
    )


KERNELS = {
    "first_4096": _norm(4096, splits=0),
    "dense_4096": _norm(4096, splits=1, partials="bf16"),
    "split_4096": _norm(4096, splits=8),
    "split_8192": _norm(8192, splits=8),
    "split_16384": _norm(16384, splits=8),
    "rows_4096": _norm(4096, splits=4, select=True),
}

(
    test_machine_code_stays_within_its_budget,
    test_amd_machine_code_does_not_spill,
    test_sizes_of_one_compile,
    test_every_kernel_has_a_budget,
) = budget_tests(KERNELS, __file__)
