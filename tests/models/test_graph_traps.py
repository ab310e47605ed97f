"""Operands that make torch's own operators read out of bounds, trap, hang or eat all memory.

Every case here ended the process, read foreign memory or never returned before it was refused.
"""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from tersor.bundle.program import GraphProgram, TensorSpec
from tersor.models.errors import ProgramFailedError, UnsupportedProgramError
from tersor.models.graph import GraphModel
from tersor.models.graph_guards import check_indices
from tersor.models.graph_memory import MIN_LIVE_BYTES
from tersor.models.weights import ResidentWeights

CPU = torch.device("cpu")
Json = Any
_DTYPES = {"f32": 7, "i64": 5, "i32": 4, "u8": 1}
_TORCH = {"f32": torch.float32, "i64": torch.int64, "i32": torch.int32, "u8": torch.uint8}


def arg(value: Any) -> Json:
    """A Python value as an operand of a graph: a string is the name of a tensor."""
    if value is None:
        return {"as_none": True}
    if isinstance(value, dict):
        return value
    if isinstance(value, bool):
        return {"as_bool": value}
    if isinstance(value, int):
        return {"as_int": value}
    if isinstance(value, float):
        return {"as_float": value}
    if isinstance(value, str):
        return {"as_tensor": {"name": value}}
    if value and isinstance(value[0], str):
        return {"as_tensors": [{"name": name} for name in value]}
    if value and isinstance(value[0], float):
        return {"as_floats": list(value)}
    return {"as_ints": list(value)}


def node(target: str, inputs: dict[str, Any], *outputs: str) -> Json:
    return {
        "target": f"torch.ops.aten.{target}",
        "inputs": [{"name": name, "arg": arg(value)} for name, value in inputs.items()],
        "outputs": [{"as_tensor": {"name": name}} for name in outputs],
    }


def model(nodes: list[Json], shapes: dict[str, tuple[str, tuple[int, ...]]]) -> GraphModel:
    """A graph over inputs (dtype, shape) whose one output is `out`, of any shape."""
    values = {
        name: {"dtype": _DTYPES[dtype], "sizes": [{"as_int": size} for size in shape]}
        for name, (dtype, shape) in shapes.items()
    }
    values["out"] = {"dtype": 7, "sizes": [{"as_expr": {"expr_str": "s0 + 1"}}]}
    names = [{"as_tensor": {"name": name}} for name in shapes]
    out = {"as_tensor": {"name": "out"}}
    tree = {
        "schema_version": {"major": 8, "minor": 1},
        "torch_version": "2.11",
        "range_constraints": {},
        "weight_groups": {},
        "graph_module": {
            "graph": {"inputs": names, "outputs": [out], "nodes": nodes, "tensor_values": values},
            "signature": {
                "input_specs": [{"user_input": {"arg": name}} for name in names],
                "output_specs": [{"user_output": {"arg": out}}],
            },
        },
    }
    program = GraphProgram(
        graph_asset="graph.json",
        schema_version=(8, 1),
        torch_version="2.11",
        inputs=tuple(TensorSpec(name=n, dtype=d, shape=s) for n, (d, s) in shapes.items()),
        outputs=(TensorSpec(name="out", dtype="f32", shape=(-1,)),),
    )
    return GraphModel(program, json.dumps(tree).encode(), ResidentWeights({}), device=CPU)


def run(nodes: list[Json], **inputs: Tensor) -> Tensor:
    names = {dtype: name for name, dtype in _TORCH.items()}
    shapes = {name: (names[t.dtype], tuple(t.shape)) for name, t in inputs.items()}
    return model(nodes, shapes).run(inputs)["out"]


X = torch.arange(24.0).reshape(1, 2, 3, 4)


@pytest.mark.parametrize(
    "target",
    [
        "_reshape_alias.default", "as_strided.default", "as_strided_copy.default",
        "remainder.int", "remainder.default", "to.prim_Device", "to.prim_dtype",
        "floor_divide.int", "add.str", "select.t", "index.list_Tensor", "lstm.data", "gru.data",
        "median.dim", "kthvalue.default", "einsum.sublist",
        "tensor_split.tensor_indices_or_sections",
        "new_empty.default", "empty_strided.default", "resize.default", "to_sparse.default",
        "_nested_tensor_from_mask.default", "col2im.default", "histc.default", "bincount.default",
    ],
)  # fmt: skip
def test_what_trusts_its_caller_is_not_on_the_list(target: str) -> None:
    with pytest.raises(UnsupportedProgramError):
        run([node(target, {"self": "x"}, "out")], x=X)


