"""Machine code of the kernels of words, compiled ahead of time (see aot.py)."""

from __future__ import annotations

from typing import Any

import triton.language as tl
from aot import Kernel, budget_tests

from tersor.kernels.gemv.config import BN, MAX_REGISTERS, NUM_STAGES, NUM_WARPS
from tersor.kernels.int4.packing import ScaleCut
from tersor.kernels.int4.triton_decode import decode_kernel
from tersor.kernels.int4.triton_groups import group_matmul_kernel
from tersor.kernels.int4.triton_rows import row_matmul_kernel

OPTIONS = {"num_warps": NUM_WARPS, "num_stages": NUM_STAGES, "maxnreg": MAX_REGISTERS}
ROW_TYPES = {
    "x_ptr": "*bf16",
    "words_ptr": "*i32",
    "high_ptr": "*i16",
    "scales_ptr": "*bf16",
    "zeros_ptr": "*u8",
    "entries_ptr": "*i32",
    "starts_ptr": "*i32",
    "columns_ptr": "*bf16",
    "bias_ptr": "*bf16",
    "out_ptr": "*fp32",
}
GROUP_TYPES = {name: kind for name, kind in ROW_TYPES.items() if name != "high_ptr"}
SIZES = ("m", "n", "k", "words", "columns_width", "blocks_per_split")


def _words(
    bm: int,
    group: int = 0,
    *,
    bits: int = 4,
    zeros: bool = False,
    outliers: bool = False,
    even_k: bool = True,
    asm: bool = True,
    gate: str = "",
    dtype: str = "fp32",
    bn: int = BN,
    num_warps: int = NUM_WARPS,
    m: int = 0,
) -> Kernel:
    """The kernel for `group` columns a scale (0: a whole row), compiled for m rows if not 0."""
    bw = 16 if group % 32 else 32
    types: dict[str, str] = (GROUP_TYPES if group else ROW_TYPES) | {"out_ptr": f"*{dtype}"}
    aligned = (*types, "words", *(("n", "k") if even_k else ()), *(() if m else ("columns_width",)))
    constants: dict[str, Any] = {
        "HAS_BIAS": dtype == "bf16",
        "GATE": gate,
        "HAS_ZEROS": zeros,
        "OUTLIERS": outliers,
        "EVEN_K": even_k,
        "USE_ASM": asm,
        "COMPUTE": tl.bfloat16,
        "BM": bm,
        "BN": bn,
        "BW": bw,
    }
    if m:
        constants |= {"m": m, "columns_width": 1}
    if group:
        cut = ScaleCut.of(group, bw)
        constants |= {"PARTS": cut.parts, "SCALE_BLOCKS": cut.blocks}
    else:
        constants |= {"BITS": bits, "scale_stride": 1}
    return Kernel(
        function=group_matmul_kernel if group else row_matmul_kernel,
        types=types | {name: "i32" for name in SIZES if name not in constants},
        constants=constants,
        aligned=aligned,
        options=OPTIONS | {"num_warps": num_warps},
        weights_per_step=bn * bw * 8,
    )


KERNELS = {
    "int4_row_batch8": _words(8),
    "int4_row_batch8_bn128": _words(8, bn=128),
    "int4_row_outliers_batch1": _words(8, outliers=True, m=1),
    "int4_row_outliers_batch8": _words(8, outliers=True),
    "int4_g128_batch8": _words(8, 128),
    "int4_g128_batch8_bn16_one_warp": _words(8, 128, bn=16, num_warps=1),
    "int4_g128_batch8_ragged": _words(8, 128, even_k=False),
    "int4_g128_batch8_portable": _words(8, 128, asm=False),
    "int4_g128_batch8_silu": _words(8, 128, gate="silu", dtype="bf16"),
    "int4_g128_zeros_batch8": _words(8, 128, zeros=True, dtype="bf16"),
    "int4_g64_batch8": _words(8, 64),
    "int4_g64_zeros_batch16": _words(16, 64, zeros=True),
    "int4_g32_batch8": _words(8, 32),
    "int4_g32_zeros_batch8": _words(8, 32, zeros=True),
    "int4_g32_zeros_batch8_ragged": _words(8, 32, zeros=True, even_k=False),
    "int6_row_batch8": _words(8, bits=6),
    "int6_row_outliers_batch16": _words(16, bits=6, outliers=True),
    "int6_row_outliers_batch8_portable": _words(8, bits=6, outliers=True, asm=False),
    "int4_decode": Kernel(
        function=decode_kernel,
        types={"words_ptr": "*i32", "high_ptr": "*i16", "scales_ptr": "*bf16", "zeros_ptr": "*u8"}
        | {"out_ptr": "*bf16"}
        | dict.fromkeys(("n", "k", "words", "all_n", "scale_stride"), "i32"),
        constants={
            "BITS": 4,
            "HAS_ZEROS": True,
            "PARTS": 2,
            "SCALE_BLOCKS": 1,
            "BN": 16,
            "BW": 32,
        },
        aligned=("words_ptr", "scales_ptr", "zeros_ptr", "out_ptr", "k", "words", "all_n"),
        options={"num_warps": 4},
    ),
}

(
    test_machine_code_stays_within_its_budget,
    test_amd_machine_code_does_not_spill,
    test_sizes_of_one_compile,
    test_every_kernel_has_a_budget,
) = budget_tests(KERNELS, __file__)
