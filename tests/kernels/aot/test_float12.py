"""Machine code of the float12 kernels, compiled ahead of time (see aot.py)."""

from __future__ import annotations

import triton.language as tl
from aot import Kernel, budget_tests

from tersor.kernels.float12.packing import BLOCK_COLUMNS, BW
from tersor.kernels.float12.triton import (
    BE,
    DECODED_ROWS,
    float12_decode_kernel,
    float12_escapes_kernel,
    float12_matmul_kernel,
)
from tersor.kernels.gemv.config import BN, MAX_REGISTERS, NUM_STAGES, NUM_WARPS

OPTIONS = {"num_warps": NUM_WARPS, "num_stages": NUM_STAGES, "maxnreg": MAX_REGISTERS}
ESCAPES = {"columns_ptr": "*i32", "values_ptr": "*bf16"}


def _float12(
    bm: int,
    *,
    even_k: bool = True,
    gate: str = "",
    dtype: str = "bf16",
    asm: bool = True,
) -> Kernel:
    weight = {"words_ptr": "*i32", "bases_ptr": "*u8", "offsets_ptr": "*i32"} | ESCAPES
    pointers = {"x_ptr": "*bf16"} | weight | {"bias_ptr": "*bf16"}
    sizes = ("m", "n", "k", "width", "blocks_per_split")
    aligned = ("n", "k", "width") if even_k else ("width",)
    return Kernel(
        function=float12_matmul_kernel,
        types=pointers | {"out_ptr": f"*{dtype}"} | dict.fromkeys(sizes, "i32"),
        constants={
            "HAS_BIAS": dtype == "bf16",
            "GATE": gate,
            "COMPUTE": tl.bfloat16,
            "BM": bm,
            "BN": BN,
            "BW": BW,
            "BE": BE,
            "EVEN_K": even_k,
            "USE_ASM": asm,
        },
        aligned=(*pointers, "out_ptr", *aligned),
        options=OPTIONS,
        weights_per_step=BN * BLOCK_COLUMNS if asm else 0,
        main="BF16_V2",  # of the product with 2^112: the loop over escapes multiplies, too
    )


DECODE = {"words_ptr": "*i32", "bases_ptr": "*u8", "out_ptr": "*i16"}
PATCH = {"starts_ptr": "*i32", "ends_ptr": "*i32", "columns_ptr": "*i32", "values_ptr": "*i16"}

KERNELS = {
    "float12_batch8": _float12(8),
    "float12_batch8_ragged": _float12(8, even_k=False, dtype="fp32"),
    "float12_batch32_ragged": _float12(32, even_k=False, dtype="fp32"),
    "float12_batch64": _float12(64),
    "float12_batch8_silu": _float12(8, gate="silu"),
    "float12_batch8_portable": _float12(8, asm=False),
    "float12_decode": Kernel(
        function=float12_decode_kernel,
        types=DECODE | dict.fromkeys(("n", "k", "width"), "i32"),
        constants={"BN": DECODED_ROWS, "BW": BW},
        aligned=(*DECODE, "k", "width"),
        options={"num_warps": 2},
    ),
    "float12_escapes": Kernel(
        function=float12_escapes_kernel,
        types=PATCH | {"out_ptr": "*i16"} | dict.fromkeys(("n", "k"), "i32"),
        constants={"BN": DECODED_ROWS, "BE": BE},
        aligned=(*PATCH, "out_ptr", "k"),
        options={"num_warps": 2},
    ),
}

(
    test_machine_code_stays_within_its_budget,
    test_amd_machine_code_does_not_spill,
    test_sizes_of_one_compile,
    test_every_kernel_has_a_budget,
) = budget_tests(KERNELS, __file__)