@pytest.mark.parametrize(
    ("target", "inputs"),
    [
        ("_to_copy.default", {"self": "x", "dtype": -3}),
        ("_to_copy.default", {"self": "x", "dtype": {"as_sym_int": {"as_name": "x"}}}),
        ("_to_copy.default", {"self": "x", "layout": 1}),
        ("clone.default", {"self": "x", "memory_format": 4}),
        ("cumsum.default", {"self": "x", "dim": 0, "dtype": 1000}),
        ("full.default", {"size": [2], "fill_value": 1, "dtype": -1}),
        ("_softmax.default", {"self": "x", "dim": 0, "half_to_float": False, "dtype": 99}),
    ],
)
def test_numbers_are_no_dtypes(target: str, inputs: dict[str, Any]) -> None:
    """torch looks them up in tables, without looking at their size."""
    with pytest.raises(UnsupportedProgramError):
        run([node(target, inputs, "out")], x=X)


_NORM = {"input": "x", "weight": None, "bias": None, "eps": 1e-5}
_BAG = {"weight": "table", "indices": "index", "offsets": "offsets"}
_LSTM = {
    "input": "x", "hx": ["h", "h"], "params": ["ih", "hh", "b", "b"], "has_biases": True,
    "num_layers": 1, "dropout": 0.0, "train": False, "bidirectional": False, "batch_first": False,
}  # fmt: skip
_SDPA = {"query": "x", "key": "x", "value": "x", "enable_gqa": True}


@pytest.mark.parametrize(
    ("target", "inputs", "outputs", "tensors"),
    [
        ("_native_batch_norm_legit_no_training.default",
         {**_NORM, "running_mean": "v", "running_var": "v", "momentum": 0.1}, 3,
         {"x": X, "v": torch.ones(1)}),
        ("native_batch_norm.default",
         {**_NORM, "running_mean": None, "running_var": None, "training": False, "momentum": 0.1},
         3, {"x": X}),
        ("instance_norm.default",
         {**_NORM, "running_mean": "v", "running_var": "v", "use_input_stats": True,
          "momentum": 0.1, "cudnn_enabled": False}, 1, {"x": X, "v": torch.ones(2)}),
        ("grid_sampler_2d.default",
         {"input": "x", "grid": "g", "interpolation_mode": 7, "padding_mode": 0,
          "align_corners": True}, 1, {"x": X, "g": torch.zeros(1, 2, 2, 2)}),
        ("grid_sampler.default",
         {"input": "x", "grid": "g", "interpolation_mode": 0, "padding_mode": -1,
          "align_corners": True}, 1, {"x": X, "g": torch.zeros(1, 2, 2, 2)}),
        ("embedding_bag.default", _BAG, 4,
         {"table": torch.ones(8, 4), "index": torch.tensor([1, 2, 3]),
          "offsets": torch.tensor([0, -5])}),
        ("embedding_bag.default", _BAG, 4,
         {"table": torch.ones(8, 4), "index": torch.tensor([1, 2, 3]),
          "offsets": torch.tensor([0, 3, 1])}),
        ("embedding_bag.default", {**_BAG, "mode": -3}, 4,
         {"table": torch.ones(8, 0), "index": torch.tensor([[1, 2]]),
          "offsets": torch.zeros(3, 0).long()}),
        ("lstm.input", _LSTM, 3,
         {"x": torch.ones(3, 2, 4), "h": torch.ones(1, 2, 5), "ih": torch.ones(20, 4),
          "hh": torch.ones(20, 5), "b": torch.ones(1)}),
        ("lstm.input", _LSTM, 3,
         {"x": torch.ones(3, 2, 4), "h": torch.ones(1, 2, 5), "ih": torch.ones(2, 4),
          "hh": torch.ones(20, 5), "b": torch.ones(20)}),
        ("lstm.input", {**_LSTM, "num_layers": 1 << 40}, 3,
         {"x": torch.ones(3, 2, 4), "h": torch.ones(1, 2, 5), "ih": torch.ones(20, 4),
          "hh": torch.ones(20, 5), "b": torch.ones(20)}),
        ("div.Tensor_mode", {"self": "x", "other": "y", "rounding_mode": {"as_string": "trunc"}},
         1, {"x": torch.full((2,), -(1 << 63)), "y": torch.full((2,), -1)}),
        ("div.Scalar_mode", {"self": "x", "other": -1, "rounding_mode": {"as_string": "trunc"}},
         1, {"x": torch.full((2,), -(1 << 31), dtype=torch.int32)}),
        ("upsample_nearest2d.default",
         {"self": "x", "output_size": [7, 7], "scales_h": 1e-30, "scales_w": 1e-30}, 1,
         {"x": torch.zeros(1, 3, 5, 5, dtype=torch.uint8)}),
        ("upsample_nearest1d.default", {"self": "x", "output_size": [7], "scales": 1e-300}, 1,
         {"x": torch.zeros(1, 3, 5, dtype=torch.uint8)}),
        ("scaled_dot_product_attention.default", _SDPA, 1, {"x": torch.ones(1, 0, 2, 8)}),
    ],
)  # fmt: skip
def test_operands_that_torch_trusts_are_refused(
    target: str, inputs: dict[str, Any], outputs: int, tensors: dict[str, Tensor]
) -> None:
    names = ["out", *(f"more{index}" for index in range(1, outputs))]
    with pytest.raises(ProgramFailedError):
        run([node(target, inputs, *names)], **tensors)


