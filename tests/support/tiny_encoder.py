"""A tiny text encoder as a graph bundle: embedding, linear, masked mean. No transformers needed."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers, processors
from torch import Tensor, nn

from tersor.bundle.program import TextFrontend
from tersor.bundle.writer import BundleWriter, PlaneData
from tersor.models.export import program_from_exported
from tersor.models.weights import dtype_name

WIDTH = 16
MAX_TOKENS = 12
WORDS = [f"w{i}" for i in range(40)]
SPECIALS = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]
CLS, SEP, UNK = 1, 2, 3


class Encoder(nn.Module):
    """ids, mask, types i64 [batch, tokens] -> vector f32 [batch, WIDTH]."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(len(WORDS) + len(SPECIALS), WIDTH)
        self.types = nn.Embedding(2, WIDTH)
        self.project = nn.Linear(WIDTH, WIDTH)

    def forward(self, ids: Tensor, mask: Tensor, types: Tensor) -> dict[str, Tensor]:
        x = torch.tanh(self.project(self.embedding(ids) + self.types(types)))
        weight = mask.unsqueeze(-1).to(x.dtype)
        return {"vector": (x * weight).sum(1) / weight.sum(1)}


def encoder() -> Encoder:
    """The module, with fixed weights."""
    torch.manual_seed(3)
    return Encoder().eval()


def tokenizer_json() -> bytes:
    """Words w0 … w39, with [CLS] before and [SEP] after every text, and padding in the file."""
    vocabulary = {token: i for i, token in enumerate([*SPECIALS, *WORDS])}
    backend = Backend(models.WordLevel(vocab=vocabulary, unk_token="[UNK]"))
    backend.add_special_tokens(SPECIALS)
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)]
    )
    backend.enable_padding(length=20)
    return backend.to_str().encode()


def write_encoder(path: Path, *, text: bool = True, max_batch_size: int = 8) -> Path:
    """Exports the encoder with dynamic batch and length and writes its bundle."""
    example = torch.ones(2, 5, dtype=torch.int64)
    batch = torch.export.Dim("batch", min=1, max=max_batch_size)
    tokens = torch.export.Dim("tokens", min=2, max=MAX_TOKENS)
    exported = torch.export.export(
        encoder(),
        (example, example.clone(), torch.zeros_like(example)),  # one tensor twice is one input
        dynamic_shapes=[{0: batch, 1: tokens}] * 3,
    )
    frontend = TextFrontend(
        input_ids="ids", attention_mask="mask", token_type_ids="types", max_tokens=MAX_TOKENS
    )
    parts = program_from_exported(exported, text=frontend if text else None)
    with BundleWriter(
        path,
        program=parts.program,
        source={"format": "test"},
        recipe={"name": "lossless"},
    ) as writer:
        for name, values, group in parts.tensors:
            array = values.detach().contiguous().numpy()
            dtype = dtype_name(values.dtype)
            writer.add_tensor(
                name=name,
                group=group,
                shape=tuple(values.shape),
                dtype=dtype,
                layout="dense",
                params={},
                planes={"values": PlaneData(dtype=dtype, array=array)},
            )
        writer.add_asset(parts.program.graph_asset, parts.graph_json, "application/json")
        writer.add_asset("tokenizer.json", tokenizer_json(), "application/json")
        writer.commit()
    return path
