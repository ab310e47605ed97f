"""Small exported programs of different kinds, and the weights of one as resident layouts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export

from tersor.kernels.dense import DenseLayout
from tersor.models.contracts import GroupWeights, WeightSource
from tersor.models.export import GraphParts
from tersor.models.graph import GraphModel
from tersor.models.weights import ResidentWeights

CPU = torch.device("cpu")


class Cnn(nn.Module):
    """Convolutions, batch norm, an in-place activation, pooling: what image models are made of."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True),
            nn.MaxPool2d(2), nn.Conv2d(8, 12, 3, stride=2, groups=2), nn.BatchNorm2d(12), nn.SiLU(),
        )  # fmt: skip
        self.head = nn.Linear(12, 5)

    def forward(self, image: Tensor) -> Tensor:
        x = self.features(image).mean((2, 3))
        x += 0.5
        probabilities: Tensor = self.head(x).softmax(-1)
        return probabilities


class Recommender(nn.Module):
    """Two embedding tables, history pooling, a constant, and two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.users = nn.Embedding(50, 8)
        self.items = nn.Embedding(80, 8, padding_idx=0)
        self.mlp = nn.Sequential(nn.Linear(24, 16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 2))
        self.register_buffer("scale", torch.linspace(0.5, 1.5, 8), persistent=False)
        self.never_read = nn.Parameter(torch.arange(4.0))

    def forward(self, user: Tensor, item: Tensor, history: Tensor) -> dict[str, Tensor]:
        mask = (history > 0).unsqueeze(-1).float()
        pooled = (self.items(history) * mask).sum(1) / mask.sum(1).clamp(min=1.0)
        features = torch.cat((self.users(user) * self.scale, self.items(item), pooled), -1)
        scores = self.mlp(features)
        best, which = scores.max(-1)
        return {"scores": scores, "best": best + torch.tensor(1.0), "which": which}


class SentenceEncoder(nn.Module):
    """A transformers encoder with mean pooling, in plain tensors."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor
    ) -> dict[str, Tensor]:
        states = self.model(
            input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids
        ).last_hidden_state
        kept = attention_mask.unsqueeze(-1).to(states.dtype)
        pooled = (states * kept).sum(1) / kept.sum(1).clamp(min=1e-9)
        return {"last_hidden_state": states, "sentence_embedding": F.normalize(pooled, dim=-1)}


def cnn() -> tuple[nn.Module, ExportedProgram]:
    torch.manual_seed(0)
    model = Cnn()
    for _ in range(3):
        model(torch.randn(4, 3, 16, 16))  # batch norm statistics unlike their start
    model.eval()
    shapes = {"image": {0: Dim("batch", min=1, max=32)}}
    return model, export(model, (torch.randn(2, 3, 16, 16),), dynamic_shapes=shapes)


def recommender() -> tuple[nn.Module, ExportedProgram]:
    torch.manual_seed(1)
    model = Recommender().eval()
    batch, length = Dim("batch"), Dim("length", min=1, max=20)
    inputs = (torch.tensor([3, 7]), torch.tensor([5, 9]), torch.tensor([[1, 2, 0], [4, 0, 0]]))
    shapes = {"user": {0: batch}, "item": {0: batch}, "history": {0: batch, 1: length}}
    return model, export(model, inputs, dynamic_shapes=shapes)


def sentence_encoder(folder: Path) -> tuple[nn.Module, ExportedProgram]:
    """The real MiniLM, batch and sequence dynamic."""
    inner = transformers.AutoModel.from_pretrained(folder, attn_implementation="sdpa")
    model = SentenceEncoder(inner).eval()
    batch, sequence = Dim("batch", min=1, max=256), Dim("sequence", min=1, max=512)
    inputs = sentence_inputs(2, 9)
    shapes = {name: {0: batch, 1: sequence} for name in inputs}
    return model, export(model, (), inputs, dynamic_shapes=shapes, strict=False)


def sentence_inputs(batch: int, sequence: int) -> dict[str, Tensor]:
    """Random tokens; the first row is half padding."""
    generator = torch.Generator().manual_seed(batch * 1000 + sequence)
    ids = torch.randint(5, 2000, (batch, sequence), generator=generator)
    mask = torch.ones_like(ids)
    mask[0, (sequence + 1) // 2 :] = 0
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}


def resident_groups(parts: GraphParts) -> dict[str, dict[str, Any]]:
    """Group -> name -> weight in the `dense` layout."""
    groups: dict[str, dict[str, Any]] = {}
    for name, tensor, group in parts.tensors:
        groups.setdefault(group, {})[name] = DenseLayout(tensor)
    return groups


def loaded(parts: GraphParts) -> GraphModel:
    """The program with all its weights resident."""
    weights = ResidentWeights(resident_groups(parts))
    return GraphModel(parts.program, parts.graph_json, weights, device=CPU)


class RecordingWeights(WeightSource):
    """Writes down when each group is acquired and released."""

    def __init__(self, groups: Mapping[str, GroupWeights]) -> None:
        self._groups = groups
        self.events: list[tuple[str, str]] = []

    @contextmanager
    def acquire(self, group: str) -> Iterator[GroupWeights]:
        self.events.append(("acquire", group))
        try:
            yield self._groups[group]
        finally:
            self.events.append(("release", group))
