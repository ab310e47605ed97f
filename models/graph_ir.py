"""What a checked graph is: plain frozen data between the JSON reader and the executor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

Dim = int | str | None  # a size, the name of a symbol, or some expression of symbols


@dataclass(frozen=True, slots=True)
class Ref:
    """A value computed at run time, by name."""

    name: str


@dataclass(frozen=True, slots=True)
class DeviceOfModel:
    """Wherever the exporter's device stood: the device the model runs on."""


# Python scalars and torch's dtypes, memory formats and layouts; a tuple is a list operand.
Literal = int | float | bool | str | None | torch.dtype | torch.memory_format | torch.layout
Item = Literal | Ref
Value = Item | DeviceOfModel | tuple[Item, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Argument:
    """One operand, under the name of the operator's schema."""

    name: str
    value: Value
    keyword: bool  # the schema allows no other way


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One call. `outputs` are the names of its results, in order; None where one is not used."""

    target: str
    function: Callable[..., Any]
    arguments: tuple[Argument, ...]
    outputs: tuple[str | None, ...]
    single: bool  # the call returns the result itself, not a sequence of results

    @property
    def results(self) -> tuple[str, ...]:
        """Names of the results that are used."""
        return tuple(name for name in self.outputs if name is not None)

    @property
    def operands(self) -> tuple[str, ...]:
        """Names of all values read, in order, with repetitions."""
        names: list[str] = []
        for argument in self.arguments:
            items = argument.value if isinstance(argument.value, tuple) else (argument.value,)
            names += [item.name for item in items if isinstance(item, Ref)]
        return tuple(names)


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorType:
    """Dtype and shape of a tensor, dimensions possibly symbolic."""

    dtype: torch.dtype
    shape: tuple[Dim, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Weight:
    """A tensor of the bundle that the graph reads."""

    name: str
    group: str
    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """A checked graph: every operator is allowed, every value is computed before it is read."""

    torch_version: str
    schema_version: tuple[int, int]
    inputs: tuple[tuple[str, TensorType], ...]
    weights: Mapping[str, Weight]  # by the name of the value in the graph
    nodes: tuple[Node, ...]
    outputs: tuple[str, ...]
    output_types: tuple[TensorType, ...]
    ranges: Mapping[str, tuple[int, int]]  # symbol -> least and greatest size
