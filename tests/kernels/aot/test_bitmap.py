"""Machine code of the bitmap kernels, compiled ahead of time (see aot.py)."""

from __future__ import annotations

import triton.language as tl
from aot import Kernel, budget_tests

from tersor.kernels.bitmap import triton as bitmap
from tersor.kernels.bitmap.packing import BLOCK
from tersor.kernels.gemv.config import BN, MAX_REGISTERS, NUM_STAGES, NUM_WARPS

OPTIONS = {"num_warps": NUM_WARPS, "num_stages": NUM_STAGES, "maxnreg": MAX_REGISTERS}


def _matmul(bm: int, values: str = "*bf16", *, asm: bool = True) -> Kernel:
    pointers = {"x_ptr": "*bf16", "words_ptr": "*i32", "offsets_ptr": "*i16"}
    pointers |= {"starts_ptr": "*i32", "values_ptr": values, "scales_ptr": "*bf16"}
    pointers |= {"bias_ptr": "*bf16", "out_ptr": "*fp32"}
    return Kernel(
        function=bitmap.bitmap_matmul_kernel,
        types=pointers | dict.fromkeys(("m", "n", "k", "blocks_per_split"), "i32"),
        constants={
            "HAS_BIAS": False,
            "GATE": "",
            "COMPUTE": tl.bfloat16,
            "BM": bm,
            "BN": BN,
            "HAS_SCALES": values == "*i8",
            "USE_ASM": asm,
        },
        aligned=(*pointers, "n", "k"),
        options=OPTIONS,
        weights_per_step=BN * BLOCK,
    )


KERNELS = {
    "bitmap_batch8": _matmul(8),
    "bitmap_batch8_portable": _matmul(8, asm=False),
    "bitmap_batch16": _matmul(16),
    "bitmap_int8_batch8": _matmul(8, "*i8"),
    "bitmap_decode": Kernel(
        function=bitmap.bitmap_decode_kernel,
        types={"words_ptr": "*i32", "offsets_ptr": "*i16", "starts_ptr": "*i32"}
        | {"values_ptr": "*bf16", "out_ptr": "*bf16"}
        | dict.fromkeys(("n", "k", "words"), "i32"),
        constants={"USE_ASM": True, "BN": 16},
        aligned=("words_ptr", "offsets_ptr", "starts_ptr", "values_ptr", "out_ptr", "k"),
        options={"num_warps": 4},
    ),
}

(
    test_machine_code_stays_within_its_budget,
    test_amd_machine_code_does_not_spill,
    test_sizes_of_one_compile,
    test_every_kernel_has_a_budget,
) = budget_tests(KERNELS, __file__)
