"""Machine code of what lies between the qkv product and attention, compiled ahead of time."""

from __future__ import annotations

import triton
from aot import Kernel, budget_tests

from tersor.kernels.rotary.triton import rotate_store_kernel


def _rotary(
    head_dim: int, *, splits: int, norm: bool = False, qkv: str = "fp32", int8: bool = False
) -> Kernel:
    pointers = {
        "qkv_ptr": f"*{qkv}",
        "slots_ptr": "*i64",
        "cache_ptr": "*i8" if int8 else "*bf16",
        "scales_ptr": "*fp32",
    } | dict.fromkeys(("cos_ptr", "sin_ptr", "q_gain_ptr", "k_gain_ptr", "q_ptr"), "*bf16")
    sizes = ("tokens", "heads", "kv_heads", "table_stride")
    return Kernel(
        function=rotate_store_kernel,
        types=pointers | dict.fromkeys(sizes, "i32") | {"eps": "fp32"},
        constants={
            "SPLITS": splits,
            "NORM": norm,
            "QUANTIZED": int8,
            "HEAD_DIM": head_dim,
            "COLUMNS": triton.next_power_of_2(head_dim),
        },
        aligned=(*pointers, "table_stride"),
        options={"num_warps": 1},
    )


KERNELS = {
    "dense_128": _rotary(128, splits=1, qkv="bf16"),
    "split_128": _rotary(128, splits=8),
    "norm_128": _rotary(128, splits=4, norm=True),
    "int8_128": _rotary(128, splits=4, int8=True),
    "norm_256": _rotary(256, splits=8, norm=True),
}

(
    test_machine_code_stays_within_its_budget,
    test_amd_machine_code_does_not_spill,
    test_sizes_of_one_compile,
    test_every_kernel_has_a_budget,
) = budget_tests(KERNELS, __file__)
