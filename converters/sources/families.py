"""Maps the `config.json` of a supported family onto the canonical decoder configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from tersor.bundle.program import DecoderProgram, RopeScaling
from tersor.converters.errors import SourceError, UnsupportedSourceError
from tersor.converters.sources.config import JsonObject

_ACTIVATIONS: Mapping[str, Literal["silu", "gelu", "gelu_tanh"]] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """What distinguishes one architecture from the canonical decoder's defaults."""

    architecture: str
    biases: Callable[[JsonObject], tuple[bool, bool, bool]]  # qkv, o, mlp
    windows: Callable[[JsonObject, int], tuple[int | None, ...]]
    qk_norm: bool = False
    default_head_dim: int | None = None  # None: hidden_size / num_attention_heads
    default_rope_theta: float | None = None  # None: the configuration has to say


def decoder_program(
    config: JsonObject, *, bos_token_id: int | None, eos_token_ids: tuple[int, ...]
) -> DecoderProgram:
    """The canonical configuration of a decoder folder.

    Raises:
        UnsupportedSourceError: another architecture, or a feature this decoder does not have.
        SourceError: a key is missing, has a wrong type, or contradicts another.
    """
    model_type = config.string("model_type")
    family = _family(config, model_type)
    hidden_size, num_heads = config.integer("hidden_size"), config.integer("num_attention_heads")
    num_layers = config.integer("num_hidden_layers", high=10_000)
    num_kv_heads = config.integer("num_key_value_heads", num_heads)
    if num_heads % num_kv_heads:
        raise SourceError(
            f"{config.path}: num_attention_heads {num_heads} is not a multiple of "
            f"num_key_value_heads {num_kv_heads}."
        )
    qkv_bias, o_bias, mlp_bias = family.biases(config)
    theta, scaling = _rope(config, family)
    return DecoderProgram(
        family=model_type,
        vocab_size=config.integer("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=config.integer("intermediate_size"),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=_head_dim(config, family, hidden_size, num_heads),
        max_context=config.integer("max_position_embeddings"),
        norm_eps=config.number("rms_norm_eps"),
        rope_theta=theta,
        rope_scaling=scaling,
        activation=_activation(config),
        qkv_bias=qkv_bias,
        o_bias=o_bias,
        mlp_bias=mlp_bias,
        qk_norm=family.qk_norm,
        tie_embeddings=config.boolean("tie_word_embeddings", False),
        windows=_windows(family, config, num_layers),
        bos_token_id=bos_token_id,
        eos_token_ids=eos_token_ids,
    )


def _family(config: JsonObject, model_type: str) -> Family:
    if model_type not in FAMILIES:
        supported = ", ".join((*FAMILIES, "bert"))
        raise UnsupportedSourceError(
            f"{config.path}: model_type {model_type!r} is not supported; supported are {supported}."
        )
    family = FAMILIES[model_type]
    known = (f"{family.architecture}ForCausalLM", f"{family.architecture}Model")
    foreign = [name for name in config.strings("architectures") if name not in known]
    if foreign:
        raise UnsupportedSourceError(
            f"{config.path}: architecture {foreign[0]!r} is not supported; "
            f"expected {known[0]} for model_type {model_type!r}."
        )
    if "quantization_config" in config:
        raise UnsupportedSourceError(
            f"{config.path}: the checkpoint is already quantized (quantization_config); "
            "convert the original full-precision checkpoint instead."
        )
    return family


def _head_dim(config: JsonObject, family: Family, hidden_size: int, num_heads: int) -> int:
    if "head_dim" in config or family.default_head_dim is not None:
        head_dim = config.integer("head_dim", family.default_head_dim)
    elif hidden_size % num_heads:
        raise SourceError(
            f"{config.path}: hidden_size {hidden_size} is not a multiple of num_attention_heads "
            f"{num_heads}, and there is no head_dim."
        )
    else:
        head_dim = hidden_size // num_heads
    if head_dim % 2:
        raise SourceError(
            f"{config.path}: head_dim {head_dim} is odd; rotary embeddings need an even one."
        )
    return head_dim


def _activation(config: JsonObject) -> Literal["silu", "gelu", "gelu_tanh"]:
    name = config.string("hidden_act", "silu")
    if name not in _ACTIVATIONS:
        raise UnsupportedSourceError(
            f"{config.path}: hidden_act {name!r} is not supported; "
            f"supported are {', '.join(_ACTIVATIONS)}."
        )
    return _ACTIVATIONS[name]


def _rope(config: JsonObject, family: Family) -> tuple[float, RopeScaling | None]:
    """Both spellings: rope_theta + rope_scaling, and (transformers 5) rope_parameters."""
    if "rope_parameters" in config:
        scaling = config.child("rope_parameters")
        theta = scaling.number("rope_theta", family.default_rope_theta)
    else:
        theta = config.number("rope_theta", family.default_rope_theta)
        if "rope_scaling" not in config:
            return theta, None
        scaling = config.child("rope_scaling")
    partial = scaling.number("partial_rotary_factor", config.number("partial_rotary_factor", 1.0))
    if partial != 1.0:
        raise UnsupportedSourceError(
            f"{config.path}: partial_rotary_factor {partial} is not supported; only 1.0 is."
        )
    return theta, _rope_scaling(config, scaling)


def _rope_scaling(config: JsonObject, scaling: JsonObject) -> RopeScaling | None:
    kind = scaling.string("rope_type", scaling.string("type", "default"))
    if kind == "default":
        return None
    if kind == "linear":
        return RopeScaling(kind="linear", factor=scaling.number("factor"))
    if kind == "llama3":
        return RopeScaling(
            kind="llama3",
            factor=scaling.number("factor"),
            low_freq_factor=scaling.number("low_freq_factor"),
            high_freq_factor=scaling.number("high_freq_factor"),
            original_max_context=scaling.integer("original_max_position_embeddings"),
        )
    raise UnsupportedSourceError(
        f"{config.path}: rope scaling {kind!r} is not supported; "
        "supported are default, linear, llama3."
    )


def _windows(family: Family, config: JsonObject, num_layers: int) -> tuple[int | None, ...]:
    windows = family.windows(config, num_layers)
    return windows if any(window is not None for window in windows) else ()


def _no_windows(_config: JsonObject, num_layers: int) -> tuple[int | None, ...]:
    return (None,) * num_layers


def _mistral_windows(config: JsonObject, num_layers: int) -> tuple[int | None, ...]:
    return (config.optional_integer("sliding_window"),) * num_layers


def _qwen_windows(config: JsonObject, num_layers: int) -> tuple[int | None, ...]:
    """`use_sliding_window` switches; `layer_types`, or else `max_window_layers`, says where."""
    enabled = config.boolean("use_sliding_window", False)
    window = config.optional_integer("sliding_window") if enabled else None
    kinds = config.strings("layer_types")
    if not kinds:
        first = config.integer("max_window_layers", low=0) if window is not None else num_layers
        return tuple(window if index >= first else None for index in range(num_layers))
    if len(kinds) != num_layers:
        raise SourceError(
            f"{config.path}: layer_types has {len(kinds)} entries; expected {num_layers}."
        )
    for kind in kinds:
        if kind not in {"full_attention", "sliding_attention"}:
            raise UnsupportedSourceError(
                f"{config.path}: layer type {kind!r} is not supported; "
                "supported are full_attention, sliding_attention."
            )
        if kind == "sliding_attention" and window is None:
            raise SourceError(
                f"{config.path}: layer_types asks for sliding_attention, but use_sliding_window "
                "and sliding_window do not give a window."
            )
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


def _llama_biases(config: JsonObject) -> tuple[bool, bool, bool]:
    attention = config.boolean("attention_bias", False)
    return attention, attention, config.boolean("mlp_bias", False)


def _qwen3_biases(config: JsonObject) -> tuple[bool, bool, bool]:
    attention = config.boolean("attention_bias", False)
    return attention, attention, False


FAMILIES: Mapping[str, Family] = {
    "llama": Family(
        architecture="Llama",
        biases=_llama_biases,
        windows=_no_windows,
        default_rope_theta=10_000.0,  # Llama 1 and 2 configurations do not carry it
    ),
    "mistral": Family(
        architecture="Mistral",
        biases=lambda _config: (False, False, False),
        windows=_mistral_windows,
    ),
    "qwen2": Family(
        architecture="Qwen2",
        biases=lambda _config: (True, False, False),
        windows=_qwen_windows,
    ),
    "qwen3": Family(
        architecture="Qwen3",
        biases=_qwen3_biases,
        windows=_qwen_windows,
        qk_norm=True,
        default_head_dim=128,
    ),
}
