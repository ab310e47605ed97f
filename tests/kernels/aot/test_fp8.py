"""Machine code of the fp8 kernels, compiled ahead of time (see aot.py)."""

from __future__ import annotations

import triton.language as tl
from aot import Kernel, budget_tests

from tersor.kernels.fp8 import triton as fp8
from tersor.kernels.fp8.packing import BK
from tersor.kernels.gemv.config import BN, MAX_REGISTERS, NUM_STAGES, NUM_WARPS

OPTIONS = {"num_warps": NUM_WARPS, "num_stages": NUM_STAGES, "maxnreg": MAX_REGISTERS}


def _fp8(
    bm: int,
    *,
    even_k: bool = True,
    gate: str = "",
    dtype: str = "bf16",
    asm: bool = True,
    blocks: bool = False,
) -> Kernel:
    pointers = {"x_ptr": "*bf16", "codes_ptr": "*u8", "scales_ptr": "*fp32", "bias_ptr": "*bf16"}
    sizes = ("m", "n", "k", "padded_k", "scale_columns", "steps_per_split")
    aligned = ("n", "k", "padded_k") if even_k else ("padded_k",)
    return Kernel(
        function=fp8.fp8_matmul_kernel,
        types=pointers | {"out_ptr": f"*{dtype}"} | dict.fromkeys(sizes, "i32"),
        constants={
            "HAS_BIAS": dtype == "bf16",
            "GATE": gate,
            "EVEN_K": even_k,
            "COMPUTE": tl.bfloat16,
            "BM": bm,
            "BN": BN,
            "BK": BK,
            "USE_ASM": asm,
            "BLOCKS": blocks,
        },
        aligned=(*pointers, "out_ptr", *aligned),
        options=OPTIONS,
        weights_per_step=BN * BK,
    )


KERNELS = {
    "fp8_row_batch8": _fp8(8),
    "fp8_row_batch8_ragged": _fp8(8, even_k=False, dtype="fp32"),
    "fp8_row_batch8_portable": _fp8(8, asm=False),
    "fp8_row_batch32": _fp8(32),
    "fp8_block_batch8": _fp8(8, blocks=True),
    "fp8_block_batch8_silu": _fp8(8, blocks=True, gate="silu"),
    "fp8_block_batch32": _fp8(32, blocks=True),
    "round_tokens": Kernel(
        function=fp8.round_tokens_kernel,
        types={"x_ptr": "*bf16", "out_ptr": "*bf16", "k": "i32"},
        constants={"BLOCK": fp8.ROUND_BLOCK},
        aligned=("x_ptr", "out_ptr", "k"),
        options={"num_warps": 8, "enable_fp_fusion": False},
    ),
}

(
    test_machine_code_stays_within_its_budget,
    test_amd_machine_code_does_not_spill,
    test_sizes_of_one_compile,
    test_every_kernel_has_a_budget,
) = budget_tests(KERNELS, __file__)
