"""Exported programs of several kinds run as their modules do, on layouts, group by group."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import zipfile
from collections import OrderedDict
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
from torch.export import Dim, export
from transformers.modeling_outputs import BaseModelOutput

from tersor.bundle.program import UNUSED_GROUP
from tersor.kernels.layout import layouts
from tersor.models.errors import (
    InvalidInputError,
    UnsupportedProgramError,
    WeightError,
)
from tersor.models.export import GraphParts, program_from_exported, program_from_saved
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


class _MixesRows(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0, keepdim=True)


class _Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 6)
        self.out = nn.Linear(6, 11, bias=False)
        self.out.weight = self.table.weight

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        return self.out(self.table(ids)), self.table.weight


class _Counts(nn.Module):
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        return x + self.count


class _Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTM(4, 5, batch_first=True, bidirectional=True)

    def forward(self, x: Tensor) -> Tensor:
        states: Tensor = self.cell(x)[0]
        first, second = states.chunk(2, -1)
        return first.masked_fill(second > 0, float("-inf"))


class _Output(nn.Module):
    def forward(self, x: Tensor) -> BaseModelOutput:
        return BaseModelOutput(last_hidden_state=x + 1)


class _Random(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.rand_like(x)


def _rows(module: nn.Module, example: Tensor) -> GraphParts:
    return program_from_exported(
        export(module.eval(), (example,), dynamic_shapes=({0: Dim("batch", min=1, max=8)},))
    )


def test_a_program_that_mixes_rows_is_not_batched() -> None:
    parts = _rows(_MixesRows(), torch.randn(3, 4))
    assert not parts.program.batch_dim_dynamic
    assert parts.program.max_batch_size == 1
    x = torch.randn(2, 4)
    torch.testing.assert_close(loaded(parts).run({"x": x})["output"], x - x.mean(0))


def test_tied_weights_become_one_and_may_be_returned() -> None:
    torch.manual_seed(2)
    model = _Tied()
    parts = _rows(model, torch.tensor([[1, 2], [3, 4]]))
    used = [name for name, _, group in parts.tensors if group != UNUSED_GROUP]
    assert used == ["table.weight"]
    ids = torch.tensor([[10, 0]])
    actual = loaded(parts).run({"ids": ids})
    torch.testing.assert_close(actual["output_0"], _reference(model, {"ids": ids})[0])
    torch.testing.assert_close(actual["output_1"], model.table.weight.detach())
    assert not parts.program.batch_dim_dynamic


# nn.LSTM keeps its weights in a list that torch.export warns about and then ignores.
@pytest.mark.filterwarnings("ignore:The tensor attributes self.cell._flat_weights")
def test_a_recurrent_network_runs() -> None:
    torch.manual_seed(3)
    model = _Recurrent()
    parts = _rows(model, torch.randn(2, 6, 4))
    x = torch.randn(3, 6, 4)
    torch.testing.assert_close(loaded(parts).run({"x": x})["output"], _reference(model, {"x": x}))


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (_Counts(), "an output of kind 'buffer_mutation' is not supported"),
        (_Output(), "the program returns BaseModelOutput; wrap the module"),
        (_Random(), r"'torch\.ops\.aten\.rand_like\.default', which is not on the list"),
    ],
)
def test_programs_that_cannot_be_served_are_refused_at_export(
    module: nn.Module, message: str
) -> None:
    with pytest.raises(UnsupportedProgramError, match=message):
        _rows(module, torch.randn(2, 3))


def test_training_mode_is_refused() -> None:
    dropout = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5)).train()
    exported = export(dropout, (torch.randn(2, 3),))
    with pytest.raises(UnsupportedProgramError, match="not on the list"):
        program_from_exported(exported)


def test_wrong_output_names_are_refused() -> None:
    _, exported = cnn()
    with pytest.raises(UnsupportedProgramError, match="returns 1 tensors, got 2 names"):
        program_from_exported(exported, output_names=["a", "b"])


# torch 2.13 uses an interface in run_decompositions that it deprecates itself.
@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")
def test_a_saved_program_needs_no_example_to_be_batched() -> None:
    _, exported = recommender()
    parts = program_from_exported(exported)
    file = io.BytesIO()
    torch.export.save(exported.run_decompositions({}), file)
    with zipfile.ZipFile(file) as archive:
        saved = json.loads(archive.read("archive/models/model.json"))
    weights = {name: values for name, values, _ in parts.tensors}
    again = program_from_saved(saved, weights, output_names=["scores", "best", "which"])
    assert again.graph_json == parts.graph_json
    assert again.program == parts.program


def test_export_is_deterministic() -> None:
    def parts() -> GraphParts:
        torch.manual_seed(4)
        return program_from_exported(recommender()[1])

    first, second = parts(), parts()
    assert first.graph_json == second.graph_json
    assert first.program == second.program


def test_loading_a_graph_imports_neither_transformers_nor_sympy_expressions() -> None:
    code = (
        "import sys, torch; before = set(sys.modules); import tersor.models.graph; "
        "new = {m.partition('.')[0] for m in set(sys.modules) - before}; "
        "assert not new & {'transformers', 'sympy'}, new; "
        "assert 'torch.export' not in set(sys.modules) - before"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_ordered_dict_outputs_keep_their_names() -> None:
    class Ordered(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return OrderedDict(z=x + 1, a=x * 2)

    parts = _rows(Ordered(), torch.randn(2, 3))
    assert [spec.name for spec in parts.program.outputs] == ["z", "a"]
