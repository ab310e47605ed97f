"""Tiny random decoders as Hugging Face folders, saved by transformers.

Sizes are odd on purpose (head_dim unlike hidden/heads, groups that do not divide rows), the weights
are seeded, and the norms and biases are random too, so that a forgotten one changes the output.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

VOCAB_SIZE = 300  # 256 bytes, one special token, and ids that no text uses


@dataclass(frozen=True, kw_only=True)
class TinyDecoder:
    """A family and what is special about it."""

    family: str  # "Llama", "Mistral", "Qwen2", "Qwen3": the prefix of transformers' classes
    settings: dict[str, Any] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32
    seed: int = 0


_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 48,
    "intermediate_size": 72,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 256,
    "eos_token_id": 256,
    "tie_word_embeddings": False,
}

TINY_DECODERS: dict[str, TinyDecoder] = {
    "llama": TinyDecoder(family="Llama"),
    "llama-biases": TinyDecoder(
        family="Llama",
        settings={"attention_bias": True, "mlp_bias": True, "head_dim": 20, "hidden_act": "gelu"},
    ),
    "llama-scaled": TinyDecoder(
        family="Llama",
        settings={
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 5000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            }
        },
    ),
    "mistral-window": TinyDecoder(
        family="Mistral", settings={"sliding_window": 5, "head_dim": 16, "num_key_value_heads": 1}
    ),
    "qwen2-tied": TinyDecoder(family="Qwen2", settings={"tie_word_embeddings": True}),
    "qwen2-window": TinyDecoder(
        family="Qwen2",
        settings={"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1},
    ),
    "qwen3": TinyDecoder(family="Qwen3", settings={"head_dim": 24}),
    "qwen3-tied": TinyDecoder(
        family="Qwen3", settings={"head_dim": 16, "tie_word_embeddings": True}
    ),
}


def save_tiny_decoder(folder: Path, name: str, *, shard_size: str = "1GB") -> Any:
    """Saves the model called `name` with a byte tokenizer; returns transformers' model."""
    import transformers

    tiny = TINY_DECODERS[name]
    config = getattr(transformers, f"{tiny.family}Config")(**{**_COMMON, **tiny.settings})
    torch.manual_seed(tiny.seed)
    model = getattr(transformers, f"{tiny.family}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            wide = (
                parameter.dim() > 1
            )  # spread logits far enough apart that no argmax is a near tie
            parameter.copy_(torch.randn_like(parameter) * (0.15 if wide else 0.3) + (not wide))
    model.to(tiny.dtype).save_pretrained(folder, max_shard_size=shard_size)
    save_byte_tokenizer(folder)
    return model


def save_byte_tokenizer(folder: Path) -> None:
    """A tokenizer with a token per byte and `<|end|>` as token 256."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(BPE({symbol: index for index, symbol in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|end|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"bos_token": "<|end|>", "eos_token": "<|end|>", "add_bos_token": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")
