"""Machine code of the int8 kernels, compiled ahead of time (see aot.py)."""

from __future__ import annotations

import triton.language as tl
from aot import Kernel, budget_tests

from tersor.kernels.gemv.config import BN, MAX_REGISTERS, NUM_STAGES, NUM_WARPS
from tersor.kernels.int8.packing import BK
from tersor.kernels.int8.triton import int8_matmul_kernel

OPTIONS = {"num_warps": NUM_WARPS, "num_stages": NUM_STAGES, "maxnreg": MAX_REGISTERS}


def _int8(
    bm: int, *, even_k: bool = True, gate: str = "", dtype: str = "bf16", asm: bool = True
) -> Kernel:
    pointers = {"x_ptr": "*bf16", "codes_ptr": "*i8", "scales_ptr": "*bf16", "bias_ptr": "*bf16"}
    sizes = ("m", "n", "k", "padded_k", "steps_per_split")
    aligned = ("n", "k", "padded_k") if even_k else ("padded_k",)
    return Kernel(
        function=int8_matmul_kernel,
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
        },
        aligned=(*pointers, "out_ptr", *aligned),
        options=OPTIONS,
        weights_per_step=BN * BK,
    )


KERNELS = {
    "int8_batch8": _int8(8),
    "int8_batch8_ragged": _int8(8, even_k=False, dtype="fp32"),
    "int8_batch32": _int8(32),
    "int8_batch8_silu": _int8(8, gate="silu"),
    "int8_batch8_portable": _int8(8, asm=False),
}

(
    test_machine_code_stays_within_its_budget,
    test_amd_machine_code_does_not_spill,
    test_sizes_of_one_compile,
    test_every_kernel_has_a_budget,
) = budget_tests(KERNELS, __file__)
