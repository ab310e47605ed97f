"""A request's tensors against what the program takes."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from tersor.bundle.program import GraphProgram, TensorSpec
from tersor.models.errors import WeightError
from tersor.models.weights import dtype_name, torch_dtype
from tersor.runtime.errors import InvalidRequestError

Signature = tuple[tuple[str, tuple[int, ...]], ...]  # input name, shape without the batch


def check_inputs(model: str, program: GraphProgram, inputs: Mapping[str, Tensor]) -> int:
    """Holds names, dtypes and shapes against the program; returns the rows of the request.

    Raises:
        InvalidRequestError: names the input, what was given and what is expected.
    """
    expected = {spec.name: spec for spec in program.inputs}
    if inputs.keys() != expected.keys():
        raise InvalidRequestError(
            f"model {model}: got inputs {_names(inputs)}, expected {_names(expected)}"
        )
    for name, spec in expected.items():
        _check_one(model, spec, inputs[name])
    if not program.batch_dim_dynamic:
        return 1
    rows = {name: int(tensor.shape[0]) for name, tensor in inputs.items()}
    if len(set(rows.values())) > 1:
        found = ", ".join(f"{name}: {count}" for name, count in rows.items())
        raise InvalidRequestError(
            f"model {model}: got batches of different size ({found}), expected one size in "
            "dimension 0 of every input"
        )
    count = next(iter(rows.values()))
    if count > program.max_batch_size:
        raise InvalidRequestError(
            f"model {model}: got a batch of {count}, expected at most {program.max_batch_size}; "
            "send several requests"
        )
    return count


def signature(program: GraphProgram, inputs: Mapping[str, Tensor]) -> Signature:
    """Requests of equal signature can be computed as one batch."""
    return tuple((spec.name, tuple(inputs[spec.name].shape[1:])) for spec in program.inputs)


def _check_one(model: str, spec: TensorSpec, tensor: Tensor) -> None:
    if tensor.dtype != torch_dtype(spec.dtype):
        try:
            found = dtype_name(tensor.dtype)
        except WeightError:
            found = str(tensor.dtype)
        raise InvalidRequestError(
            f"model {model}: input {spec.name!r}: got dtype {found}, expected {spec.dtype}"
        )
    shape = tuple(tensor.shape)
    fits = len(shape) == len(spec.shape) and all(
        size == wanted or (wanted == -1 and size > 0)
        for size, wanted in zip(shape, spec.shape, strict=True)
    )
    if not fits:
        raise InvalidRequestError(
            f"model {model}: input {spec.name!r}: got shape {list(shape)}, "
            f"expected {list(spec.shape)}, where -1 is any size from 1"
        )


def _names(mapping: Mapping[str, object]) -> str:
    return ", ".join(sorted(mapping)) or "none"