def _list_node(target: str, inputs: dict[str, Any]) -> Json:
    return node(target, inputs) | {"outputs": [{"as_tensors": [{"name": "out"}]}]}


@pytest.mark.parametrize(
    ("target", "inputs"),
    [
        ("chunk.default", {"self": "x", "chunks": 1 << 31}),
        ("unsafe_chunk.default", {"self": "x", "chunks": 1 << 20, "dim": 1}),
        ("tensor_split.sections", {"self": "x", "sections": 1 << 31}),
        ("unbind.int", {"self": "wide", "dim": 0}),
        ("split.Tensor", {"self": "wide", "split_size": 1}),
    ],
)
def test_millions_of_views_are_refused(target: str, inputs: dict[str, Any]) -> None:
    wide = node("expand.default", {"self": "one", "size": [1 << 20]}, "wide")
    with pytest.raises(ProgramFailedError, match="pieces, at most"):
        run([wide, _list_node(target, inputs)], x=torch.ones(0, 4), one=torch.ones(1))


def _doubled(steps: int, last: Json) -> list[Json]:
    """x[64] repeated: 64 * 2 ** steps elements in `big`, one doubling a node."""
    names = ["x", *(f"x{i}" for i in range(steps - 1)), "big"]
    nodes = [
        node("cat.default", {"tensors": [before, before]}, after)
        for before, after in pairwise(names)
    ]
    return [*nodes, last]


@pytest.mark.parametrize(
    "nodes",
    [
        [node("repeat.default", {"self": "x", "repeats": [1 << 26]}, "out")],
        [node("cat.default", {"tensors": ["x"] * 20000}, "a"),
         node("cat.default", {"tensors": ["a"] * 20000}, "out")],
        _doubled(12, node("outer.default", {"self": "big", "vec2": "big"}, "out")),
        [*_doubled(12, node("unsqueeze.default", {"self": "big", "dim": 1}, "column")),
         node("mul.Tensor", {"self": "big", "other": "column"}, "out")],
        [*_doubled(12, node("unsqueeze.default", {"self": "big", "dim": 1}, "column")),
         node("cdist.default", {"x1": "column", "x2": "column", "p": 2.0}, "out")],
        _doubled(12, node("diag_embed.default", {"self": "big"}, "out")),
        [node("constant_pad_nd.default", {"self": "x", "pad": [1 << 30, 1 << 30]}, "out")],
        [node("fft_rfft.default", {"self": "x", "n": 1 << 33}, "out")],
        [node("expand.default", {"self": "x", "size": [1 << 25, 64]}, "a"),
         node("clone.default", {"self": "a"}, "out")],
        [node("reshape.default", {"self": "x", "shape": [1, 1, 8, 8]}, "a"),
         node("_adaptive_avg_pool2d.default", {"self": "a", "output_size": [1 << 16, 1 << 16]},
              "out")],
        [node("reshape.default", {"self": "x", "shape": [1, 1, 8, 8]}, "a"),
         node("convolution.default",
              {"input": "a", "weight": "a", "bias": None, "stride": [1, 1],
               "padding": [1 << 16, 1 << 16], "dilation": [1, 1], "transposed": False,
               "output_padding": [0, 0], "groups": 1}, "out")],
        [node("reshape.default", {"self": "x", "shape": [1, 1, 8, 8]}, "a"),
         node("upsample_nearest2d.vec",
              {"input": "a", "output_size": None, "scale_factors": [1e5, 1e5]}, "out")],
        [node("expand.default", {"self": "x", "size": [5 << 20, 64]}, "a"),
         node("cat.default", {"tensors": ["a", "a"]}, "out")],
    ],
)  # fmt: skip
def test_results_larger_than_memory_are_never_computed(nodes: list[Json]) -> None:
    with pytest.raises((ProgramFailedError, UnsupportedProgramError), match=r"limit of|at most"):
        run(nodes, x=torch.ones(64))


