"""How large a result can become, known from an operator's operands before it is called.

Only operators whose results can be much larger than what they read are listed: the others are
measured afterwards. Every function gives an upper bound in elements, of the result or of the
largest temporary tensor known.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from tersor.models.graph_operators import ELEMENTWISE

Operands = Mapping[str, Any]
Elements = Callable[[Sequence[Any]], float]
_Bound = Callable[[Operands], float]


def elements_of(target: str, names: Sequence[str]) -> Elements | None:
    """The bound for `torch.ops.aten.<name>.<overload>`; None if results are no larger than reads.

    It takes the operands in the order of `names`, and raises ValueError, TypeError, LookupError,
    ArithmeticError or AttributeError for unfit ones.
    """
    parts = target.split(".")
    if len(parts) != 5:
        return None
    if parts[3] in ELEMENTWISE:
        return broadcast_elements
    if parts[3] == "linear":
        return _linear
    bound = _BOUNDS.get(parts[3])
    if bound is None:
        return None

    def elements(values: Sequence[Any]) -> float:
        return bound(dict(zip(names, values, strict=True)))

    return elements


def broadcast_elements(values: Sequence[Any]) -> float:
    """The bound of elementwise operators: all tensors stretched to one shape."""
    if len(values) == 2:
        left, right = values  # almost always two, and almost always alike
        if type(left) is type(right) is Tensor and left.shape == right.shape:
            return 0
    shapes = [value.shape for value in values if isinstance(value, Tensor)]
    if len(shapes) < 2:
        return 0
    return _product(_broadcast_shape(shapes))


def _linear(values: Sequence[Any]) -> float:
    rows, columns = values[1].shape
    return float(values[0].numel() // max(columns, 1) * rows)


def _broadcast_shape(shapes: Sequence[Sequence[int]]) -> list[int]:
    rank = max(len(shape) for shape in shapes)
    padded = [[1] * (rank - len(shape)) + list(shape) for shape in shapes]
    return [max(sizes) for sizes in zip(*padded, strict=True)]


def _product(sizes: Sequence[float]) -> float:
    return math.prod(max(size, 1) for size in sizes)


def _literal(*names: str) -> _Bound:
    """The product of integer operands."""

    def bound(operands: Operands) -> float:
        total = 1.0
        for name in names:
            value = operands.get(name)
            if value is not None:
                total *= _product(value if isinstance(value, list) else [value])
        return total

    return bound


def _times(*names: str) -> _Bound:
    """The first tensor, as often as integer operands say."""
    repeats = _literal(*names)

    def bound(operands: Operands) -> float:
        return float(_first(operands).numel() * repeats(operands))

    return bound


def _first(operands: Operands) -> Tensor:
    return next(value for value in operands.values() if isinstance(value, Tensor))


def _arange(operands: Operands) -> float:
    step = operands.get("step", 1)
    span = operands["end"] - operands.get("start", 0)
    return abs(span / step) + 1 if step else 0


def _expand(operands: Operands) -> float:
    x = operands["self"]
    shape = operands["size"].copy()
    old = [1] * (len(shape) - x.dim()) + list(x.shape)
    return _product([max(pair) for pair in zip(shape, old, strict=True)])


def _pad(operands: Operands) -> float:
    x, pads = operands["self"], operands.get("pad", operands.get("padding"))
    sizes = list(x.shape)
    for index in range(len(pads) // 2):
        sizes[-1 - index] += pads[2 * index] + pads[2 * index + 1]
    return _product(sizes)


def _upsample(operands: Operands) -> float:
    x, output = _first(operands), operands.get("output_size")
    if output is None:
        output = [s * f for s, f in zip(x.shape[2:], operands["scale_factors"], strict=True)]
    return _product([*x.shape[:2], *output])


def _adaptive(operands: Operands) -> float:
    x, output = operands["self"], operands["output_size"]
    return _product([*x.shape[: x.dim() - len(output)], *output])


def _im2col(operands: Operands) -> float:
    x = operands["self"]
    windows = [
        (size + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1
        for size, kernel, dilation, pad, stride in zip(
            x.shape[-2:], operands["kernel_size"], operands["dilation"], operands["padding"],
            operands["stride"], strict=True,
        )
    ]  # fmt: skip
    return _product([*x.shape[:-2], *operands["kernel_size"], *windows])


def _convolution(operands: Operands) -> float:
    x, weight = operands["input"], operands["weight"]
    rank = weight.dim() - 2
    stride, pad, dilation, more = (
        _every(operands.get(name, default), rank)
        for name, default in (("stride", 1), ("padding", 0), ("dilation", 1), ("output_padding", 0))
    )
    # Either direction, the larger: a transposed one multiplies sizes where the other divides.
    output = [
        max((size + 2 * p - d * (k - 1) - 1) // s + 1, (size - 1) * s + d * (k - 1) + o + 1)
        if operands.get("transposed", "output_padding" in operands)
        else (size + 2 * p - d * (k - 1) - 1) // s + 1
        for size, k, s, p, d, o in zip(
            x.shape[-rank:], weight.shape[2:], stride, pad, dilation, more, strict=True
        )
    ]
    channels = max(weight.shape[0], weight.shape[1] * operands.get("groups", 1))
    columns = _product([x.shape[-rank - 1], *weight.shape[2:], *output])  # of one sample
    batch = x.shape[0] if x.dim() == rank + 2 else 1
    return max(_product([batch, channels, *output]), columns)


def _conv_transpose(operands: Operands) -> float:
    return _convolution({"output_padding": 0, **operands})


def _every(value: Any, rank: int) -> list[int]:
    if isinstance(value, str):  # "same" and "valid" pad by no more than the kernel
        return [0] * rank
    items = value if isinstance(value, list) else [value]
    return items * rank if len(items) == 1 else items


def _rows_and_columns(left: str, right: str, *, transposed: bool = False) -> _Bound:
    """Products of matrices, batched or not."""

    def bound(operands: Operands) -> float:
        a, b = operands[left].shape, operands[right].shape
        if len(a) < 2 or len(b) < 2:
            return 0
        batch = _broadcast_shape([a[:-2], b[:-2]]) if len(a) > 2 or len(b) > 2 else []
        return _product([*batch, a[-2], b[-2] if transposed else b[-1]])

    return bound


def _outer(operands: Operands) -> float:
    """Every element of one with every element of the other."""
    return _product([value.numel() for value in operands.values() if isinstance(value, Tensor)])


def _bilinear(operands: Operands) -> float:
    x, rows = operands["input1"], operands["weight"].shape[0]
    return float(x.numel() * rows)


def _tensordot(operands: Operands) -> float:
    x = operands["self"]
    contracted = _product([x.shape[dim] for dim in operands["dims_self"]])
    return float(x.numel() / contracted * (operands["other"].numel() / contracted))


def _einsum(operands: Operands) -> float:
    """The largest step of contracting from left to right."""
    equation: str = operands["equation"].replace(" ", "")
    inputs, _, output = equation.partition("->")
    terms = inputs.replace("...", ".").split(",")
    sizes: dict[str, float] = {}
    for term, tensor in zip(terms, operands["tensors"], strict=True):
        shape = list(tensor.shape)
        if "." in term:  # as one letter
            at, count = term.index("."), len(shape) - len(term) + 1
            shape[at : at + count] = [int(_product(shape[at : at + count]))]
        for letter, size in zip(term, shape, strict=True):
            sizes[letter] = max(size, sizes.get(letter, 1))
    if "->" not in equation:
        output = "".join({x for x in inputs if inputs.count(x) == 1} | {"."})
    largest, held = 0.0, set(terms[0])
    for index, term in enumerate(terms[1:], 1):
        kept = set(output.replace("...", ".")).union(*terms[index + 1 :])
        held = (held | set(term)) & kept
        largest = max(largest, _product([sizes.get(letter, 1) for letter in held]))
    return largest


def _attention(operands: Operands) -> float:
    """The scores: not every kernel keeps them out of memory."""
    query, key = operands["query"], operands["key"]
    return _product([*query.shape[:-1], key.shape[-2]])


def _joined(operands: Operands) -> float:
    return float(sum(tensor.numel() for tensor in operands["tensors"]))


def _rows(operands: Operands) -> float:
    x, index = operands["self"], operands["index"]
    return _product([x.numel() / max(x.shape[operands["dim"]], 1), index.numel()])


def _embedding(operands: Operands) -> float:
    return _product([operands["indices"].numel(), *operands["weight"].shape[1:]])


def _advanced_index(operands: Operands) -> float:
    x, indices = operands["self"], operands["indices"]
    if any(index is not None and not index.dtype.is_signed for index in indices):
        return 0  # a mask selects no more than there is
    shape = _broadcast_shape([index.shape for index in indices if index is not None])
    rest = [s for s, index in zip(x.shape, [*indices, *[None] * x.dim()], strict=False)
            if index is None]  # fmt: skip
    return _product([*shape, *rest])


def _transform(operands: Operands) -> float:
    x, length = operands["self"], operands.get("n")
    return 0 if length is None else x.numel() / max(x.shape[operands.get("dim", -1)], 1) * length


def _stft(operands: Operands) -> float:
    hop = operands.get("hop_length") or operands["n_fft"] // 4
    return float((operands["self"].numel() / max(hop, 1) + 1) * operands["n_fft"])


def _diagonal(operands: Operands) -> float:
    x = operands["self"]
    return float(x.numel() * (x.shape[-1] + abs(operands.get("offset", 0))))


def _grid_sampler(operands: Operands) -> float:
    x, grid = operands["input"], operands["grid"]
    return _product([*x.shape[:2], *grid.shape[1:-1]])


def _recurrent(operands: Operands) -> float:
    x, size = operands["input"], operands["params"][0].shape[0]
    return _product([*x.shape[:-1], 2 * size])


_BOUNDS: Mapping[str, _Bound] = {
    **dict.fromkeys(("full", "new_full", "new_ones", "new_zeros", "ones", "zeros"),
                    _literal("size")),
    **dict.fromkeys(("expand", "broadcast_to"), _expand),
    **dict.fromkeys(("constant_pad_nd", "pad", "reflection_pad1d", "reflection_pad2d",
                     "replication_pad1d", "replication_pad2d"), _pad),
    **dict.fromkeys(("upsample_bicubic2d", "upsample_bilinear2d", "upsample_linear1d",
                     "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d"), _upsample),
    **dict.fromkeys(("_adaptive_avg_pool2d", "adaptive_avg_pool1d", "adaptive_avg_pool2d",
                     "adaptive_avg_pool3d", "adaptive_max_pool1d", "adaptive_max_pool2d"),
                    _adaptive),
    **dict.fromkeys(("_convolution", "conv1d", "conv2d", "conv3d", "convolution"), _convolution),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
                    _conv_transpose),
    **dict.fromkeys(("cat", "column_stack", "concat", "concatenate", "dstack", "hstack", "stack",
                     "vstack"), _joined),
    **dict.fromkeys(("lstm", "gru", "rnn_relu", "rnn_tanh"), _recurrent),
    **dict.fromkeys(("fft_rfft", "fft_irfft"), _transform),
    **dict.fromkeys(("kron", "outer"), _outer),
    **dict.fromkeys(("mm", "bmm"), _rows_and_columns("self", "mat2")),
    **dict.fromkeys(("matmul", "linalg_matmul"), _rows_and_columns("self", "other")),
    **dict.fromkeys(("grid_sampler", "grid_sampler_2d"), _grid_sampler),
    "addmm": _rows_and_columns("mat1", "mat2"),
    "addbmm": _rows_and_columns("batch1", "batch2"),
    "baddbmm": _rows_and_columns("batch1", "batch2"),
    "inner": _rows_and_columns("self", "other", transposed=True),
    "cdist": _rows_and_columns("x1", "x2", transposed=True),
    "_euclidean_dist": _rows_and_columns("x1", "x2", transposed=True),
    "affine_grid_generator": _times("size"),
    "arange": _arange,
    "bilinear": _bilinear,
    "diag_embed": _diagonal,
    "einsum": _einsum,
    "embedding": _embedding,
    "embedding_bag": _embedding,
    "eye": _literal("n", "m"),
    "hann_window": _literal("window_length"),
    "im2col": _im2col,
    "index": _advanced_index,
    "index_select": _rows,
    "linspace": _literal("steps"),
    "one_hot": _times("num_classes"),
    "repeat": _times("repeats"),
    "repeat_interleave": _times("repeats"),
    "scaled_dot_product_attention": _attention,
    "stft": _stft,
    "tensordot": _tensordot,
    "tile": _times("dims"),
    "tril_indices": _literal("row", "col"),
    "triu_indices": _literal("row", "col"),
}  # fmt: skip
