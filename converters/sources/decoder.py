"""A Hugging Face folder of a decoder: its checkpoint tensors become the canonical weights."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tersor.bundle.program import (
    EMBEDDING_GROUP,
    HEAD_GROUP,
    UNUSED_GROUP,
    DecoderProgram,
    layer_group,
)
from tersor.converters.errors import SourceError
from tersor.converters.sources.assets import folder_assets
from tersor.converters.sources.base import Kind, PlannedTensor, Source
from tersor.converters.sources.checkpoint import Checkpoint, CheckpointTensor
from tersor.converters.sources.config import JsonObject
from tersor.converters.sources.families import decoder_program
from tersor.converters.sources.tokens import special_tokens
from tersor.models.weights import dtype_name, torch_dtype

# Buffers that old checkpoints carry; the decoder computes its rotary table from the configuration.
_BUFFERS = re.compile(r"(model\.)?(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")
_HEAD = "lm_head.weight"
_MAX_LISTED = 12


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A canonical weight and the checkpoint tensors stacked into it."""

    name: str
    group: str
    kind: Kind
    parts: tuple[tuple[str, tuple[int, ...]], ...]  # source name, expected shape


class DecoderSource(Source):
    """Llama, Mistral, Qwen2 and Qwen3 folders."""

    program: DecoderProgram

    def __init__(self, folder: Path, config: JsonObject) -> None:
        """Opens the checkpoint and checks every tensor against the configuration.

        Raises:
            SourceError: tensors are missing, unknown or mis-shaped (all are listed), or a file of
                the folder is damaged.
            UnsupportedSourceError: a model this build cannot run.
        """
        tokens = special_tokens(folder, config)
        program = decoder_program(
            config, bos_token_id=tokens.bos_token_id, eos_token_ids=tokens.eos_token_ids
        )
        self.assets = folder_assets(folder)
        self._checkpoint = Checkpoint(folder)
        self.program, tied_alias = _resolve_tie(program, self._checkpoint)
        self.tensors = tuple(_plan(self.program, self._checkpoint, tied_alias, folder))
        self.description = self._describe(config)
        self.files_bytes = self._checkpoint.file_bytes()

    def read(self, tensor: PlannedTensor) -> Tensor:
        return self._checkpoint.stack(tensor.sources, tensor.dtype)

    def _describe(self, config: JsonObject) -> Mapping[str, Any]:
        return {
            "format": "huggingface",
            "model_type": config.string("model_type"),
            "architectures": list(config.strings("architectures")),
            "files_digest": self._checkpoint.digest(),
        }


