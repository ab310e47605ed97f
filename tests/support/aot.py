"""Compiles Triton kernels for NVIDIA GPUs without one, and counts what came out."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What ptxas made of a kernel."""

    registers: int
    spilled_bytes: int
    shared_bytes: int
    instructions_per_weight: (
        float  # issued by one lane in the main loop; 0 without weights_per_step
    )


def build(kernel: Kernel, sm: int) -> Machine:
    """Compiles `kernel` for compute capability `sm` (80, 90, 100) and measures its machine code."""
    names = kernel.function.arg_names
    source = ASTSource(
        kernel.function,
        signature={name: kernel.types.get(name, "constexpr") for name in names},
        constexprs={(names.index(name),): value for name, value in kernel.constants.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in kernel.aligned},
    )
    compiled = triton.compile(
        source, target=GPUTarget("cuda", sm, 32), options=dict(kernel.options)
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
