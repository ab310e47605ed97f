"""Runs an exported program on the layouts of a bundle.

The graph is executed node by node over a flat list of slots, rather than compiled into a module: a
node can then ask for the group of its weights when it is reached, so a graph loads on first use in
execution order as a decoder does, and no code is generated from what a bundle says. A step costs
about a microsecond of Python, 0.2 ms for a six-layer encoder.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tersor.bundle.program import UNUSED_GROUP, GraphProgram, TensorSpec
from tersor.kernels.layout import Layout
from tersor.models.contracts import GroupWeights, WeightSource
from tersor.models.errors import (
    InvalidInputError,
    ProgramFailedError,
    RunAbandonedError,
    UnsupportedProgramError,
    WeightError,
)
from tersor.models.graph_ir import Graph, TensorType, Weight
from tersor.models.graph_json import parse_graph
from tersor.models.graph_memory import LIVE_BYTES_PER_BYTE_READ, MIN_LIVE_BYTES, Memory
from tersor.models.graph_plan import Plan, Step, WeightFetch, build_plan
from tersor.models.weights import WeightShapes, dtype_name

MAX_INPUT_ELEMENTS = 1 << 28  # of one row, where the program fixes the other dimensions
# What torch's operators and the layouts raise for operands that do not fit.
_OPERATOR_ERRORS = (
    ArithmeticError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError, ValueError,
)  # fmt: skip


class GraphModel:
    """An exported program. Safe from many threads if its `WeightSource` is."""

    def __init__(
        self,
        program: GraphProgram,
        graph_json: bytes,
        weights: WeightSource,
        *,
        device: torch.device,
    ) -> None:
        """Checks the graph against the program and the operators allowed; reads no weight.

        Raises:
            UnsupportedProgramError: the graph holds something this build does not know, or is not
                the graph the program describes.
        """
        graph = parse_graph(graph_json)
        _check_program(program, graph)
        self.program = program
        self.device = device
        self._source = weights
        self._inputs = {
            spec.name: (spec, type_)
            for spec, (_, type_) in zip(program.inputs, graph.inputs, strict=True)
        }
        self._ranges = graph.ranges
        self._weights = tuple(graph.weights.values())
        self._weight_bytes = sum(math.prod(w.shape) * w.dtype.itemsize for w in self._weights)
        self._plan: Plan = build_plan(graph, device, linear=_linear, embedding=_embedding)

    @property
    def expected_weights(self) -> WeightShapes:
        """Every weight the graph reads: group -> tensor name -> shape, in execution order."""
        shapes: dict[str, dict[str, tuple[int, ...]]] = {
            group: {} for group in self.program.group_order if group != UNUSED_GROUP
        }
        for weight in self._weights:
            shapes[weight.group][weight.name] = weight.shape
        return shapes

    @torch.inference_mode()
    def run(
        self, inputs: Mapping[str, Tensor], *, abandoned: Callable[[], bool] | None = None
    ) -> dict[str, Tensor]:
        """Computes the outputs, on the model's device, under the names of the program.

        Args:
            inputs: one tensor per input of the program, of its dtype and shape, on any device.
            abandoned: asked before every operator whether nobody waits for the outputs any more.

        Raises:
            RunAbandonedError: `abandoned` said so.
            InvalidInputError: an input is missing, unknown, or of the wrong dtype or shape, or an
                index lies outside the table it looks up.
            WeightError: a weight is missing, mis-shaped or of another dtype than the graph's.
            BundleError: a group could not be loaded.
            ProgramFailedError: an operator failed, or asked for more memory than a run may take.
        """
        slots: list[Any] = [None] * self._plan.slots
        bound = self._bind(inputs)
        for slot, tensor in zip(self._plan.inputs, bound, strict=True):
            slots[slot] = tensor
        read = self._weight_bytes + sum(tensor.nbytes for tensor in bound)
        memory = Memory(len(slots), max(MIN_LIVE_BYTES, LIVE_BYTES_PER_BYTE_READ * read))
        held: dict[str, tuple[ExitStack, GroupWeights]] = {}
        try:
            for step in self._plan.steps:
                if abandoned is not None and abandoned():
                    raise RunAbandonedError("nobody waits for the outputs any more")
                for fetch in step.fetches:
                    slots[fetch.slot] = self._fetch(fetch, held)
                _execute(step, slots, memory)
                for slot in step.dead:
                    slots[slot] = None
                    memory.release(slot)
                for group in step.released:
                    held.pop(group)[0].close()
            for fetch in self._plan.returned_weights:
                slots[fetch.slot] = self._fetch(fetch, held)
        finally:
            for stack, _ in held.values():
                stack.close()
        names = (spec.name for spec in self.program.outputs)
        return dict(zip(names, (slots[slot] for slot in self._plan.outputs), strict=True))

    def _bind(self, inputs: Mapping[str, Tensor]) -> list[Tensor]:
        """The inputs in the graph's order, checked, on the model's device."""
        if inputs.keys() != self._inputs.keys():
            raise InvalidInputError(
                f"the inputs are {', '.join(sorted(inputs))}; "
                f"the program takes {', '.join(self._inputs)}"
            )
        symbols: dict[str, int] = {}
        for name, (spec, type_) in self._inputs.items():
            self._check_input(spec, type_, inputs[name], symbols)
        return [inputs[name].to(self.device) for name in self._inputs]

    def _check_input(
        self, spec: TensorSpec, type_: TensorType, tensor: Tensor, symbols: dict[str, int]
    ) -> None:
        if tensor.dtype != type_.dtype:
            raise InvalidInputError(
                f"input {spec.name!r} is of {tensor.dtype}, the program takes {type_.dtype}"
            )
        if tensor.ndim != len(type_.shape):
            raise InvalidInputError(
                f"input {spec.name!r} has shape {list(tensor.shape)}, "
                f"the program takes {list(spec.shape)} (-1 is any size)"
            )
        for index, (size, dim) in enumerate(zip(tensor.shape, type_.shape, strict=True)):
            if isinstance(dim, int):
                fits = size == dim
                expected = str(dim)
            else:
                low, high = self._ranges.get(dim, (0, size)) if dim else (0, size)
                known = symbols.setdefault(dim, size) if dim else size
                fits = low <= size <= high and size == known
                expected = f"{low} to {high}" if size == known else f"{known} as in other inputs"
            if not fits:
                raise InvalidInputError(
                    f"dimension {index} of input {spec.name!r} is {size}, expected {expected}"
                )

    def _fetch(
        self, fetch: WeightFetch, held: dict[str, tuple[ExitStack, GroupWeights]]
    ) -> Layout | Tensor:
        weight = fetch.weight
        if weight.group not in held:
            stack = ExitStack()
            held[weight.group] = (stack, stack.enter_context(self._source.acquire(weight.group)))
        layout = _checked(weight, held[weight.group][1].get(weight.name))
        return layout if fetch.as_layout else layout.dense()


def _checked(weight: Weight, layout: Layout | None) -> Layout:
    if layout is None:
        raise WeightError(f"weight {weight.name!r} is missing from group {weight.group!r}")
    if layout.shape != weight.shape or layout.dtype != weight.dtype:
        raise WeightError(
            f"weight {weight.name!r} is {layout.dtype} {list(layout.shape)}, "
            f"the graph needs {weight.dtype} {list(weight.shape)}"
        )
    return layout


def _execute(step: Step, slots: list[Any], memory: Memory) -> None:
    values = list(step.values)
    for position, slot in step.reads:
        values[position] = slots[slot]
    for position, items in step.list_reads:
        values[position] = [slots[item] if is_slot else item for is_slot, item in items]
    try:
        if step.guard is not None:
            step.guard(dict(zip(step.names, values, strict=True)))
        if step.elements is not None:
            memory.check(step.elements(values))
        if step.keywords:
            count = len(values) - len(step.keywords)
            keywords = dict(zip(step.keywords, values[count:], strict=True))
            result = step.function(*values[:count], **keywords)
        else:
            result = step.function(*values)
        if step.result is not None:
            slots[step.result] = result
            if isinstance(result, Tensor):
                memory.hold(step.result, result.nbytes)
            return
        for target, item in zip(step.results, result, strict=True):
            if target is not None:
                slots[target] = item
                memory.hold(target, item.nbytes)
    except _OPERATOR_ERRORS as error:
        reason = str(error).partition("\n")[0]
        raise ProgramFailedError(f"operator {step.target} failed: {reason}") from error


def _linear(x: Tensor, weight: Layout, bias: Tensor | None = None) -> Tensor:
    if x.dtype in {torch.float32, torch.bfloat16}:
        return weight.matmul(x, bias)
    return F.linear(x, weight.dense(x.dtype), bias)


def _embedding(
    weight: Layout, indices: Tensor, *_gradient: object, **_gradient_options: object
) -> Tensor:
    if indices.numel():
        # A layout trusts its indices, and one beyond the table would end a CUDA context for good.
        least, greatest = torch.aminmax(indices)
        if int(least) < 0 or int(greatest) >= weight.shape[0]:
            raise InvalidInputError(
                f"an index of {int(least)} to {int(greatest)} lies outside a table of "
                f"{weight.shape[0]} rows"
            )
    return weight.rows(indices.long(), weight.dtype)


def _check_program(program: GraphProgram, graph: Graph) -> None:
    """Holds the manifest's description against the graph: one of them may be forged."""
    problems = []
    if graph.schema_version != program.schema_version:
        problems.append(f"schema {graph.schema_version} instead of {program.schema_version}")
    if len(graph.inputs) != len(program.inputs):
        problems.append(f"{len(graph.inputs)} inputs instead of {len(program.inputs)}")
    if len(graph.outputs) != len(program.outputs):
        problems.append(f"{len(graph.outputs)} outputs instead of {len(program.outputs)}")
    types = [*(type_ for _, type_ in graph.inputs), *graph.output_types]
    for spec, type_ in zip((*program.inputs, *program.outputs), types, strict=False):
        shape = tuple(dim if isinstance(dim, int) else -1 for dim in type_.shape)
        if shape != spec.shape or dtype_name(type_.dtype) != spec.dtype:
            problems.append(
                f"{spec.name!r} is {dtype_name(type_.dtype)} {list(shape)} "
                f"instead of {spec.dtype} {list(spec.shape)}"
            )
    for kind, specs in (("input", program.inputs), ("output", program.outputs)):
        if len({spec.name for spec in specs}) != len(specs):
            problems.append(f"two {kind}s share a name")
    for spec in program.inputs:
        elements = math.prod(max(size, 1) for size in spec.shape)
        if elements > MAX_INPUT_ELEMENTS:  # a server makes such an input by itself, to warm up
            problems.append(
                f"a row of input {spec.name!r} has {elements} elements, at most "
                f"{MAX_INPUT_ELEMENTS} are supported"
            )
    groups = {weight.group for weight in graph.weights.values()}
    if groups != set(program.group_order) - {UNUSED_GROUP}:
        problems.append(
            f"its weights are in groups {sorted(groups)}, the program lists "
            f"{list(program.group_order)}"
        )
    if problems:
        raise UnsupportedProgramError(f"the graph does not fit its program: {'; '.join(problems)}")
