"""From a checked graph to the steps an executor walks: slots, lifetimes, and weights by group."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tersor.models.graph_guards import Guard, guard_of
from tersor.models.graph_ir import DeviceOfModel, Graph, Item, Node, Ref, Value, Weight
from tersor.models.graph_operators import EMBEDDING, LINEAR
from tersor.models.graph_sizes import Elements, broadcast_elements, elements_of

ListItem = tuple[bool, Any]  # (True, slot) or (False, literal)


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightFetch:
    """A weight that goes into a slot before a step: as its layout, or decoded to a tensor."""

    slot: int
    weight: Weight
    as_layout: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One call. `values` are its operands with gaps for what `reads` and `list_reads` fill in."""

    target: str
    function: Callable[..., Any]
    values: tuple[Any, ...]
    keywords: tuple[str, ...]  # names of the last operands
    reads: tuple[tuple[int, int], ...]  # (position, slot)
    list_reads: tuple[tuple[int, tuple[ListItem, ...]], ...]
    result: int | None  # slot of the one result; None if the call returns a sequence
    results: tuple[int | None, ...]  # slots of a sequence's items
    fetches: tuple[WeightFetch, ...]
    dead: tuple[int, ...]  # slots nothing reads after this step
    released: tuple[str, ...]  # groups nothing reads after this step
    names: tuple[str, ...]  # of all operands
    guard: Guard | None  # called with the operands by name, before the call
    elements: Elements | None  # bounds the result before the call


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The whole program."""

    slots: int
    inputs: tuple[int, ...]
    steps: tuple[Step, ...]
    outputs: tuple[int, ...]
    returned_weights: tuple[WeightFetch, ...]  # outputs that are weights themselves


# A weight is held in one slot as its layout and in another one decoded, where both are read.
_Key = tuple[str, bool]  # (name of the value, as a layout)


def build_plan(
    graph: Graph,
    device: torch.device,
    *,
    linear: Callable[..., Any],
    embedding: Callable[..., Any],
) -> Plan:
    """Plans the graph for `device`.

    `linear` and `embedding` replace the operators of that name where their weight is a weight of
    the graph, and are given its layout instead of a tensor.
    """
    return _Planner(graph, device, {LINEAR: linear, EMBEDDING: embedding}).plan()


class _Planner:
    def __init__(
        self, graph: Graph, device: torch.device, on_layouts: Mapping[str, Callable[..., Any]]
    ) -> None:
        self._graph = graph
        self._device = device
        self._on_layouts = on_layouts
        self._slots: dict[_Key, int] = {}
        self._last_use = self._find_last_uses()
        self._last_use_of_group: dict[str, int] = {}
        for (name, _), index in self._last_use.items():
            if name in graph.weights:
                group = graph.weights[name].group
                self._last_use_of_group[group] = max(self._last_use_of_group.get(group, 0), index)

    def plan(self) -> Plan:
        graph = self._graph
        inputs = tuple(self._slot((name, False)) for name, _ in graph.inputs)
        steps = tuple(self._step(index, node) for index, node in enumerate(graph.nodes))
        returned = tuple(
            self._fetch((name, False))
            for name in dict.fromkeys(graph.outputs)
            if name in graph.weights
        )
        outputs = tuple(self._slot((name, False)) for name in graph.outputs)
        return Plan(
            slots=len(self._slots),
            inputs=inputs,
            steps=steps,
            outputs=outputs,
            returned_weights=returned,
        )

    def _find_last_uses(self) -> dict[_Key, int]:
        """The last step that reads each value; outputs are read after all steps."""
        last = {
            key: index for index, node in enumerate(self._graph.nodes) for key in self._reads(node)
        }
        last.update({(name, False): len(self._graph.nodes) for name in self._graph.outputs})
        return last

    def _reads(self, node: Node) -> list[_Key]:
        layout = self._layout_operand(node)
        keys = []
        for argument in node.arguments:
            items = argument.value if isinstance(argument.value, tuple) else (argument.value,)
            as_layout = argument.name == "weight" and layout is not None
            keys += [(item.name, as_layout) for item in items if isinstance(item, Ref)]
        return keys

    def _layout_operand(self, node: Node) -> str | None:
        """The weight that `node` can read as a layout, if it is such a node."""
        if node.target not in self._on_layouts:
            return None
        value = next(a.value for a in node.arguments if a.name == "weight")
        if not isinstance(value, Ref) or value.name not in self._graph.weights:
            return None
        matrix = len(self._graph.weights[value.name].shape) == 2
        return value.name if matrix else None

    def _step(self, index: int, node: Node) -> Step:
        layout = self._layout_operand(node)
        function = node.function if layout is None else self._on_layouts[node.target]
        keys = list(dict.fromkeys(self._reads(node)))
        fetches = tuple(
            self._fetch(key)
            for key in keys
            if key[0] in self._graph.weights and key not in self._slots
        )
        values: list[Any] = []
        reads: list[tuple[int, int]] = []
        list_reads: list[tuple[int, tuple[ListItem, ...]]] = []
        for position, argument in enumerate(node.arguments):
            as_layout = argument.name == "weight" and layout is not None
            values.append(self._literal(argument.value))
            if isinstance(argument.value, Ref):
                reads.append((position, self._slot((argument.value.name, as_layout))))
            elif isinstance(argument.value, tuple) and any(
                isinstance(item, Ref) for item in argument.value
            ):
                list_reads.append((position, self._list(argument.value)))
        results = tuple(
            None if name is None else self._slot((name, False)) for name in node.outputs
        )
        unread = [slot for slot, name in zip(results, node.outputs, strict=True)
                  if slot is not None and (name, False) not in self._last_use]  # fmt: skip
        dead = [self._slot(key) for key in keys if self._last_use[key] == index]
        groups = {
            self._graph.weights[name].group for name, _ in keys if name in self._graph.weights
        }
        tensors = len(reads) + sum(len(items) for _, items in list_reads)
        names = tuple(argument.name for argument in node.arguments)
        elements = elements_of(node.target, names)
        if elements is broadcast_elements and tensors < 2:
            elements = None  # nothing to stretch to
        elif layout is not None and node.target == LINEAR:
            rows, columns = self._graph.weights[layout].shape
            elements = elements if rows > columns else None  # the result is no larger than x
        return Step(
            target=node.target,
            function=function,
            values=tuple(values),
            keywords=tuple(a.name for a in node.arguments if a.keyword),
            reads=tuple(reads),
            list_reads=tuple(list_reads),
            result=results[0] if node.single else None,
            results=results,
            fetches=fetches,
            dead=tuple(dead + [slot for slot in unread if slot is not None]),
            released=tuple(
                group for group in sorted(groups) if self._last_use_of_group[group] == index
            ),
            names=names,
            guard=None if layout is not None else guard_of(node.target),
            elements=elements,
        )

    def _literal(self, value: Value) -> Any:
        if isinstance(value, DeviceOfModel):
            return self._device
        if isinstance(value, tuple):
            return list(value)
        return value

    def _list(self, items: Sequence[Item]) -> tuple[ListItem, ...]:
        return tuple(
            (True, self._slot((item.name, False))) if isinstance(item, Ref) else (False, item)
            for item in items
        )

    def _fetch(self, key: _Key) -> WeightFetch:
        name, as_layout = key
        return WeightFetch(
            slot=self._slot(key), weight=self._graph.weights[name], as_layout=as_layout
        )

    def _slot(self, key: _Key) -> int:
        return self._slots.setdefault(key, len(self._slots))