def _resolve_tie(
    program: DecoderProgram, checkpoint: Checkpoint
) -> tuple[DecoderProgram, tuple[str, ...]]:
    """Tied embeddings whose checkpoint also carries a head: an alias if equal, else not tied."""
    if not program.tie_embeddings or _HEAD not in checkpoint.tensors:
        return program, ()
    embedding = _prefix(checkpoint) + "embed_tokens.weight"
    if embedding not in checkpoint.tensors:
        return program, ()  # reported as missing by the plan
    ours, theirs = checkpoint.tensors[embedding], checkpoint.tensors[_HEAD]
    same_type = (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
    if same_type and _same_bytes(checkpoint.read(embedding), checkpoint.read(_HEAD)):
        return program, (_HEAD,)
    # transformers does the same: two different matrices in the checkpoint outweigh the flag.
    return replace(program, tie_embeddings=False), ()


def _same_bytes(left: Tensor, right: Tensor) -> bool:
    """Bit equality, NaN included."""
    return torch.equal(left.contiguous().view(torch.uint8), right.contiguous().view(torch.uint8))


def _prefix(checkpoint: Checkpoint) -> str:
    """A checkpoint of the bare model (no head on top) has its names without `model.`."""
    return "" if "embed_tokens.weight" in checkpoint.tensors else "model."


def _wanted(program: DecoderProgram, prefix: str) -> Iterator[_Wanted]:
    hidden = program.hidden_size
    vocabulary = (program.vocab_size, hidden)
    yield _Wanted(
        "embedding", EMBEDDING_GROUP, "embedding", ((f"{prefix}embed_tokens.weight", vocabulary),)
    )
    for index in range(program.num_layers):
        yield from _wanted_layer(program, f"{prefix}layers.{index}.", index)
    yield _Wanted("final_norm", HEAD_GROUP, "other", ((f"{prefix}norm.weight", (hidden,)),))
    if not program.tie_embeddings:
        yield _Wanted("head", HEAD_GROUP, "linear", ((_HEAD, vocabulary),))


def _wanted_layer(program: DecoderProgram, source: str, index: int) -> Iterator[_Wanted]:
    """The tensors of one layer in the order in which it reads them."""
    hidden, wide = program.hidden_size, program.intermediate_size
    queries = program.num_heads * program.head_dim
    keys = program.num_kv_heads * program.head_dim
    group = layer_group(index)
    heads = (("q", queries), ("k", keys), ("v", keys))

    def one(name: str, kind: Kind, *parts: tuple[str, tuple[int, ...]]) -> _Wanted:
        stacked = tuple((source + part, shape) for part, shape in parts)
        return _Wanted(f"{group}.{name}", group, kind, stacked)

    yield one("attention_norm", "other", ("input_layernorm.weight", (hidden,)))
    attention = tuple((f"self_attn.{h}_proj.weight", (rows, hidden)) for h, rows in heads)
    yield one("qkv", "linear", *attention)
    if program.qkv_bias:
        yield one("qkv_bias", "other", *((f"self_attn.{h}_proj.bias", (n,)) for h, n in heads))
    if program.qk_norm:
        for name in ("q_norm", "k_norm"):
            yield one(name, "other", (f"self_attn.{name}.weight", (program.head_dim,)))
    yield one("o", "linear", ("self_attn.o_proj.weight", (hidden, queries)))
    if program.o_bias:
        yield one("o_bias", "other", ("self_attn.o_proj.bias", (hidden,)))
    yield one("mlp_norm", "other", ("post_attention_layernorm.weight", (hidden,)))
    both = ("gate", "up")
    yield one("gate_up", "linear", *((f"mlp.{b}_proj.weight", (wide, hidden)) for b in both))
    if program.mlp_bias:
        yield one("gate_up_bias", "other", *((f"mlp.{b}_proj.bias", (wide,)) for b in both))
    yield one("down", "linear", ("mlp.down_proj.weight", (hidden, wide)))
    if program.mlp_bias:
        yield one("down_bias", "other", ("mlp.down_proj.bias", (hidden,)))


def _plan(
    program: DecoderProgram, checkpoint: Checkpoint, tied_alias: tuple[str, ...], folder: Path
) -> Iterator[PlannedTensor]:
    wanted = tuple(_wanted(program, _prefix(checkpoint)))
    used = {name for entry in wanted for name, _shape in entry.parts} | set(tied_alias)
    buffers = [name for name in checkpoint.tensors if _BUFFERS.fullmatch(name)]
    _check_complete(wanted, checkpoint, used | set(buffers), folder)
    for entry in wanted:
        tensors = [checkpoint.tensors[name] for name, _shape in entry.parts]
        rows = sum(tensor.shape[0] for tensor in tensors)
        yield PlannedTensor(
            name=entry.name,
            group=entry.group,
            kind=entry.kind,
            shape=(rows, *tensors[0].shape[1:]),
            dtype=_common_dtype(tensors),
            sources=tuple(tensor.slice() for tensor in tensors),
            aliases=tied_alias if entry.kind == "embedding" else (),
        )
    for name in buffers:
        yield unused_tensor(checkpoint.tensors[name])


def unused_tensor(tensor: CheckpointTensor) -> PlannedTensor:
    """A checkpoint tensor that the program does not read, kept under its own name."""
    return PlannedTensor(
        name=f"{UNUSED_GROUP}.{tensor.name}",
        group=UNUSED_GROUP,
        kind="other",
        shape=tensor.shape,
        dtype=tensor.dtype,
        sources=(tensor.slice(),),
    )


def _common_dtype(tensors: list[CheckpointTensor]) -> str:
    """The narrowest dtype that holds all parts exactly."""
    dtype = torch_dtype(tensors[0].dtype)
    for tensor in tensors[1:]:
        dtype = torch.promote_types(dtype, torch_dtype(tensor.dtype))
    return dtype_name(dtype)


def _check_complete(
    wanted: tuple[_Wanted, ...], checkpoint: Checkpoint, known: set[str], folder: Path
) -> None:
    problems: list[str] = []
    for entry in wanted:
        for name, shape in entry.parts:
            tensor = checkpoint.tensors.get(name)
            if tensor is None:
                problems.append(f"missing {name} {list(shape)}")
            elif tensor.shape != shape:
                problems.append(f"{name} is {list(tensor.shape)}, expected {list(shape)}")
            elif tensor.dtype not in {"bf16", "f16", "f32"}:
                problems.append(f"{name} is {tensor.dtype}, expected bf16, f16 or f32")
    problems += [
        f"unknown {name} {list(tensor.shape)}"
        for name, tensor in checkpoint.tensors.items()
        if name not in known
    ]
    if problems:
        shown = "; ".join(problems[:_MAX_LISTED])
        more = len(problems) - _MAX_LISTED
        rest = f"; and {more} more" if more > 0 else ""
        raise SourceError(
            f"{folder}: the weights do not fit config.json ({len(problems)} tensors): "
            f"{shown}{rest}."
        )
