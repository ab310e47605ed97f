"""Machine code of the int4 kernels, compiled ahead of time (see aot.py)."""

from __future__ import annotations

import triton.language as tl
from aot import Kernel, budget_tests

from tersor.kernels.gemv.config import BN, MAX_REGISTERS, NUM_STAGES, NUM_WARPS
from tersor.kernels.int4 import triton as int4

OPTIONS = {"num_warps": NUM_WARPS, "num_stages": NUM_STAGES, "maxnreg": MAX_REGISTERS}


def _int4(
    bm: int,
    group: int,
    *,
    zeros: bool = False,
    even_k: bool = True,
    asm: bool = True,
    gate: str = "",
    dtype: str = "fp32",
) -> Kernel:
    bw = 16 if group % 32 else 32
    pointers = {"x_ptr": "*bf16", "words_ptr": "*i32", "scales_ptr": "*bf16"}
    pointers |= {"zeros_ptr": "*u8", "bias_ptr": "*bf16", "out_ptr": f"*{dtype}"}
    sizes = ("m", "n", "k", "words", "groups", "blocks_per_split")
    return Kernel(
        function=int4.int4_matmul_kernel,
        types=pointers | dict.fromkeys(sizes, "i32"),
        constants={
            "HAS_BIAS": dtype == "bf16",
            "GATE": gate,
            "HAS_ZEROS": zeros,
            "EVEN_K": even_k,
            "USE_ASM": asm,
            "COMPUTE": tl.bfloat16,
            "GROUP": group,
            "SLICES": int4.slices_per_scale(group, bw, 1 << 20) if group else 8,
            "BM": bm,
            "BN": BN,
            "BW": bw,
        },
        aligned=(*pointers, "words", *(("n", "k") if even_k else ())),
        options=OPTIONS,
        weights_per_step=BN * bw * 8,
    )


KERNELS = {
    "int4_row_batch8": _int4(8, 0),
    "int4_g128_batch8": _int4(8, 128),
    "int4_g128_batch8_ragged": _int4(8, 128, even_k=False),
    "int4_g128_batch8_portable": _int4(8, 128, asm=False),
    "int4_g128_zeros_batch8": _int4(8, 128, zeros=True, dtype="bf16"),
    "int4_g128_zeros_batch16": _int4(16, 128, zeros=True),
    "int4_g64_zeros_batch16": _int4(16, 64, zeros=True),
    "int4_g32_batch8": _int4(8, 32),
    "int4_g32_zeros_batch8": _int4(8, 32, zeros=True),
    "int4_g32_zeros_batch8_ragged": _int4(8, 32, zeros=True, even_k=False),
    "int4_decode": Kernel(
        function=int4.int4_decode_kernel,
        types={"words_ptr": "*i32", "scales_ptr": "*bf16", "zeros_ptr": "*u8", "out_ptr": "*bf16"}
        | dict.fromkeys(("n", "k", "words", "groups", "all_n"), "i32"),
        constants={"HAS_ZEROS": True, "GROUP": 128, "BN": 16, "BW": 32},
        aligned=("words_ptr", "scales_ptr", "zeros_ptr", "out_ptr", "k", "words", "all_n"),
        options={"num_warps": 4},
    ),
    "int4_g128_batch8_silu": _int4(8, 128, gate="silu", dtype="bf16"),
}

(
    test_machine_code_stays_within_its_budget,
    test_amd_machine_code_does_not_spill,
    test_every_kernel_has_a_budget,
) = budget_tests(KERNELS, __file__)
