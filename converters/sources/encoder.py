"""A Hugging Face folder of a BERT encoder: traced into a graph, weights straight from its files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tersor.bundle.program import UNUSED_GROUP, GraphProgram, TextFrontend
from tersor.converters.errors import ConvertError, SourceError, UnsupportedSourceError
from tersor.converters.sources.assets import folder_assets
from tersor.converters.sources.base import PlannedTensor, Source, SourceAsset
from tersor.converters.sources.checkpoint import Checkpoint
from tersor.converters.sources.config import JsonObject
from tersor.converters.sources.decoder import unused_tensor
from tersor.converters.sources.graphs import ExportedGraph, trace
from tersor.models.weights import torch_dtype

Pooling = Literal["mean", "cls"]

_MAX_BATCH = 256
_PREFIXES = ("", "bert.", "model.")  # bare encoder, with a head on top, re-saved
# Names of the layer norms in checkpoints that were converted from TensorFlow.
_LEGACY = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sentence:
    """How token states become one vector, as sentence-transformers' modules say."""

    pooling: Pooling
    normalize: bool


class _Encoder(nn.Module):
    """Plain tensors in, a dict of tensors out: nothing of transformers stays in the signature."""

    def __init__(self, model: nn.Module, sentence: _Sentence | None) -> None:
        super().__init__()
        self.model = model
        self.sentence = sentence

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> dict[str, Tensor]:
        states = self.model(
            input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids
        ).last_hidden_state  # [batch, sequence, hidden]
        outputs = {"last_hidden_state": states}
        if self.sentence is not None:
            vector = _pool(states, attention_mask, self.sentence.pooling)
            if self.sentence.normalize:
                vector = F.normalize(vector, dim=-1)
            outputs["sentence_embedding"] = vector  # [batch, hidden]
        return outputs


def _pool(states: Tensor, mask: Tensor, pooling: Pooling) -> Tensor:
    if pooling == "cls":
        return states[:, 0]
    weights = mask.unsqueeze(-1).to(states.dtype)
    return (states * weights).sum(1) / weights.sum(1).clamp(min=1e-9)


class EncoderSource(Source):
    """BERT folders, with or without the modules of sentence-transformers."""

    program: GraphProgram

    def __init__(self, folder: Path, config: JsonObject) -> None:
        """Traces the model and opens the checkpoint.

        Raises:
            SourceError: tensors are missing or mis-shaped (all are listed), or a file is damaged.
            UnsupportedSourceError: a feature this build cannot trace.
            ConvertError: transformers is not installed.
        """
        sentence = _sentence(folder)
        self._checkpoint = Checkpoint(folder)
        encoder = _Encoder(_model(config, _float_dtype(self._checkpoint, folder)), sentence)
        parameters = frozenset(name for name, _ in encoder.named_parameters())
        graph = _trace(encoder, config)
        self.tensors = tuple(_plan(graph, parameters, self._checkpoint, folder))
        self.program = replace(
            graph.program,
            text=_frontend(folder, config),
            group_order=tuple(dict.fromkeys(tensor.group for tensor in self.tensors)),
        )
        self._constants = {
            tensor.name: tensor.value
            for tensor in graph.tensors
            if tensor.name not in parameters and tensor.group != UNUSED_GROUP
        }
        graph_asset = SourceAsset(
            name=graph.program.graph_asset, media_type="application/json", data=graph.graph_json
        )
        self.assets = (*folder_assets(folder), graph_asset)
        self.description = {
            "format": "huggingface",
            "model_type": config.string("model_type"),
            "architectures": list(config.strings("architectures")),
            "files_digest": self._checkpoint.digest(),
        }
        self.files_bytes = self._checkpoint.file_bytes()

    def read(self, tensor: PlannedTensor) -> Tensor:
        if not tensor.sources:
            return self._constants[tensor.name].clone()
        return self._checkpoint.stack(tensor.sources, tensor.dtype)


def _model(config: JsonObject, dtype: torch.dtype) -> nn.Module:
    """A model of this configuration with any weights: only its graph is of interest."""
    try:
        from transformers import BertConfig, BertModel
    except ImportError as error:
        raise ConvertError(
            "converting an encoder folder needs transformers; install tersor[convert]."
        ) from error
    if config.string("position_embedding_type", "absolute") != "absolute":
        raise UnsupportedSourceError(
            f"{config.path}: position_embedding_type {config.get('position_embedding_type')!r} "
            "is not supported; only absolute is."
        )
    if config.boolean("is_decoder", False):
        raise UnsupportedSourceError(f"{config.path}: a BERT decoder is not supported.")
    sizes = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
    for key in (*sizes, "intermediate_size", "max_position_embeddings"):
        config.integer(key)
    if config.integer("hidden_size") % config.integer("num_attention_heads"):
        raise SourceError(
            f"{config.path}: hidden_size {config.integer('hidden_size')} is not a multiple of "
            f"num_attention_heads {config.integer('num_attention_heads')}."
        )
    settings = BertConfig.from_json_file(str(config.path))
    settings._attn_implementation = "sdpa"  # noqa: SLF001 - the only way to choose it without weights
    model: nn.Module = BertModel(settings, add_pooling_layer=False)
    return model.eval().to(dtype)


def _trace(encoder: _Encoder, config: JsonObject) -> ExportedGraph:
    longest = config.integer("max_position_embeddings")
    dynamic = {0: ("batch", _MAX_BATCH), 1: ("sequence", longest)}
    return trace(encoder, _inputs(config), dynamic=dynamic)


