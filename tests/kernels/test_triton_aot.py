"""Ahead-of-time compilation for three generations of GPUs, held against budgets.toml.

No GPU is needed. A spill, or a loop that grew, is a slower kernel on every GPU: this is where it
shows first. After a change that is worth its cost, write the new numbers into budgets.toml.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import triton
import triton.language as tl
from aot import Kernel, build

from tersor.kernels.entropy import triton as entropy
from tersor.kernels.entropy.batch import TableChoice
from tersor.kernels.int4 import triton as int4
from tersor.kernels.int8 import triton as int8
from tersor.kernels.splitk import triton as splitk
from tersor.kernels.splitk.config import BN, MAX_REGISTERS, NUM_STAGES, NUM_WARPS

BUDGETS = tomllib.loads((Path(__file__).parent / "budgets.toml").read_text(encoding="utf-8"))
OPTIONS = {"num_warps": NUM_WARPS, "num_stages": NUM_STAGES, "maxnreg": MAX_REGISTERS}


def _int8(bm: int, *, even_k: bool = True, dtype: str = "bf16") -> Kernel:
    pointers = {"x_ptr": "*bf16", "codes_ptr": "*i8", "scales_ptr": "*bf16", "bias_ptr": "*bf16"}
    sizes = ("m", "n", "k", "padded_k", "k_per_split")
    aligned = ("n", "k", "padded_k", "k_per_split") if even_k else ("padded_k", "k_per_split")
    return Kernel(
        function=int8.int8_matmul_kernel,
        types=pointers | {"out_ptr": f"*{dtype}"} | dict.fromkeys(sizes, "i32"),
        constants={
            "HAS_BIAS": dtype == "bf16",
            "EVEN_K": even_k,
            "COMPUTE": tl.bfloat16,
            "BM": bm,
            "BN": BN,
            "BK": int8.BK,
        },
        aligned=(*pointers, "out_ptr", *aligned),
        options=OPTIONS,
        weights_per_step=BN * int8.BK,
    )


def _int4(
    bm: int,
    group: int,
    *,
    zeros: bool = False,
    even_k: bool = True,
    asm: bool = True,
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


def _rans(choice: TableChoice, *, wide: bool = False, asm: bool = True) -> Kernel:
    pointers = {
        "words_ptr": "*u16",
        "states_ptr": "*u32",
        "blocks_ptr": "*i64",
        "slots_ptr": "*u64" if wide else "*u32",
        "rows_ptr": "*i32",
        "columns_ptr": "*i32",
        "out_ptr": "*u16" if wide else "*u8",
        "errors_ptr": "*i32",
    }
    sizes = ("num_words", "num_slots", "num_rows", "num_columns", "num_symbols")
    return Kernel(
        function=entropy.rans_decode_kernel,
        types=pointers | dict.fromkeys(sizes, "i32"),
        constants={
            "NARROW": not wide,
            "BY_COLUMN": choice == TableChoice.COLUMN,
            "BY_SYMBOL": choice == TableChoice.SYMBOL,
            "USE_ASM": asm,
        },
        aligned=tuple(pointers),
        options={"num_warps": entropy.NUM_WARPS},
        weights_per_step=32,
        main="SHFL.IDX",
    )


KERNELS = {
    "rans_row": _rans(TableChoice.ROW),
    "rans_row_portable": _rans(TableChoice.ROW, asm=False),
    "rans_row_wide": _rans(TableChoice.ROW, wide=True),
    "rans_column": _rans(TableChoice.COLUMN),
    "rans_symbol": _rans(TableChoice.SYMBOL),
    "rans_symbol_wide": _rans(TableChoice.SYMBOL, wide=True),
    "rans_patch": Kernel(
        function=entropy.rans_patch_kernel,
        types={"out_ptr": "*u8", "positions_ptr": "*i64", "values_ptr": "*u8"}
        | dict.fromkeys(("num_symbols", "patches"), "i32"),
        constants={"BLOCK": entropy.PATCHES},
        aligned=("out_ptr", "positions_ptr", "values_ptr"),
        options={"num_warps": 4},
    ),
    "int8_batch8": _int8(8),
    "int8_batch8_ragged": _int8(8, even_k=False, dtype="fp32"),
    "int8_batch32": _int8(32),
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
    "splitk_sum": Kernel(
        function=splitk.splitk_sum_kernel,
        types={"partials_ptr": "*fp32", "bias_ptr": "*bf16", "out_ptr": "*bf16"}
        | dict.fromkeys(("size", "n", "splits"), "i32"),
        constants={"HAS_BIAS": True, "BLOCK": splitk.BLOCK},
        aligned=("partials_ptr", "bias_ptr", "out_ptr", "size", "n"),
        options={"num_warps": 4},
    ),
}


@pytest.fixture(scope="module", autouse=True)
def _private_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Compiled kernels of a test run leave no trace in the user's cache."""
    with triton.knobs.cache.scope():
        triton.knobs.cache.dir = str(tmp_path_factory.mktemp("triton"))
        yield


def test_every_kernel_has_a_budget() -> None:
    assert sorted(BUDGETS) == sorted(KERNELS)


@pytest.mark.parametrize("sm", [80, 90, 100])
@pytest.mark.parametrize("name", sorted(KERNELS))
def test_machine_code_stays_within_its_budget(name: str, sm: int) -> None:
    machine = build(KERNELS[name], sm)
    budget = BUDGETS[name]
    assert machine.spilled_bytes == 0, f"{machine.spilled_bytes} bytes of registers spilled"
    assert machine.registers <= budget["registers"]
    assert machine.instructions_per_weight <= budget.get("instructions_per_weight", 0)
    # An H100's 227 KiB hold four programs at least.
    assert machine.shared_bytes <= 56 * 1024
