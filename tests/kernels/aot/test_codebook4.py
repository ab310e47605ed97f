"""Machine code of the codebook4 kernels, compiled ahead of time (see aot.py)."""

from __future__ import annotations

import triton.language as tl
from aot import Kernel, budget_tests

from tersor.kernels.codebook4 import triton as codebook4
from tersor.kernels.codebook4.scales import ScaleGrid
from tersor.kernels.gemv.config import BN, MAX_REGISTERS, NUM_STAGES, NUM_WARPS

OPTIONS = {"num_warps": NUM_WARPS, "num_stages": NUM_STAGES, "maxnreg": MAX_REGISTERS}


def _matmul(
    bm: int,
    group: int,
    scale: str = "bf16",
    *,
    mirrored: bool = False,
    asm: bool = True,
) -> Kernel:
    grid = ScaleGrid(group or 1 << 20, 1 << 20, scale)
    pointers = {"x_ptr": "*bf16", "words_ptr": "*i32", "scales_ptr": "*i32"}
    pointers |= {"lookup_ptr": "*i32", "tensor_scale_ptr": "*fp32"}
    pointers |= {"bias_ptr": "*bf16", "out_ptr": "*fp32"}
    sizes = ("m", "n", "k", "words", "blocks_per_split")
    return Kernel(
        function=codebook4.codebook4_matmul_kernel,
        types=pointers | dict.fromkeys(sizes, "i32"),
        constants={
            "HAS_BIAS": False,
            "GATE": "",
            "COMPUTE": tl.bfloat16,
            "BM": bm,
            "BN": BN,
            "BW": grid.bw,
            "USE_ASM": asm,
            "SLICES": grid.slices,
            "SCALE": scale,
            "SCALE_WORDS": grid.words,
            "IN_WORD": grid.in_word,
            "HAS_TENSOR_SCALE": scale == "e4m3",
            "MIRRORED": mirrored,
        },
        aligned=(*pointers, "n", "k", "words"),
        options=OPTIONS,
        weights_per_step=BN * grid.bw * 8,
    )


KERNELS = {
    "codebook4_row_batch8": _matmul(8, 0),
    "codebook4_g64_batch8": _matmul(8, 64),
    "codebook4_g64_batch8_portable": _matmul(8, 64, asm=False),
    "codebook4_g64_batch16": _matmul(16, 64),
    "codebook4_g32_batch8": _matmul(8, 32),
    "codebook4_g32_f32_batch8": _matmul(8, 32, "f32"),
    "codebook4_mxfp4_batch8": _matmul(8, 32, "e8m0", mirrored=True),
    "codebook4_nvfp4_batch8": _matmul(8, 16, "e4m3", mirrored=True),
    "codebook4_decode": Kernel(
        function=codebook4.codebook4_decode_kernel,
        types={"words_ptr": "*i32", "scales_ptr": "*i32", "lookup_ptr": "*i32"}
        | {"tensor_scale_ptr": "*fp32", "out_ptr": "*bf16"}
        | dict.fromkeys(("n", "k", "words", "all_n"), "i32"),
        constants={"SLICES": 1, "SCALE": "e4m3", "SCALE_WORDS": 2, "IN_WORD": 4}
        | {"HAS_TENSOR_SCALE": True, "BN": 16, "BW": 16},
        aligned=("words_ptr", "scales_ptr", "lookup_ptr", "out_ptr", "k", "words", "all_n"),
        options={"num_warps": 4},
    ),
}

(
    test_machine_code_stays_within_its_budget,
    test_amd_machine_code_does_not_spill,
    test_sizes_of_one_compile,
    test_every_kernel_has_a_budget,
) = budget_tests(KERNELS, __file__)
