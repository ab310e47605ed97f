"""Reads one node of an exported program's JSON: its operator, its operands, its results."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

from tersor.models.errors import UnsupportedProgramError
from tersor.models.graph_ir import Argument, DeviceOfModel, Item, Node, Ref, Value
from tersor.models.graph_operators import (
    MAX_LITERAL_ELEMENTS,
    allocates,
    scalar_function,
    tensor_operator,
)

Json = Any  # what json.loads returns; every use narrows it
JsonObject = dict[str, Any]

# Numbers of the torch.export schema, which are not those of torch's own enumerations.
SCALAR_TYPES: Mapping[int, torch.dtype] = {
    1: torch.uint8, 2: torch.int8, 3: torch.int16, 4: torch.int32, 5: torch.int64,
    6: torch.float16, 7: torch.float32, 8: torch.float64, 9: torch.complex32, 10: torch.complex64,
    11: torch.complex128, 12: torch.bool, 13: torch.bfloat16, 28: torch.uint16,
    29: torch.float8_e4m3fn, 30: torch.float8_e5m2, 34: torch.uint32, 35: torch.uint64,
}  # fmt: skip
_MEMORY_FORMATS: Mapping[int, torch.memory_format] = {
    1: torch.contiguous_format,
    2: torch.channels_last,
    3: torch.channels_last_3d,
    4: torch.preserve_format,
}
_LAYOUTS: Mapping[int, torch.layout] = {7: torch.strided}
# Operands that are numbers to the dispatcher, by the name of their type in a schema.
_ENUMERATIONS: Mapping[str, type] = {
    "ScalarType": torch.dtype,
    "Layout": torch.layout,
    "MemoryFormat": torch.memory_format,
}
_FLOATS = {"Infinity": math.inf, "-Infinity": -math.inf, "NaN": math.nan}
_NODE_KEYS = {"target", "inputs", "outputs"}
_IGNORED_NODE_KEYS = {"metadata", "name", "is_hop_single_tensor_return"}
_MAX_INT = (1 << 63) - 1
_MAX_TEXT = 1024


def refuse(problem: str) -> UnsupportedProgramError:
    """The error for a graph that this build cannot run."""
    return UnsupportedProgramError(f"this graph cannot be run: {problem}")


def as_object(value: Json, where: str) -> JsonObject:
    """The value, if it is a JSON object."""
    if not isinstance(value, dict):
        raise refuse(f"{where} must be an object, got {type(value).__name__}")
    return value


def as_list(value: Json, where: str) -> list[Json]:
    """The value, if it is a JSON array."""
    if not isinstance(value, list):
        raise refuse(f"{where} must be an array, got {type(value).__name__}")
    return value


def as_text(value: Json, where: str) -> str:
    """The value, if it is a string of reasonable length."""
    if not isinstance(value, str) or not 0 < len(value) <= _MAX_TEXT:
        raise refuse(f"{where} must be a string of 1 to {_MAX_TEXT} characters")
    return value


def read_node(value: Json) -> Node:
    """Checks and reads one node.

    Raises:
        UnsupportedProgramError: an operator that is not allowed, or operands that do not fit it.
    """
    fields = as_object(value, "a node")
    if not fields.keys() >= _NODE_KEYS or fields.keys() - _NODE_KEYS - _IGNORED_NODE_KEYS:
        raise refuse(f"a node has the fields {sorted(fields)}, expected {sorted(_NODE_KEYS)}")
    target = as_text(fields["target"], "an operator's name")
    operands = _operands(as_list(fields["inputs"], f"inputs of {target}"), target)
    outputs, single = _results(as_list(fields["outputs"], f"outputs of {target}"), target)
    function = scalar_function(target)
    if function is not None:
        arguments = _scalar_arguments(operands, target)
        return Node(
            target=target, function=function, arguments=arguments, outputs=outputs, single=single
        )
    overload = tensor_operator(target)
    schema = overload._schema  # noqa: SLF001 - the only place where an operator says its operands
    arguments = _checked_arguments(operands, schema, target)
    _check_results(schema, outputs, target, single=single)
    _check_inference(arguments, target)
    _check_size(arguments, target)
    return Node(
        target=target, function=overload, arguments=arguments, outputs=outputs, single=single
    )


def _operands(values: list[Json], target: str) -> list[tuple[str, Value]]:
    operands = []
    for value in values:
        fields = as_object(value, f"an operand of {target}")
        if not {"name", "arg"} <= fields.keys() <= {"name", "arg", "kind"}:
            raise refuse(f"an operand of {target} has the fields {sorted(fields)}")
        name = as_text(fields["name"], f"name of an operand of {target}")
        operands.append((name, _value(fields["arg"], f"operand {name!r} of {target}")))
    return operands


def _scalar_arguments(operands: list[tuple[str, Value]], target: str) -> tuple[Argument, ...]:
    for name, value in operands:
        if not isinstance(value, (int, float, Ref)):
            raise refuse(f"operand {name!r} of {target} is no number")
    if not 1 <= len(operands) <= 2:
        raise refuse(f"{target} takes one or two operands, got {len(operands)}")
    return tuple(Argument(name=name, value=value, keyword=False) for name, value in operands)


def _checked_arguments(
    operands: list[tuple[str, Value]], schema: Any, target: str
) -> tuple[Argument, ...]:
    """Orders operands as the operator's schema has them; after a gap they go by keyword."""
    given = dict(operands)
    if len(given) != len(operands):
        raise refuse(f"{target} is given an operand twice")
    known = {argument.name: argument for argument in schema.arguments}
    unknown = given.keys() - known.keys()
    if unknown:
        raise refuse(f"{target} has no operand {', '.join(sorted(unknown))}")
    arguments: list[Argument] = []
    gap = False
    for name, declared in known.items():
        if name not in given:
            if not declared.has_default_value():
                raise refuse(f"{target} lacks its operand {name!r}")
            gap = True
            continue
        _check_enumeration(declared, given[name], target)
        keyword = gap or declared.kwarg_only
        arguments.append(Argument(name=name, value=given[name], keyword=keyword))
    return tuple(arguments)


