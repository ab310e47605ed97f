"""Machine code of the w8a8 kernels, compiled ahead of time (see aot.py)."""

from __future__ import annotations

from aot import Kernel, budget_tests

from tersor.kernels.gemv.config import BN, MAX_REGISTERS, NUM_STAGES, NUM_WARPS
from tersor.kernels.int8.packing import BK
from tersor.kernels.int8.w8a8 import triton as w8a8

OPTIONS = {
    "num_warps": NUM_WARPS,
    "num_stages": NUM_STAGES,
    "maxnreg": MAX_REGISTERS,
    "enable_fp_fusion": False,
}


def _matmul(bm: int, *, even_k: bool = True, gate: str = "", split: bool = False) -> Kernel:
    pointers = {
        "x_ptr": "*i8",
        "x_scales_ptr": "*fp32",
        "codes_ptr": "*i8",
        "scales_ptr": "*bf16",
        "bias_ptr": "*bf16",
        "out_ptr": "*i32" if split else "*bf16",
    }
    return Kernel(
        function=w8a8.w8a8_matmul_kernel,
        types=pointers | dict.fromkeys(("m", "n", "padded_k", "steps_per_split"), "i32"),
        constants={
            "HAS_BIAS": True,
            "GATE": gate,
            "SPLIT": split,
            "EVEN_K": even_k,
            "BM": bm,
            "BN": BN,
            "BK": BK,
        },
        aligned=(*pointers, "n", "padded_k"),
        options=OPTIONS,
        weights_per_step=BN * BK,
    )


def _finish(gate: str) -> Kernel:
    pointers = {
        "sums_ptr": "*i32",
        "x_scales_ptr": "*fp32",
        "scales_ptr": "*bf16",
        "bias_ptr": "*bf16",
        "out_ptr": "*bf16",
    }
    return Kernel(
        function=w8a8.w8a8_finish_kernel,
        types=pointers | dict.fromkeys(("m", "n", "splits"), "i32"),
        constants={"HAS_BIAS": True, "GATE": gate, "BLOCK": w8a8.FINISH_BLOCK},
        aligned=(*pointers, "n"),
        options={"num_warps": 4, "enable_fp_fusion": False},
    )


KERNELS = {
    "w8a8_batch8": _matmul(8),
    "w8a8_batch8_ragged": _matmul(8, even_k=False),
    "w8a8_batch8_silu": _matmul(8, gate="silu"),
    "w8a8_batch32_split": _matmul(32, split=True),
    "w8a8_finish": _finish(""),
    "w8a8_finish_silu": _finish("silu"),
    "quantize_tokens": Kernel(
        function=w8a8.quantize_tokens_kernel,
        types={"x_ptr": "*bf16", "codes_ptr": "*i8", "scales_ptr": "*fp32"}
        | dict.fromkeys(("k", "padded_k"), "i32"),
        constants={"BLOCK": w8a8.QUANTIZE_BLOCK},
        aligned=("x_ptr", "codes_ptr", "scales_ptr", "k", "padded_k"),
        options={"num_warps": 8, "enable_fp_fusion": False},
    ),
}

(
    test_machine_code_stays_within_its_budget,
    test_amd_machine_code_does_not_spill,
    test_sizes_of_one_compile,
    test_every_kernel_has_a_budget,
) = budget_tests(KERNELS, __file__)
