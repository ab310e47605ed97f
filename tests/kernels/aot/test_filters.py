"""Machine code of what a load runs after the entropy decoder (see aot.py)."""

from __future__ import annotations

from aot import Kernel, budget_tests

from tersor.kernels.filters import triton as filters
from tersor.kernels.interleave import triton as interleave

KERNELS = {
    f"join_bf16{'_base' if base else ''}": Kernel(
        function=filters.join_floats_kernel,
        types={"base_ptr": "*u8", "split_ptr": "*u8", "out_ptr": "*u16"}
        | {"symbols": "i64", "width": "i32", "tiles": "i32"},
        constants={"WIDTH": 2, "HAS_BASE": base, "BLOCK": filters.BLOCK},
        aligned=("base_ptr", "split_ptr", "out_ptr", "symbols", "width"),
        options={"num_warps": filters.NUM_WARPS},
    )
    for base in (False, True)
} | {
    "join_nibbles": Kernel(
        function=filters.join_nibbles_kernel,
        types={"stream_ptr": "*u8", "out_ptr": "*u8", "size": "i32", "symbols": "i32"},
        constants={"BLOCK": filters.BLOCK},
        aligned=("stream_ptr", "out_ptr", "size", "symbols"),
        options={"num_warps": filters.NUM_WARPS},
    ),
    "interleave_int4": Kernel(
        function=interleave.interleave_kernel,
        types={"symbols_ptr": "*u8", "words_ptr": "*i32"}
        | dict.fromkeys(("k", "width", "tiles"), "i32"),
        constants={"BITS": 4, "BW": 32, "BLOCK": interleave.BLOCK},
        aligned=("symbols_ptr", "words_ptr", "k", "width"),
        options={"num_warps": interleave.NUM_WARPS},
    ),
}

(
    test_machine_code_stays_within_its_budget,
    test_amd_machine_code_does_not_spill,
    test_sizes_of_one_compile,
    test_every_kernel_has_a_budget,
) = budget_tests(KERNELS, __file__)