def _check_enumeration(declared: Any, value: Value, target: str) -> None:
    """Refuses numbers for dtypes and the like: torch takes them, and reads tables by them."""
    kind = str(declared.real_type)
    for name, allowed in _ENUMERATIONS.items():
        if name in kind and not (value is None or isinstance(value, allowed)):
            raise refuse(f"operand {declared.name!r} of {target} must be a {allowed.__name__}")


def _check_results(
    schema: Any, outputs: tuple[str | None, ...], target: str, *, single: bool
) -> None:
    """Holds the node's results against the schema; only a list's length is left to run time."""
    returns = schema.returns
    if len(returns) == 1 and isinstance(returns[0].type, torch.ListType):
        fits = not single
    else:
        fits = len(outputs) == len(returns) and single == (len(returns) == 1)
    if not fits:
        raise refuse(f"{target} returns {len(returns)} results, not the node's {len(outputs)}")


def _check_inference(arguments: tuple[Argument, ...], target: str) -> None:
    """Refuses dropout that drops and batch norm that learns."""
    for argument in arguments:
        if argument.name in {"train", "training"} and argument.value is not False:
            raise refuse(f"{target} is in training mode; export the module after calling eval()")
        if argument.name == "dropout_p" and argument.value != 0:
            raise refuse(f"{target} drops values at random; export the module after calling eval()")


def _check_size(arguments: tuple[Argument, ...], target: str) -> None:
    """Bounds what a literal can make an operator allocate."""
    if not allocates(target):
        return
    elements = 1
    for argument in arguments:
        items = argument.value if isinstance(argument.value, tuple) else (argument.value,)
        for item in items:
            if isinstance(item, int) and not isinstance(item, bool) and abs(item) > 1:
                elements *= abs(item)
        if argument.name == "num_classes" and not (
            isinstance(argument.value, int) and argument.value > 0
        ):
            raise refuse(f"{target} must say its number of classes")
    if elements > MAX_LITERAL_ELEMENTS:
        raise refuse(f"{target} asks for {elements} elements, at most {MAX_LITERAL_ELEMENTS}")


def _results(values: list[Json], target: str) -> tuple[tuple[str | None, ...], bool]:
    """Names of the results, and whether the call returns one result rather than a sequence."""
    results = [as_object(value, f"a result of {target}") for value in values]
    if len(results) == 1 and results[0].keys() == {"as_tensors"}:
        items = as_list(results[0]["as_tensors"], f"results of {target}")
        return tuple(_name(item, "name", f"a result of {target}") for item in items), False
    names = tuple(_result(result, target) for result in results)
    if not any(names):
        raise refuse(f"{target} has no result")
    return names, len(names) == 1


