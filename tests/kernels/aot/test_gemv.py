"""Machine code of the kernels that add partial products up, compiled ahead of time (see aot.py)."""

from __future__ import annotations

from aot import Kernel, budget_tests

from tersor.kernels.gated import ACTIVATIONS
from tersor.kernels.gated import triton as gated
from tersor.kernels.gemv import triton as gemv

KERNELS = {
    "splitk_sum": Kernel(
        function=gemv.splitk_sum_kernel,
        types={"partials_ptr": "*fp32", "out_ptr": "*bf16", "size": "i32", "splits": "i32"},
        constants={"BLOCK": gemv.BLOCK},
        aligned=("partials_ptr", "out_ptr", "size"),
        options={"num_warps": 4},
    ),
    **{
        f"gated_sum_{activation}": Kernel(
            function=gated.gated_sum_kernel,
            types={"partials_ptr": "*fp32", "out_ptr": "*bf16"}
            | dict.fromkeys(("m", "inner", "splits"), "i32"),
            constants={"ACTIVATION": activation, "BLOCK": gated.BLOCK},
            aligned=("partials_ptr", "out_ptr", "inner"),
            options={"num_warps": 2},
        )
        for activation in ACTIVATIONS
    },
}

(
    test_machine_code_stays_within_its_budget,
    test_amd_machine_code_does_not_spill,
    test_sizes_of_one_compile,
    test_every_kernel_has_a_budget,
) = budget_tests(KERNELS, __file__)
