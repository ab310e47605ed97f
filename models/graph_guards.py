"""What a graph's operators do not check about their operands themselves, checked before the call.

torch's operators are written for callers that mean well: with other operands some of those listed
read beyond their tensors, divide by zero in hardware or never end, all of which end the process.
Each guard here stands for one such case that was seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

Operands = Mapping[str, Any]  # by the names of the operator's schema; absent ones have defaults
Guard = Callable[[Operands], None]

MAX_PIECES = 1 << 16  # tensors that one call may return


def guard_of(target: str) -> Guard | None:
    """The guard of an operator `torch.ops.aten.<name>.<overload>`; None if it needs none.

    Guards raise ValueError, and TypeError or AttributeError for operands of a wrong kind.
    """
    parts = target.split(".")
    return _GUARDS.get(parts[3]) if len(parts) == 5 else None


def _refuse_unless(holds: bool, problem: str) -> None:  # noqa: FBT001 - reads as a sentence
    if not holds:
        raise ValueError(problem)


def _batch_norm(operands: Operands) -> None:
    channels = operands["input"].shape[1]
    for name in ("weight", "bias", "running_mean", "running_var"):
        vector = operands.get(name)
        if vector is None and not name.startswith("running"):
            continue
        _refuse_unless(
            isinstance(vector, Tensor) and vector.shape == (channels,),
            f"{name} must have {channels} elements",
        )


def _grid_sampler(operands: Operands) -> None:
    for name in ("interpolation_mode", "padding_mode"):
        _refuse_unless(operands[name] in (0, 1, 2), f"{name} must be 0, 1 or 2")


def _embedding_bag(operands: Operands) -> None:
    weight, indices, offsets = (operands[name] for name in ("weight", "indices", "offsets"))
    integers = {torch.int32, torch.int64}
    _refuse_unless(
        (weight.dim(), indices.dim(), offsets.dim()) == (2, 1, 1)
        and indices.dtype in integers
        and offsets.dtype in integers,
        "it needs a matrix and two vectors of integers",
    )
    _refuse_unless(operands.get("mode", 0) in (0, 1, 2), "mode must be 0, 1 or 2")
    samples = operands.get("per_sample_weights")
    _refuse_unless(samples is None or samples.shape == indices.shape, "not a weight per sample")
    _within(indices, 0, weight.shape[0])
    _within(offsets, 0, indices.shape[0] + 1)
    _refuse_unless(
        offsets.numel() > 0 and int(offsets[0]) == 0 and not bool((offsets.diff() < 0).any()),
        "offsets must start at 0 and never fall",
    )


def _recurrent(gates: int) -> Guard:
    """Guard of a recurrent network whose cell has so many gates."""

    def guard(operands: Operands) -> None:
        x, parameters = operands["input"], operands["params"]
        directions = 2 if operands["bidirectional"] else 1
        per_cell = 4 if operands["has_biases"] else 2
        cells = operands["num_layers"] * directions
        hidden = operands["hx"]
        states = hidden if isinstance(hidden, list) else [hidden]
        _refuse_unless(
            x.dim() == 3
            and bool(states)
            and 0 < cells == len(parameters) / per_cell
            and all(state.dim() == 3 for state in states),
            "not the states and parameters of its layers",
        )
        batch, features = x.shape[0 if operands["batch_first"] else 1], x.shape[2]
        size = states[0].shape[2]
        for state in states:
            _refuse_unless(state.shape == (cells, batch, size), "a state of another shape")
        shapes = [(gates * size, features), (gates * size, size), (gates * size,), (gates * size,)]
        for index, parameter in enumerate(parameters):
            cell, kind = divmod(index, per_cell)
            expected = shapes[kind]
            if kind == 0 and cell >= directions:
                expected = (gates * size, directions * size)
            _refuse_unless(
                parameter.shape == expected and parameter.dtype == x.dtype,
                f"parameter {index} is not {x.dtype} {list(expected)}",
            )

    return guard


def _division(operands: Operands) -> None:
    """The least integer divided by -1 is no integer, and on a CPU a trap."""
    x, divisor = operands["self"], operands["other"]
    whole = isinstance(divisor, int) or (
        isinstance(divisor, Tensor) and not divisor.dtype.is_floating_point
    )
    if operands.get("rounding_mode") != "trunc" or not whole or x.dtype.is_floating_point:
        return
    least = min(torch.iinfo(t.dtype).min for t in (x, divisor)
                if isinstance(t, Tensor) and t.dtype != torch.bool)  # fmt: skip
    minus_one = divisor == -1
    any_minus_one = bool(minus_one.any()) if isinstance(minus_one, Tensor) else minus_one
    _refuse_unless(
        not any_minus_one or not bool((x == least).any()),
        f"{least} divided by -1 has no {x.dtype} result",
    )


def _upsample(operands: Operands) -> None:
    x = operands["input"] if "input" in operands else operands["self"]
    sizes = x.shape[2:]
    scales = operands.get("scale_factors")
    if scales is not None:
        _refuse_unless(len(scales) == len(sizes), "not a scale for each dimension")
        _refuse_unless(all(math.isfinite(s) and s > 0 for s in scales), "a scale is not positive")
        return
    names = ("scales",) if len(sizes) == 1 else ("scales_d", "scales_h", "scales_w")[-len(sizes) :]
    output = operands["output_size"]
    _refuse_unless(output is not None and len(output) == len(sizes), "it needs an output size")
    for size, wanted, name in zip(sizes, output, names, strict=True):
        scale = operands.get(name)
        _refuse_unless(
            scale is None or (math.isfinite(scale) and wanted - 2 <= size * scale <= wanted + 2),
            f"{name} {scale} does not make {wanted} of {size}",
        )


def _pieces(operands: Operands) -> None:
    """Bounds how many views a call returns: each costs more than the elements it shows."""
    x = operands["self"]
    count = operands.get("chunks", operands.get("sections"))
    if count is None:
        lengths = operands.get("split_size", operands.get("split_sizes", operands.get("indices")))
        if isinstance(lengths, list):
            return  # as many as the graph lists
        count = -(-x.shape[operands.get("dim", 0)] // max(lengths or 1, 1))
    _refuse_unless(count <= MAX_PIECES, f"{count} pieces, at most {MAX_PIECES} are made")


def _instance_norm(operands: Operands) -> None:
    """With both it would write to the running statistics, whatever its schema says."""
    running = operands.get("running_mean") is not None or operands.get("running_var") is not None
    _refuse_unless(
        not (running and operands["use_input_stats"]), "it is in training mode; call eval() first"
    )


def _attention(operands: Operands) -> None:
    if operands.get("enable_gqa"):
        query, key, value = (operands[name] for name in ("query", "key", "value"))
        _refuse_unless(
            query.dim() == key.dim() == value.dim() == 4
            and min(query.shape[1], key.shape[1], value.shape[1]) > 0,
            "grouped heads need four dimensions and at least one head",
        )


def _index(operands: Operands) -> None:
    """Checks what a CPU checks itself; on CUDA a wrong index would end the context for good."""
    index, x = operands["index"], operands["self"]
    if index.device.type != "cpu":
        check_indices(index, x.shape[operands["dim"]], signed=False)


def _take(operands: Operands) -> None:
    index, x = operands["index"], operands["self"]
    if index.device.type != "cpu":
        check_indices(index, x.numel(), signed=True)


def _take_along(operands: Operands) -> None:
    index, x, dim = operands["indices"], operands["self"], operands.get("dim")
    if index.device.type != "cpu":
        check_indices(index, x.numel() if dim is None else x.shape[dim], signed=True)


def _embedding(operands: Operands) -> None:
    indices = operands["indices"]
    if indices.device.type != "cpu":
        check_indices(indices, operands["weight"].shape[0], signed=False)


def _advanced_index(operands: Operands) -> None:
    x, position = operands["self"], 0
    for index in operands["indices"]:
        if index is not None and index.dtype in {torch.bool, torch.uint8}:
            position += index.dim()
            continue
        if index is not None and index.device.type != "cpu":
            check_indices(index, x.shape[position], signed=True)
        position += 1


def check_indices(index: Tensor, size: int, *, signed: bool) -> None:
    """Raises ValueError unless all indices lie in 0 … size-1, or -size … size-1 if `signed`."""
    _within(index, -size if signed else 0, size)


def _within(index: Tensor, low: int, end: int) -> None:
    if not index.numel():
        return
    least, greatest = torch.aminmax(index)
    _refuse_unless(
        low <= int(least) and int(greatest) < end,
        f"an index of {int(least)} to {int(greatest)} lies outside {low} to {end - 1}",
    )


_GUARDS: Mapping[str, Guard] = {
    "_native_batch_norm_legit_no_training": _batch_norm,
    "batch_norm": _batch_norm,
    "native_batch_norm": _batch_norm,
    "grid_sampler": _grid_sampler,
    "grid_sampler_2d": _grid_sampler,
    "embedding_bag": _embedding_bag,
    "embedding": _embedding,
    "lstm": _recurrent(4),
    "gru": _recurrent(3),
    "rnn_relu": _recurrent(1),
    "rnn_tanh": _recurrent(1),
    "div": _division,
    "divide": _division,
    "index": _advanced_index,
    "index_put": _advanced_index,
    "instance_norm": _instance_norm,
    "scaled_dot_product_attention": _attention,
    "take": _take,
    "take_along_dim": _take_along,
    **dict.fromkeys(("chunk", "split", "split_with_sizes", "tensor_split", "unbind",
                     "unsafe_chunk", "unsafe_split"), _pieces),
    **dict.fromkeys(("gather", "index_add", "index_copy", "index_fill", "index_select",
                     "scatter", "scatter_add", "scatter_reduce"), _index),
    **dict.fromkeys(("upsample_bicubic2d", "upsample_bilinear2d", "upsample_linear1d",
                     "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d"), _upsample),
}  # fmt: skip
