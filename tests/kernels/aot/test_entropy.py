"""Machine code of the entropy decoder, compiled ahead of time (see aot.py)."""

from __future__ import annotations

from aot import Kernel, budget_tests

from tersor.kernels.entropy import triton as entropy
from tersor.kernels.entropy.batch import TableChoice


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
}

(
    test_machine_code_stays_within_its_budget,
    test_amd_machine_code_does_not_spill,
    test_sizes_of_one_compile,
    test_every_kernel_has_a_budget,
) = budget_tests(KERNELS, __file__)