def _inputs(config: JsonObject) -> Mapping[str, Tensor]:
    # Sizes unlike each other and unlike 1, so that no dimension is mistaken for a constant.
    ones = torch.ones((2, 7), dtype=torch.int64)
    inputs = {"input_ids": ones, "attention_mask": ones.clone()}
    if config.integer("type_vocab_size", 2) > 1:
        inputs["token_type_ids"] = torch.zeros_like(ones)
    return inputs


def _float_dtype(checkpoint: Checkpoint, folder: Path) -> torch.dtype:
    """The one floating dtype of the checkpoint."""
    names = {tensor.dtype for tensor in checkpoint.tensors.values()} & {"bf16", "f16", "f32"}
    if len(names) != 1:
        raise UnsupportedSourceError(
            f"{folder}: the weights are of {', '.join(sorted(names)) or 'no floating dtype'}; "
            "expected all of them to be bf16, all f16 or all f32."
        )
    return torch_dtype(names.pop())


def _sentence(folder: Path) -> _Sentence | None:
    """What `1_Pooling` and `modules.json` say; None for an encoder without them."""
    path = folder / "1_Pooling" / "config.json"
    if not path.is_file():
        return None
    settings = JsonObject.load(path)
    prefix = "pooling_mode_"
    keys = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "lasttoken")
    modes = [key for key in keys if settings.boolean(prefix + key, False)]
    known: Mapping[str, Pooling] = {"mean_tokens": "mean", "cls_token": "cls"}
    if len(modes) != 1 or modes[0] not in known:
        raise UnsupportedSourceError(
            f"{path}: pooling by {', '.join(modes) or 'nothing'} is not supported; "
            "supported are mean_tokens, cls_token."
        )
    normalize = _has_normalize(folder)
    return _Sentence(pooling=known[modes[0]], normalize=normalize)


def _has_normalize(folder: Path) -> bool:
    path = folder / "modules.json"
    if not path.is_file():
        return True
    kinds = [module.string("type").rsplit(".", 1)[-1] for module in JsonObject.load_list(path)]
    foreign = [kind for kind in kinds if kind not in {"Transformer", "Pooling", "Normalize"}]
    if foreign:
        raise UnsupportedSourceError(
            f"{path}: module {foreign[0]!r} is not supported; "
            "supported are Transformer, Pooling, Normalize."
        )
    return "Normalize" in kinds


def _frontend(folder: Path, config: JsonObject) -> TextFrontend | None:
    """How text becomes the graph's inputs; None without a tokenizer."""
    if not (folder / "tokenizer.json").is_file():
        return None
    max_tokens = config.integer("max_position_embeddings")
    limits = folder / "sentence_bert_config.json"
    if limits.is_file():
        settings = JsonObject.load(limits)
        max_tokens = min(max_tokens, settings.integer("max_seq_length", max_tokens))
    types = config.integer("type_vocab_size", 2) > 1
    return TextFrontend(
        input_ids="input_ids",
        attention_mask="attention_mask",
        token_type_ids="token_type_ids" if types else None,
        max_tokens=max_tokens,
    )


def _plan(
    graph: ExportedGraph, parameters: frozenset[str], checkpoint: Checkpoint, folder: Path
) -> Sequence[PlannedTensor]:
    """Every weight of the graph from the checkpoint; constants it lacks from the trace."""
    prefix = _checkpoint_prefix(parameters, checkpoint)
    planned: list[PlannedTensor] = []
    problems: list[str] = []
    used: set[str] = set()
    for tensor in graph.tensors:
        if tensor.group == UNUSED_GROUP:
            continue  # of the trace's own making: those of the checkpoint follow below
        source = _source_name(tensor.name, prefix, checkpoint)
        found = checkpoint.tensors.get(source)
        shape = tuple(tensor.value.shape)
        if found is not None and found.shape == shape:
            used.add(source)
            planned.append(tensor.planned(found.slice()))
        elif tensor.name not in parameters:
            planned.append(tensor.planned())
        elif found is None:
            problems.append(f"missing {source} {list(shape)}")
        else:
            problems.append(f"{source} is {list(found.shape)}, expected {list(shape)}")
    if problems:
        raise SourceError(
            f"{folder}: the weights do not fit config.json ({len(problems)} tensors): "
            f"{'; '.join(problems[:12])}."
        )
    # Heads, poolers and buffers that this program does not read: kept, so that nothing is lost.
    unused = [unused_tensor(t) for name, t in checkpoint.tensors.items() if name not in used]
    return [*planned, *unused]


def _checkpoint_prefix(parameters: frozenset[str], checkpoint: Checkpoint) -> str:
    names = [name.removeprefix("model.") for name in sorted(parameters)]
    found = {p: sum(p + name in checkpoint.tensors for name in names) for p in _PREFIXES}
    return max(_PREFIXES, key=lambda prefix: found[prefix])


def _source_name(name: str, prefix: str, checkpoint: Checkpoint) -> str:
    source = prefix + name.removeprefix("model.")
    if source in checkpoint.tensors:
        return source
    for ours, theirs in _LEGACY.items():
        if source.endswith(ours) and source.removesuffix(ours) + theirs in checkpoint.tensors:
            return source.removesuffix(ours) + theirs
    return source
