"""Exported programs of several kinds run as their modules do, on layouts, group by group."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_graphs import (
    CPU,
    RecordingWeights,
    cnn,
    loaded,
    recommender,
    resident_groups,
    sentence_encoder,
    sentence_inputs,
)
from torch import Tensor, nn

from tersor.bundle.program import UNUSED_GROUP
from tersor.kernels.layout import layouts
from tersor.models.errors import (
    InvalidInputError,
    RunAbandonedError,
    UnsupportedProgramError,
    WeightError,
)
from tersor.models.export import GraphParts, program_from_exported
from tersor.models.graph import GraphModel
from tersor.models.weights import ResidentWeights


@pytest.fixture(scope="module")
def encoder(minilm_dir: Path) -> tuple[nn.Module, GraphParts]:
    model, exported = sentence_encoder(minilm_dir)
    return model, program_from_exported(exported)


@pytest.fixture(scope="module")
def small() -> tuple[nn.Module, GraphParts]:
    model, exported = recommender()
    return model, program_from_exported(exported)


def _reference(model: nn.Module, inputs: dict[str, Tensor]) -> Any:
    with torch.inference_mode():
        return model(**inputs)


@pytest.mark.parametrize(("batch", "sequence"), [(1, 1), (1, 12), (3, 17), (5, 40)])
def test_the_encoder_equals_transformers(
    encoder: tuple[nn.Module, GraphParts], batch: int, sequence: int
) -> None:
    model, parts = encoder
    inputs = sentence_inputs(batch, sequence)
    actual, expected = loaded(parts).run(inputs), _reference(model, inputs)
    assert list(actual) == ["last_hidden_state", "sentence_embedding"]
    for name, tensor in expected.items():
        torch.testing.assert_close(actual[name], tensor, atol=1e-5, rtol=1e-5)


def test_the_encoder_is_described(encoder: tuple[nn.Module, GraphParts]) -> None:
    _, parts = encoder
    program = parts.program
    assert [(s.name, s.dtype, s.shape) for s in program.inputs] == [
        ("input_ids", "i64", (-1, -1)),
        ("attention_mask", "i64", (-1, -1)),
        ("token_type_ids", "i64", (-1, -1)),
    ]
    assert [(s.name, s.dtype, s.shape) for s in program.outputs] == [
        ("last_hidden_state", "f32", (-1, -1, 384)),
        ("sentence_embedding", "f32", (-1, 384)),
    ]
    layers = tuple(f"model.encoder.layer.{i}" for i in range(6))
    assert program.group_order == ("stem", *layers, UNUSED_GROUP)
    assert program.batch_dim_dynamic
    assert program.max_batch_size == 64
    # The pooler is not read by these outputs: kept in the bundle, but no part of the program.
    unused = {name for name, _, group in parts.tensors if group == UNUSED_GROUP}
    pooler = {"model.pooler.dense.weight", "model.pooler.dense.bias"}
    assert unused == pooler | {"model.embeddings.token_type_ids"}
    assert b"pooler" not in parts.graph_json
    assert b"stack_trace" not in parts.graph_json


def test_groups_are_acquired_in_order_and_released_when_done(
    encoder: tuple[nn.Module, GraphParts],
) -> None:
    _, parts = encoder
    weights = RecordingWeights(resident_groups(parts))
    model = GraphModel(parts.program, parts.graph_json, weights, device=CPU)
    assert weights.events == []
    model.run(sentence_inputs(1, 4))
    order = [group for group in parts.program.group_order if group != UNUSED_GROUP]
    assert weights.events == [(event, group) for group in order for event in ("acquire", "release")]


def test_an_abandoned_run_ends_before_its_next_operator_and_holds_no_weights(
    encoder: tuple[nn.Module, GraphParts],
) -> None:
    _, parts = encoder
    weights = RecordingWeights(resident_groups(parts))
    model = GraphModel(parts.program, parts.graph_json, weights, device=CPU)
    asked = iter(range(1000))
    with pytest.raises(RunAbandonedError):
        model.run(sentence_inputs(1, 4), abandoned=lambda: next(asked) == 60)
    assert next(asked) == 61
    acquired = [group for event, group in weights.events if event == "acquire"]
    released = [group for event, group in weights.events if event == "release"]
    assert 0 < len(acquired) < len(parts.program.group_order) - 1
    assert sorted(acquired) == sorted(released)


@pytest.mark.parametrize("layout", ["int8", "int4"])
def test_compressed_layouts_compute_the_linear_and_embedding_nodes(
    encoder: tuple[nn.Module, GraphParts], layout: str
) -> None:
    model, parts = encoder
    groups = resident_groups(parts)
    matmuls = 0
    for weights in groups.values():
        for name, weight in weights.items():
            if len(weight.shape) == 2 and weight.shape[0] > 2 and weight.dtype == torch.float32:
                weights[name] = _quantized(weight.dense(), layout)
                matmuls += 1
    assert matmuls > 36
    compressed = GraphModel(parts.program, parts.graph_json, ResidentWeights(groups), device=CPU)
    inputs = sentence_inputs(4, 16)
    expected = _reference(model, inputs)["sentence_embedding"]
    actual = compressed.run(inputs)["sentence_embedding"]
    assert actual.dtype == torch.float32
    cosine = torch.cosine_similarity(actual, expected).mean()
    assert cosine > (0.998 if layout == "int8" else 0.9)  # round to nearest, random tokens


def _quantized(values: Tensor, layout: str) -> Any:
    """Round to nearest, in the planes of the layout."""
    if layout == "int8":
        scales = (values.abs().amax(1) / 127).bfloat16()
        codes = (values / scales.float()[:, None]).round().clamp(-127, 127).to(torch.int8)
        planes, params = {"codes": codes, "scales": scales}, {}
    else:
        rows = values.unflatten(1, (-1, 32))
        scales = (rows.abs().amax(2) / 7).bfloat16()
        symbols = (rows / scales.float()[:, :, None]).round().clamp(-8, 7) + 8
        codes = symbols.flatten(1).to(torch.uint8)
        planes, params = {"codes": codes, "scales": scales}, {"group": 32, "symmetric": True}
    cls = layouts()[layout]
    return cls.from_planes(planes, tuple(values.shape), values.dtype, params, CPU)


def test_a_convolutional_network_runs() -> None:
    model, exported = cnn()
    parts = program_from_exported(exported, output_names=["probabilities"])
    assert parts.program.group_order[0] == "features.0"
    assert parts.program.group_order[-2:] == ("head", UNUSED_GROUP)  # num_batches_tracked
    assert parts.program.batch_dim_dynamic
    assert parts.program.max_batch_size == 32
    for batch in (1, 2, 7):
        image = torch.randn(batch, 3, 16, 16, generator=torch.Generator().manual_seed(batch))
        actual = loaded(parts).run({"image": image})["probabilities"]
        torch.testing.assert_close(actual, _reference(model, {"image": image}))


def test_a_recommender_runs(small: tuple[nn.Module, GraphParts]) -> None:
    model, parts = small
    inputs = {
        "user": torch.tensor([1, 49, 0]),
        "item": torch.tensor([79, 0, 3]),
        "history": torch.tensor([[1, 0, 0, 0], [0, 0, 0, 0], [5, 6, 7, 8]]),
    }
    actual, expected = loaded(parts).run(inputs), _reference(model, inputs)
    assert actual.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(actual[name], expected[name])
    assert parts.program.max_batch_size == 64
    assert {name: group for name, _, group in parts.tensors}["never_read"] == UNUSED_GROUP


def test_weights_are_described_for_checking(small: tuple[nn.Module, GraphParts]) -> None:
    _, parts = small
    shapes = loaded(parts).expected_weights
    assert shapes["mlp.0"] == {"mlp.0.weight": (16, 24), "mlp.0.bias": (16,)}
    assert shapes["stem"]["items.weight"] == (80, 8)
    assert tuple(shapes) == tuple(g for g in parts.program.group_order if g != UNUSED_GROUP)
    assert parts.tensors[-1][2] == UNUSED_GROUP


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"user": None}, "the inputs are history, item; the program takes user, item, history"),
        ({"more": torch.zeros(1)}, "the inputs are history, item, more, user"),
        ({"user": torch.zeros(2)}, r"'user' is of torch\.float32, the program takes torch\.int64"),
        (
            {"user": torch.zeros(2, 1).long()},
            r"has shape \[2, 1\], the program takes \[-1\]",
        ),
        ({"item": torch.zeros(3).long()}, "dimension 0 of input 'item' is 3, expected 2 as in"),
        (
            {"history": torch.zeros(2, 0).long()},
            "1 of input 'history' is 0, expected 1 to",
        ),
        ({"history": torch.zeros(2, 21).long()}, "is 21, expected 1 to 20"),
        ({"user": torch.tensor([1, 50])}, "index of 1 to 50 lies outside a table of 50 rows"),
        ({"item": torch.tensor([-1, 5])}, "index of -1 to 5 lies outside a table of 80 rows"),
    ],
)
def test_unfit_inputs_are_named(
    small: tuple[nn.Module, GraphParts], change: dict[str, Tensor | None], message: str
) -> None:
    inputs: dict[str, Tensor | None] = {
        "user": torch.tensor([1, 2]),
        "item": torch.tensor([1, 2]),
        "history": torch.zeros(2, 3).long(),
        **change,
    }
    given = {name: tensor for name, tensor in inputs.items() if tensor is not None}
    with pytest.raises(InvalidInputError, match=message):
        loaded(small[1]).run(given)


def test_weights_that_do_not_fit_are_named(small: tuple[nn.Module, GraphParts]) -> None:
    _, parts = small
    inputs = {
        "user": torch.tensor([1]),
        "item": torch.tensor([1]),
        "history": torch.zeros(1, 3).long(),
    }
    dense = layouts()["dense"]

    def run(name: str, values: Tensor | None) -> None:
        groups = resident_groups(parts)
        group = next(g for n, _, g in parts.tensors if n == name)
        groups[group].pop(name)
        if values is not None:
            shape = tuple(values.shape)
            layout = dense.from_planes({"values": values}, shape, values.dtype, {}, CPU)
            groups[group][name] = layout
        weights = RecordingWeights(groups)
        try:
            GraphModel(parts.program, parts.graph_json, weights, device=CPU).run(inputs)
        finally:
            acquired = [group for event, group in weights.events if event == "acquire"]
            released = [group for event, group in weights.events if event == "release"]
            assert sorted(acquired) == sorted(released)

    with pytest.raises(WeightError, match=r"'mlp\.0\.weight' is missing from group 'mlp\.0'"):
        run("mlp.0.weight", None)
    with pytest.raises(WeightError, match=r"\[16, 23\], the graph needs .* \[16, 24\]"):
        run("mlp.0.weight", torch.zeros(16, 23))
    with pytest.raises(WeightError, match=r"is torch.float16 \[16\], the graph needs"):
        run("mlp.0.bias", torch.zeros(16).half())


def test_a_program_of_another_graph_is_refused(small: tuple[nn.Module, GraphParts]) -> None:
    _, (program, graph_json, _) = small
    for other, message in (
        (replace(program, schema_version=(8, 999)), "schema"),
        (replace(program, inputs=program.inputs[:2]), "3 inputs instead of 2"),
        (replace(program, outputs=program.outputs[:1]), "3 outputs instead of 1"),
        (replace(program, outputs=program.outputs[::-1]), "'which' is f32"),
        (replace(program, inputs=(replace(program.inputs[0], dtype="i32"), *program.inputs[1:])),
         "'user' is i64"),
        (replace(program, group_order=("stem",)), "its weights are in groups"),
        (replace(program, inputs=(program.inputs[0], *program.inputs[::2])), "two inputs share"),
    ):  # fmt: skip
        with pytest.raises(UnsupportedProgramError, match=message):
            GraphModel(other, graph_json, ResidentWeights({}), device=CPU)


def test_loading_a_graph_imports_neither_transformers_nor_sympy_expressions() -> None:
    code = (
        "import sys, torch; before = set(sys.modules); import tersor.models.graph; "
        "new = {m.partition('.')[0] for m in set(sys.modules) - before}; "
        "assert not new & {'transformers', 'sympy'}, new; "
        "assert 'torch.export' not in set(sys.modules) - before"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
