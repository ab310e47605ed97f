"""Tiny random decoders built with transformers, and their weights under canonical names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from tersor.bundle.program import EMBEDDING_GROUP, HEAD_GROUP, DecoderProgram, RopeScaling
from tersor.kernels.dense import DenseLayout
from tersor.models.weights import ResidentWeights

Groups = dict[str, dict[str, Tensor]]

_SIZES: Mapping[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.25,  # wide, so that logits lie apart and greedy text means something
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "attn_implementation": "eager",
}
_ROPE_LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 5000.0, "factor": 4.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 32,
}  # fmt: skip

# Every feature of the canonical decoder appears in at least one.
TINY: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama-tied-biased": (
        "Llama",
        {
            "tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True, "head_dim": 12,
            "hidden_act": "gelu_pytorch_tanh",
        },
    ),
    "llama-rope-linear": (
        "Llama",
        {"rope_parameters": {"rope_type": "linear", "factor": 2.5, "rope_theta": 10000.0}},
    ),
    "llama-rope-llama3": ("Llama", {"rope_parameters": _ROPE_LLAMA3}),
    "mistral": ("Mistral", {"sliding_window": 7, "head_dim": 16}),
    "mistral-full": ("Mistral", {"sliding_window": None, "num_key_value_heads": 6}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen2-window": (
        "Qwen2",
        {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3", {"head_dim": 16}),
    "qwen3-tied": ("Qwen3", {"head_dim": 4, "tie_word_embeddings": True, "attention_bias": True}),
}  # fmt: skip


def tiny_model(name: str, seed: int = 0) -> Any:
    """One of TINY in float32 on the CPU, randomly initialized, biases and norms included."""
    family, overrides = TINY[name]
    config = getattr(transformers, f"{family}Config")(**{**_SIZES, **overrides})
    torch.manual_seed(seed)
    model = getattr(transformers, f"{family}ForCausalLM")(config).float().eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if (
                parameter.ndim == 1
            ):  # transformers starts them at 0 and 1, which would hide mistakes
                parameter.uniform_(-0.5, 0.5) if "bias" in key else parameter.uniform_(0.5, 1.5)
    return model


def pretrained(folder: Path) -> Any:
    """A decoder folder in float32 on the CPU."""
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def canonical_program(model: Any) -> DecoderProgram:
    """The canonical configuration of a transformers decoder."""
    config = model.config
    state = model.state_dict()
    rope = config.rope_parameters
    scaling = None
    if rope["rope_type"] == "linear":
        scaling = RopeScaling(kind="linear", factor=rope["factor"])
    elif rope["rope_type"] == "llama3":
        scaling = RopeScaling(
            kind="llama3",
            factor=rope["factor"],
            low_freq_factor=rope["low_freq_factor"],
            high_freq_factor=rope["high_freq_factor"],
            original_max_context=rope["original_max_position_embeddings"],
        )
    heads = config.num_attention_heads
    return DecoderProgram(
        family=config.model_type,
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_layers=config.num_hidden_layers,
        num_heads=heads,
        num_kv_heads=config.num_key_value_heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        max_context=config.max_position_embeddings,
        norm_eps=config.rms_norm_eps,
        rope_theta=rope["rope_theta"],
        rope_scaling=scaling,
        activation="gelu_tanh" if "tanh" in config.hidden_act else config.hidden_act,
        qkv_bias="model.layers.0.self_attn.q_proj.bias" in state,
        o_bias="model.layers.0.self_attn.o_proj.bias" in state,
        mlp_bias="model.layers.0.mlp.up_proj.bias" in state,
        qk_norm="model.layers.0.self_attn.q_norm.weight" in state,
        tie_embeddings=config.tie_word_embeddings,
        windows=_windows(config),
        bos_token_id=config.bos_token_id,
        eos_token_ids=(config.eos_token_id,),
    )


def canonical_tensors(model: Any) -> Groups:
    """Group -> canonical name -> tensor, q/k/v and gate/up fused."""
    state: dict[str, Tensor] = model.state_dict()
    groups: Groups = {EMBEDDING_GROUP: {"embedding": state["model.embed_tokens.weight"]}}
    for index in range(model.config.num_hidden_layers):
        groups[f"layers.{index}"] = _layer(state, index)
    groups[HEAD_GROUP] = {"final_norm": state["model.norm.weight"]}
    if not model.config.tie_word_embeddings:
        groups[HEAD_GROUP]["head"] = state["lm_head.weight"]
    return groups


def resident(groups: Groups) -> ResidentWeights:
    """All tensors in the `dense` layout, in their own dtype."""
    return ResidentWeights(
        {
            group: {name: DenseLayout(tensor.detach().clone()) for name, tensor in tensors.items()}
            for group, tensors in groups.items()
        }
    )


def _layer(state: Mapping[str, Tensor], index: int) -> dict[str, Tensor]:
    source, target = f"model.layers.{index}", f"layers.{index}"
    parts = {
        "attention_norm": ("input_layernorm.weight",),
        "qkv": tuple(f"self_attn.{x}_proj.weight" for x in "qkv"),
        "qkv_bias": tuple(f"self_attn.{x}_proj.bias" for x in "qkv"),
        "q_norm": ("self_attn.q_norm.weight",),
        "k_norm": ("self_attn.k_norm.weight",),
        "o": ("self_attn.o_proj.weight",),
        "o_bias": ("self_attn.o_proj.bias",),
        "mlp_norm": ("post_attention_layernorm.weight",),
        "gate_up": ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
        "gate_up_bias": ("mlp.gate_proj.bias", "mlp.up_proj.bias"),
        "down": ("mlp.down_proj.weight",),
        "down_bias": ("mlp.down_proj.bias",),
    }
    return {
        f"{target}.{name}": torch.cat([state[f"{source}.{part}"] for part in sources])
        for name, sources in parts.items()
        if f"{source}.{sources[0]}" in state
    }


def _windows(config: Any) -> tuple[int | None, ...]:
    window = getattr(config, "sliding_window", None)
    if window is None:
        return ()
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * config.num_hidden_layers
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)