def _result(value: JsonObject, target: str) -> str | None:
    where = f"a result of {target}"
    kind, body = _single(value, where)
    if kind == "as_none":
        return None
    if kind == "as_tensor":
        return _name(body, "name", where)
    if kind in {"as_sym_int", "as_sym_bool", "as_sym_float"}:
        return _name(body, "as_name", where)
    raise refuse(f"{where} is {kind!r}, which is not supported")


def _value(value: Json, where: str) -> Value:
    kind, body = _single(value, where)
    read = _VALUES.get(kind)
    if read is None:
        raise refuse(f"{where} is {kind!r}, which is not supported")
    return read(body, where)


def _single(value: Json, where: str) -> tuple[str, Json]:
    fields = as_object(value, where)
    if len(fields) != 1:
        raise refuse(f"{where} must have one kind, got {sorted(fields)}")
    return next(iter(fields.items()))


def _name(value: Json, key: str, where: str) -> str:
    fields = as_object(value, where)
    if fields.keys() != {key}:
        raise refuse(f"{where} must be a name, got the fields {sorted(fields)}")
    return as_text(fields[key], where)


def _int(value: Json, where: str) -> int:
    if type(value) is not int or not -_MAX_INT - 1 <= value <= _MAX_INT:
        raise refuse(f"{where} must be a 64-bit integer")
    return value


def _float(value: Json, where: str) -> float:
    if isinstance(value, str) and value in _FLOATS:
        return _FLOATS[value]
    if type(value) is int and abs(value) <= _MAX_INT:
        return float(value)
    if type(value) is not float:
        raise refuse(f"{where} must be a number")
    return value


def _bool(value: Json, where: str) -> bool:
    if type(value) is not bool:
        raise refuse(f"{where} must be true or false")
    return value


def _tensor(value: Json, where: str) -> Ref:
    return Ref(_name(value, "name", where))


def _symbol(literal: str, read: Callable[[Json, str], Item]) -> Callable[[Json, str], Item]:
    """Reader of a size that is a value of the graph (`as_name`) or a literal."""

    def symbol(value: Json, where: str) -> Item:
        kind, body = _single(value, where)
        if kind == "as_name":
            return Ref(as_text(body, where))
        if kind == literal:
            return read(body, where)
        raise refuse(f"{where} is {kind!r}, which is not supported")

    return symbol


def _optional_tensor(value: Json, where: str) -> Ref | None:
    kind, body = _single(value, where)
    if kind == "as_none":
        return None
    if kind == "as_tensor":
        return _tensor(body, where)
    raise refuse(f"{where} is {kind!r}, which is not supported")


def _many(read: Callable[[Json, str], Item]) -> Callable[[Json, str], Value]:
    def items(value: Json, where: str) -> Value:
        return tuple(read(item, where) for item in as_list(value, where))

    return items


def _enumerated(table: Mapping[int, Item], kind: str) -> Callable[[Json, str], Item]:
    def member(value: Json, where: str) -> Item:
        if type(value) is not int or value not in table:
            raise refuse(f"{where} is the unknown {kind} {value!r}")
        return table[value]

    return member


def _device(value: Json, where: str) -> Value:
    as_text(as_object(value, where).get("type"), where)
    return DeviceOfModel()


_sym_int = _symbol("as_int", _int)
_sym_bool = _symbol("as_bool", _bool)
_sym_float = _symbol("as_float", _float)

_VALUES: Mapping[str, Callable[[Json, str], Value]] = {
    "as_none": lambda _value, _where: None,
    "as_bool": _bool,
    "as_bools": _many(_bool),
    "as_device": _device,
    "as_float": _float,
    "as_floats": _many(_float),
    "as_int": _int,
    "as_ints": _many(_int),
    "as_layout": _enumerated(_LAYOUTS, "layout"),
    "as_memory_format": _enumerated(_MEMORY_FORMATS, "memory format"),
    "as_optional_tensor": _optional_tensor,
    "as_optional_tensors": _many(_optional_tensor),
    "as_scalar_type": _enumerated(SCALAR_TYPES, "dtype"),
    "as_string": as_text,
    "as_sym_bool": _sym_bool,
    "as_sym_bools": _many(_sym_bool),
    "as_sym_float": _sym_float,
    "as_sym_floats": _many(_sym_float),
    "as_sym_int": _sym_int,
    "as_sym_ints": _many(_sym_int),
    "as_tensor": _tensor,
    "as_tensors": _many(_tensor),
}
