"""Compiles Triton kernels for GPUs without one, and holds what came out against budgets.

A spill, or a loop that grew, is a slower kernel on every GPU: this is where it shows first. Each
module of tests/kernels/aot lists its kernels and calls `budget_tests`; the budgets stand beside it,
in a TOML file of its name. After a change that is worth its cost, write the new numbers there.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import triton
from triton._C.libtriton import ir
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.compiler.compiler import make_backend

GENERATIONS = (80, 90, 100)
AMD = "gfx942"
# An H100's 227 KiB of shared memory hold four programs at least.
SHARED_BYTES = 56 * 1024
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """A kernel with everything that its machine code depends on."""

    function: Any  # a triton.jit function
    types: Mapping[str, str]  # argument name -> Triton type
    constants: Mapping[str, Any]
    aligned: Sequence[
        str
    ]  # pointers and sizes that are multiples of 16, as the launcher finds them
    options: Mapping[str, int]
    weights_per_step: int = 0  # weights (symbols) that one program decodes in one loop step
    main: str = "MMA"  # what the instructions of the main loop, and of no other, include

    @property
    def portable(self) -> bool:
        """Whether no instruction in it is NVIDIA's alone."""
        return not self.constants.get("USE_ASM", False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What ptxas made of a kernel."""

    registers: int
    spilled_bytes: int
    shared_bytes: int
    instructions_per_weight: (
        float  # issued by one lane in the main loop; 0 without weights_per_step
    )


def budget_tests(kernels: Mapping[str, Kernel], module: str) -> tuple[Callable[..., None], ...]:
    """Tests of `kernels` against the budgets beside `module` (its __file__).

    Returns the tests of NVIDIA's machine code, of AMD's, of sizes of one, and of the budgets being
    complete.
    """
    budgets = tomllib.loads(Path(module).with_suffix(".toml").read_text(encoding="utf-8"))
    portable = sorted(name for name, kernel in kernels.items() if kernel.portable)

    @pytest.mark.parametrize("sm", GENERATIONS)
    @pytest.mark.parametrize("name", sorted(kernels))
    def test_machine_code_stays_within_its_budget(name: str, sm: int, tmp_path: Path) -> None:
        with _cache(tmp_path):
            machine = build(kernels[name], sm)
        budget = budgets[name]
        assert machine.spilled_bytes == 0, f"{machine.spilled_bytes} bytes of registers spilled"
        assert machine.registers <= budget["registers"]
        assert machine.instructions_per_weight <= budget.get("instructions_per_weight", 0)
        assert machine.shared_bytes <= budget.get("shared_bytes", SHARED_BYTES)

    @pytest.mark.parametrize("name", portable)
    def test_amd_machine_code_does_not_spill(name: str, tmp_path: Path) -> None:
        with _cache(tmp_path):
            machine = build_amd(kernels[name])
        assert machine.spilled_bytes == 0, f"{machine.spilled_bytes} bytes of registers spilled"

    @pytest.mark.parametrize("name", sorted(kernels))
    def test_sizes_of_one_compile(name: str) -> None:
        lower(with_sizes_of_one(kernels[name]))

    def test_every_kernel_has_a_budget() -> None:
        assert sorted(budgets) == sorted(kernels)

    return (
        test_machine_code_stays_within_its_budget,
        test_amd_machine_code_does_not_spill,
        test_sizes_of_one_compile,
        test_every_kernel_has_a_budget,
    )


@contextmanager
def _cache(folder: Path) -> Iterator[None]:
    """Compiled kernels of a test run leave no trace in the user's cache."""
    with triton.knobs.cache.scope():
        triton.knobs.cache.dir = str(folder)
        yield


def build(kernel: Kernel, sm: int) -> Machine:
    """Compiles `kernel` for compute capability `sm` (80, 90, 100) and measures its machine code."""
    compiled = triton.compile(
        _source(kernel), target=GPUTarget("cuda", sm, 32), options=dict(kernel.options)
    )
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = _run("cuobjdump", "-res-usage", file.name)
        assembly = _run("nvdisasm", "-c", file.name)
    counts = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    lanes = 32 * kernel.options["num_warps"]
    loop = len(main_loop(assembly, kernel.main)) if kernel.weights_per_step else 0
    return Machine(
        registers=counts["REG"],
        spilled_bytes=counts["STACK"] + counts["LOCAL"],
        shared_bytes=compiled.metadata.shared,
        instructions_per_weight=loop * lanes / max(1, kernel.weights_per_step),
    )


def build_amd(kernel: Kernel) -> Machine:
    """Compiles `kernel` for AMD's gfx942 (MI300); its instructions are not counted."""
    options = {name: value for name, value in kernel.options.items() if name != "maxnreg"}
    compiled = triton.compile(_source(kernel), target=GPUTarget("hip", AMD, 64), options=options)
    assembly = compiled.asm["amdgcn"]
    counts = {key: int(value) for key, value in re.findall(r"\.([sv]gpr_\w+):\s+(\d+)", assembly)}
    return Machine(
        registers=counts["vgpr_count"],
        spilled_bytes=4 * (counts["vgpr_spill_count"] + counts["sgpr_spill_count"]),
        shared_bytes=compiled.metadata.shared,
        instructions_per_weight=0.0,
    )


def with_sizes_of_one(kernel: Kernel) -> Kernel:
    """`kernel` as a launch with sizes of 1 compiles it: Triton makes constants of them.

    A constant lacks what a tensor has (`.to`), and neither the interpreter nor usual sizes show it.
    """
    specialized = {each.name for each in kernel.function.params if not each.do_not_specialize}
    ones = {
        name: 1 for name, type_ in kernel.types.items() if type_[0] == "i" and name in specialized
    }
    return replace(
        kernel,
        types={name: type_ for name, type_ in kernel.types.items() if name not in ones},
        constants={**kernel.constants, **ones},
        aligned=[name for name in kernel.aligned if name not in ones],
    )


def lower(kernel: Kernel) -> None:
    """Compiles `kernel` for sm_90 as far as Triton's first representation, without ptxas.

    Raises:
        triton.CompilationError: it does not compile.
    """
    backend = make_backend(GPUTarget("cuda", 90, 32))
    context = ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    options = backend.parse_options(dict(kernel.options))
    _source(kernel).make_ir(
        backend.target,
        options,
        backend.get_codegen_implementation(options),
        backend.get_module_map(),
        context,
    )


def _source(kernel: Kernel) -> ASTSource:
    names = kernel.function.arg_names
    return ASTSource(
        kernel.function,
        signature={name: kernel.types.get(name, "constexpr") for name in names},
        constexprs={(names.index(name),): value for name, value in kernel.constants.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in kernel.aligned},
    )


def main_loop(assembly: str, instruction: str) -> list[str]:
    """The instructions of the one innermost loop that holds `instruction`."""
    instructions: list[str] = []
    labels: dict[str, int] = {}
    for line in map(str.strip, assembly.splitlines()):
        if label := re.match(r"\.(L_x_\d+):", line):
            labels[label[1]] = len(instructions)
        elif found := re.match(r"/\*[0-9a-f]+\*/\s+(.*?);", line):
            instructions.append(found[1])
    loops: list[range] = []
    for end, each in enumerate(instructions):
        branch = re.search(r"\bBRA\b.*`\(\.(L_x_\d+)\)", each)
        body = range(labels.get(branch[1], end) if branch else end, end)
        # Of nested loops the inner one ends first.
        around = any(body.start <= inner.start for inner in loops)
        if not around and any(instruction in instructions[at] for at in body):
            loops.append(body)
    if len(loops) != 1:
        raise AssertionError(f"expected one loop with {instruction}, found {len(loops)}")
    return instructions[loops[0].start : loops[0].stop + 1]


def _run(tool: str, *arguments: str) -> str:
    command = [str(TOOLS / tool), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