def test_the_limit_is_on_what_is_held_and_grows_with_what_is_read() -> None:
    quarter = MIN_LIVE_BYTES // 4 // 4 // 64
    nodes = []
    for index in range(6):  # each is a quarter of the limit, and dead after one step
        nodes.append(node("expand.default", {"self": "x", "size": [quarter, 64]}, f"wide{index}"))
        nodes.append(
            node("select.int", {"self": f"wide{index}", "dim": 0, "index": 0}, f"r{index}")
        )
    held = [node("stack.default", {"tensors": ["r0", "r5"]}, "out")]
    assert run(nodes + held, x=torch.ones(64)).shape == (2, 64)
    late = [nodes[i] for i in (0, 2, 4, 6, 8)] + [nodes[i] for i in (1, 3, 5, 7, 9)]
    with pytest.raises(ProgramFailedError, match="limit of"):
        run([*late, node("stack.default", {"tensors": ["r0", "r4"]}, "out")], x=torch.ones(64))


def test_inputs_that_a_server_could_not_make_are_refused() -> None:
    identity = [node("neg.default", {"self": "x"}, "out")]
    with pytest.raises(UnsupportedProgramError, match="1099511627776 elements, at most"):
        model(identity, {"x": ("f32", (1 << 20, 1 << 20))})


def test_honest_uses_of_guarded_operators_run() -> None:
    table = torch.arange(32.0).reshape(8, 4)
    index, offsets = torch.tensor([1, 2, 3]), torch.tensor([0, 2])
    bags = run([node("embedding_bag.default", _BAG, "out", "b", "c", "d")],
               table=table, index=index, offsets=offsets)  # fmt: skip
    torch.testing.assert_close(bags, torch.stack((table[1] + table[2], table[3])))
    torch.manual_seed(0)
    lstm = torch.nn.LSTM(4, 5)
    weights = dict(zip(("ih", "hh", "b", "c"), lstm.parameters(), strict=True))
    x, h = torch.randn(3, 2, 4), torch.zeros(1, 2, 5)
    inputs = {**_LSTM, "params": ["ih", "hh", "b", "c"]}
    out = run([node("lstm.input", inputs, "out", "h1", "c1")],
              x=x, h=h, **{k: v.detach() for k, v in weights.items()})  # fmt: skip
    torch.testing.assert_close(out, lstm(x)[0])
    trunc = {"self": "a", "other": "b", "rounding_mode": {"as_string": "trunc"}}
    a, b = torch.tensor([-7, -(1 << 63)]), torch.tensor([-1, 2])
    with pytest.raises(ProgramFailedError, match="divided by -1"):
        run([node("div.Tensor_mode", trunc, "out")], a=a, b=b)  # strict: cheap to decide
    a = torch.tensor([-7, 9])
    assert run([node("div.Tensor_mode", trunc, "out")], a=a, b=b).tolist() == [7, 4]
    image = torch.randn(1, 3, 5, 5)
    up = run([node("upsample_bilinear2d.default",
                   {"self": "x", "output_size": [12, 12], "align_corners": False,
                    "scales_h": 2.5, "scales_w": 2.5}, "out")], x=image)  # fmt: skip
    torch.testing.assert_close(
        up, torch.nn.functional.interpolate(image, scale_factor=2.5, mode="bilinear")
    )


def test_indices_for_devices_that_do_not_survive_wrong_ones() -> None:
    check_indices(torch.tensor([0, 4]), 5, signed=False)
    check_indices(torch.tensor([-5, 4]), 5, signed=True)
    check_indices(torch.zeros(0).long(), 0, signed=False)
    for index, signed in (([5], False), ([-1], False), ([-6], True), ([1 << 40], True)):
        with pytest.raises(ValueError, match="lies outside"):
            check_indices(torch.tensor(index), 5, signed=signed)
