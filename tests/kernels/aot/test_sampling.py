"""Machine code of the sampler, compiled ahead of time (see aot.py)."""

from __future__ import annotations

from aot import Kernel, budget_tests

from tersor.kernels.sampling.triton import BUCKET_BLOCK, NUM_WARPS, ROW_BLOCK, sample_rows_kernel

POINTERS = {"top_k_ptr": "*i32", "ids_ptr": "*i32", "tokens_ptr": "*i64"} | dict.fromkeys(
    ("logits_ptr", "temperature_ptr", "top_p_ptr", "min_p_ptr", "uniform_ptr"), "*fp32"
)
KERNELS = {
    "sample_rows": Kernel(
        function=sample_rows_kernel,
        types=POINTERS | {"vocab": "i32"},
        constants={"ROW_BLOCK": ROW_BLOCK, "BUCKET_BLOCK": BUCKET_BLOCK},
        aligned=(*POINTERS, "vocab"),
        options={"num_warps": NUM_WARPS},
    ),
}

(
    test_machine_code_stays_within_its_budget,
    test_amd_machine_code_does_not_spill,
    test_sizes_of_one_compile,
    test_every_kernel_has_a_budget,
) = budget_tests(KERNELS, __file__)
