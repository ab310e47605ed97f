"""How a bundle runs: the two kinds of program, as frozen metadata.

A `decoder` is an autoregressive language model described by one canonical configuration; a `graph`
is any `torch.export` program. Weight names of the canonical decoder (shapes in row-major order):

    embedding                 [vocab_size, hidden_size]
    layers.{i}.attention_norm [hidden_size]
    layers.{i}.qkv            [(num_heads + 2 * num_kv_heads) * head_dim, hidden_size]  q, k, v rows
    layers.{i}.qkv_bias       [(num_heads + 2 * num_kv_heads) * head_dim]                if qkv_bias
    layers.{i}.q_norm, k_norm [head_dim]                                                 if qk_norm
    layers.{i}.o              [hidden_size, num_heads * head_dim]
    layers.{i}.o_bias         [hidden_size]                                              if o_bias
    layers.{i}.mlp_norm       [hidden_size]
    layers.{i}.gate_up        [2 * intermediate_size, hidden_size]                     gate, up rows
    layers.{i}.gate_up_bias   [2 * intermediate_size]                                    if mlp_bias
    layers.{i}.down           [hidden_size, intermediate_size]
    layers.{i}.down_bias      [hidden_size]                                              if mlp_bias
    final_norm                [hidden_size]
    head                      [vocab_size, hidden_size]                      unless tie_embeddings

Groups in execution order: `embedding`, `layers.0` … `layers.{n-1}`, `head` (final_norm and head).
A bundle of either kind may end with the group `unused`: tensors of the source that its program
never reads (buffers, a pooler), kept so that the source can be given back whole. It is never loaded
to run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

EMBEDDING_GROUP = "embedding"
HEAD_GROUP = "head"
UNUSED_GROUP = "unused"


def layer_group(index: int) -> str:
    """Name of the group that holds decoder layer `index`."""
    return f"layers.{index}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeScaling:
    """Frequency scaling of the rotary embedding (`linear`, or `llama3` with its four numbers)."""

    kind: Literal["linear", "llama3"]
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_context: int = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderProgram:
    """Canonical configuration of a decoder; every supported family maps onto it."""

    family: str  # source architecture, for people: "llama", "mistral", "qwen2", "qwen3"
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_context: int  # tokens, prompt and continuation together
    norm_eps: float
    rope_theta: float
    rope_scaling: RopeScaling | None = None
    activation: Literal["silu", "gelu", "gelu_tanh"] = "silu"
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    tie_embeddings: bool = False
    windows: tuple[int | None, ...] = ()  # per layer: sliding window in tokens; None or () = full
    bos_token_id: int | None = None  # prepended to every prompt when set
    eos_token_ids: tuple[int, ...] = ()

    def window(self, layer: int) -> int | None:
        """Sliding window of `layer` in tokens (a token sees itself and window-1 before it)."""
        return self.windows[layer] if self.windows else None

    @property
    def groups(self) -> tuple[str, ...]:
        """All group names in execution order."""
        layers = tuple(layer_group(i) for i in range(self.num_layers))
        return (EMBEDDING_GROUP, *layers, HEAD_GROUP)


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """One input or output of a graph. `shape` has -1 where a dimension is dynamic."""

    name: str
    dtype: str  # plane dtype name, see manifest.DTYPES
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TextFrontend:
    """How a `text` input becomes a graph's tensors: by tokenizer.json, padded per batch."""

    input_ids: str
    attention_mask: str | None = None
    token_type_ids: str | None = None
    max_tokens: int = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphProgram:
    """An exported program: its JSON is the asset `graph_asset`, its weights are the tensors."""

    graph_asset: str
    schema_version: tuple[int, int]  # of the torch.export JSON
    torch_version: str  # that wrote it
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    group_order: tuple[str, ...] = ()  # execution order of the bundle's groups
    batch_dim_dynamic: bool = False  # dimension 0 of every input and output is the batch
    max_batch_size: int = 1
    text: TextFrontend | None = None


Program = DecoderProgram | GraphProgram
