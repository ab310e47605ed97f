"""The operators a graph may call: an allow list, and what is known about each before it runs.

Only operators that compute new values from their operands are listed. Left out on purpose:
everything that writes to an operand (weights are shared by all requests), draws random numbers,
returns memory it did not write (`empty`), reinterprets storage (`as_strided` and its variants), or
touches files, devices and processes. Of those listed, some trust their operands: `graph_guards.py`
checks what they do not. An operator that is missing here is one line away once a real model needs
it; fuzz it behind guard pages first, for torch's own checks are made for honest callers.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch

from tersor.models.errors import UnsupportedProgramError

ScalarFunction = Callable[..., int | float | bool]

# Results have the shape that all operands broadcast to.
ELEMENTWISE = frozenset(
    # arithmetic
    """
    abs absolute acos acosh add addcdiv addcmul asin asinh atan atan2 atanh ceil clamp clamp_max
    clamp_min clip copysign cos cosh deg2rad div divide erf erfc erfinv exp exp2 expm1 floor
    floor_divide fmod frac hypot lerp lgamma log log10 log1p log2 logaddexp logaddexp2 logit
    maximum minimum mul multiply nan_to_num neg negative positive pow rad2deg reciprocal
    remainder round rsqrt rsub sgn sigmoid sign sin sinc sinh sqrt square sub subtract tan tanh
    true_divide trunc xlogy
    """.split()  # noqa: SIM905 - a table of words reads better than 300 quoted strings
    # comparison and logic
    + """
    __and__ __lshift__ __or__ __rshift__ __xor__ bitwise_and bitwise_left_shift bitwise_not
    bitwise_or bitwise_right_shift bitwise_xor eq fmax fmin ge greater greater_equal gt isclose
    isfinite isin isinf isnan isneginf isposinf le less less_equal logical_and logical_not
    logical_or logical_xor lt ne not_equal where
    """.split()  # noqa: SIM905
    + ["cosine_similarity", "cross", "linalg_cross", "masked_fill", "pairwise_distance"]
)

_ATEN = ELEMENTWISE | frozenset(
    # reductions, sorting, scans
    """
    all amax amin aminmax any argmax argmin argsort bucketize count_nonzero cummax cummin
    cumprod cumsum diff frobenius_norm linalg_norm linalg_vector_norm log_softmax
    logcumsumexp logsumexp max mean min msort nanmean nansum norm prod searchsorted
    softmax sort std std_mean sum topk var var_mean _softmax _log_softmax _safe_softmax
    """.split()  # noqa: SIM905
    # linear algebra
    + """
    addbmm addmm addmv baddbmm bilinear bmm cdist dot einsum inner kron linalg_matmul linear
    matmul mm mv outer tensordot trace vdot _euclidean_dist
    """.split()  # noqa: SIM905
    # layers and activations
    + """
    adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d
    adaptive_max_pool2d affine_grid_generator avg_pool1d avg_pool2d avg_pool3d batch_norm celu
    channel_shuffle conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d
    convolution elu embedding embedding_bag gelu glu grid_sampler grid_sampler_2d group_norm gru
    hardshrink hardsigmoid hardswish hardtanh instance_norm layer_norm leaky_relu log_sigmoid
    lstm max_pool1d max_pool2d max_pool2d_with_indices max_pool3d mish native_batch_norm
    native_group_norm native_layer_norm pixel_shuffle pixel_unshuffle prelu relu relu6 rms_norm
    rnn_relu rnn_tanh scaled_dot_product_attention selu silu softplus softshrink threshold
    upsample_bicubic2d upsample_bilinear2d upsample_linear1d upsample_nearest1d
    upsample_nearest2d upsample_nearest3d _adaptive_avg_pool2d _convolution
    _native_batch_norm_legit_no_training _fused_rms_norm
    """.split()  # noqa: SIM905
    # shapes, views, indexing
    + """
    _unsafe_view adjoint alias broadcast_tensors broadcast_to cat chunk clone
    column_stack concat concatenate constant_pad_nd contiguous detach diag_embed diagonal diff
    dstack expand expand_as flatten flip fliplr flipud gather hstack im2col index index_add
    index_copy index_fill index_put index_select lift_fresh_copy mT masked_scatter
    meshgrid moveaxis movedim narrow numpy_T pad permute ravel reflection_pad1d reflection_pad2d
    repeat repeat_interleave replication_pad1d replication_pad2d reshape roll rot90 scatter
    scatter_add scatter_reduce select select_scatter slice slice_scatter split split_with_sizes
    squeeze stack swapaxes swapdims sym_numel sym_size t take take_along_dim tensor_split tile
    transpose tril triu unbind unflatten unfold unsafe_chunk unsafe_split unsqueeze view view_as
    vstack
    """.split()  # noqa: SIM905
    # new tensors and conversions
    + """
    _cast_Float _to_copy arange eye fft_irfft fft_rfft full full_like hann_window linspace
    new_full new_ones new_zeros one_hot ones ones_like scalar_tensor stft tril_indices
    triu_indices to type_as view_as_complex view_as_real zeros zeros_like
    """.split()  # noqa: SIM905
)

# Operators that allocate what their integer operands ask for, not what their tensors hold.
_SIZED = frozenset(
    """
    arange broadcast_to constant_pad_nd expand eye full hann_window linspace new_full new_ones
    new_zeros one_hot ones pad repeat repeat_interleave tile tril_indices triu_indices zeros
    """.split()  # noqa: SIM905
)
# Overloads that allocate what the values of their tensors say: a request could ask for terabytes.
_DATA_SIZED = frozenset(
    (
        "repeat_interleave.Tensor",
        "repeat_interleave.self_Tensor",
        "tensor_split.tensor_indices_or_sections",
    )
)
# Overloads that trust numbers in their tensors, or take what no exporter writes.
_TRUSTING = frozenset(("einsum.sublist", "gru.data", "lstm.data", "rnn_relu.data", "rnn_tanh.data"))
# The only operators that return a number instead of tensors.
_SIZES = frozenset(("sym_numel", "sym_size"))
MAX_LITERAL_ELEMENTS = 1 << 31

# Arithmetic on sizes. No powers and no shifts: repeated, they grow without bound.
_SCALAR: Mapping[str, ScalarFunction] = {
    "_operator.add": operator.add,
    "_operator.eq": operator.eq,
    "_operator.floordiv": operator.floordiv,
    "_operator.ge": operator.ge,
    "_operator.gt": operator.gt,
    "_operator.le": operator.le,
    "_operator.lt": operator.lt,
    "_operator.mod": operator.mod,
    "_operator.mul": operator.mul,
    "_operator.ne": operator.ne,
    "_operator.neg": operator.neg,
    "_operator.pos": operator.pos,
    "_operator.sub": operator.sub,
    "_operator.truediv": operator.truediv,
    "math.ceil": math.ceil,
    "math.floor": math.floor,
    "math.trunc": math.trunc,
    "torch.sym_float": float,
    "torch.sym_int": int,
    "torch.sym_max": max,
    "torch.sym_min": min,
    "torch.sym_not": operator.not_,
}
_MAX_SCALAR = 1 << 63

LINEAR = "torch.ops.aten.linear.default"
EMBEDDING = "torch.ops.aten.embedding.default"

# Operators without effect on values at inference, and checks: the exporter removes them.
IDENTITIES = frozenset(
    f"torch.ops.aten.{name}.default"
    for name in (
        "alias",
        "alpha_dropout",
        "detach",
        "dropout",
        "feature_dropout",
        "lift_fresh_copy",
    )
)
ASSERTIONS = frozenset(
    f"torch.ops.aten.{name}"
    for name in (
        "_assert_async.msg", "_assert_scalar.default", "_assert_tensor_metadata.default",
        "sym_constrain_range.default", "sym_constrain_range_for_size.default",
    )
)  # fmt: skip


def scalar_function(target: str) -> ScalarFunction | None:
    """The function on sizes that `target` names; None if it names none.

    The function raises OverflowError where a result leaves 64 bits, so that no chain of
    multiplications fills the memory.
    """
    function = _SCALAR.get(target)
    if function is None:
        return None

    def bounded(*values: float) -> int | float | bool:
        result = function(*values)
        if not -_MAX_SCALAR <= result < _MAX_SCALAR:
            raise OverflowError(f"{target} leaves 64 bits")
        return result

    return bounded


def tensor_operator(target: str) -> Any:
    """The `torch.ops` overload that `target` names, if the allow list has it.

    Raises:
        UnsupportedProgramError: it is not listed, this torch lacks it, or it writes to operands.
    """
    parts = target.split(".")
    name = parts[3] if len(parts) == 5 and parts[:3] == ["torch", "ops", "aten"] else ""
    if name not in _ATEN or ".".join(parts[3:]) in _DATA_SIZED | _TRUSTING:
        if name.endswith("_") and name[:-1] in _ATEN:
            raise _writes(target)
        raise UnsupportedProgramError(
            f"the graph calls {target!r}, which is not on the list of operators a graph may call"
        )
    packet = getattr(torch.ops.aten, name, None)
    if packet is None or parts[4] not in packet.overloads():
        raise UnsupportedProgramError(
            f"the graph calls {target!r}, which torch {torch.__version__} does not have"
        )
    overload = getattr(packet, parts[4])
    schema = overload._schema  # noqa: SLF001 - the only place where an operator says what it is
    if schema.is_mutable:
        raise _writes(target)
    if not _computes_tensors(schema, name, parts[4]):
        raise UnsupportedProgramError(
            f"the graph calls {target!r}, an overload for scripts rather than for tensors"
        )
    return overload


def _computes_tensors(schema: Any, name: str, overload: str) -> bool:
    """Tells torch's operators from what it adds to their names for scripts.

    Those take numbers, strings and lists, and check nothing: the remainder of a division by zero
    is the end of the process.
    """
    if overload.startswith("prim_") or overload.endswith("hacked_twin"):
        return False
    if name in _SIZES:
        return True
    return all(str(result.type) in {"Tensor", "List[Tensor]"} for result in schema.returns)


def _writes(target: str) -> UnsupportedProgramError:
    return UnsupportedProgramError(
        f"the graph calls {target!r}, which writes to its operands; export the program again and "
        "save the result of its run_decompositions({})"
    )


def allocates(target: str) -> bool:
    """Whether the operator's memory is decided by its integer operands."""
    parts = target.split(".")
    return len(parts) == 5 and parts[3] in _SIZED
