"""What the exporter makes of unusual programs, and which ones it refuses."""

from __future__ import annotations

import io
import json
import zipfile
from collections import OrderedDict
from typing import Any

import pytest
import torch
from tiny_graphs import cnn, loaded, recommender
from torch import Tensor, nn
from torch.export import Dim, export
from transformers.modeling_outputs import BaseModelOutput

from tersor.bundle.program import UNUSED_GROUP
from tersor.models.errors import UnsupportedProgramError
from tersor.models.export import GraphParts, program_from_exported, program_from_saved


def _reference(model: nn.Module, inputs: dict[str, Tensor]) -> Any:
    with torch.inference_mode():
        return model(**inputs)


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


def test_ordered_dict_outputs_keep_their_names() -> None:
    class Ordered(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return OrderedDict(z=x + 1, a=x * 2)

    parts = _rows(Ordered(), torch.randn(2, 3))
    assert [spec.name for spec in parts.program.outputs] == ["z", "a"]
