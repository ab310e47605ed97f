"""Programs as JSON, and what makes one valid."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Literal, cast

from tersor.bundle import limits
from tersor.bundle.errors import BundleFormatError
from tersor.bundle.json_fields import Fields, as_integer, check_unique
from tersor.bundle.manifest import DTYPES
from tersor.bundle.program import (
    DecoderProgram,
    GraphProgram,
    Program,
    RopeScaling,
    TensorSpec,
    TextFrontend,
)

_MAX_WIDTH = 1 << 24  # vocabulary, hidden and intermediate sizes
_MAX_HEADS = 1 << 16
_MAX_LAYERS = 1 << 14
_MAX_CONTEXT = 1 << 30
_MAX_EOS = 1 << 8
_MAX_VERSION = 1 << 16
_MAX_BATCH = 1 << 20
_ACTIVATIONS = ("silu", "gelu", "gelu_tanh")
_ROPE_KINDS = ("linear", "llama3")


def program_to_json(program: Program) -> dict[str, Any]:
    """The program as JSON values; its first key, `kind`, says which one it is."""
    kind = "decoder" if isinstance(program, DecoderProgram) else "graph"
    return {"kind": kind, **_listed(asdict(program))}


def program_from_json(value: object) -> Program:
    """Parses and validates a program.

    Raises:
        BundleFormatError: a field is missing, unknown, of the wrong type, out of range, or
            contradicts another.
    """
    fields = Fields(value, "the program")
    kind = fields.choice("kind", ("decoder", "graph"))
    program = _decoder(fields) if kind == "decoder" else _graph(fields)
    fields.finish()
    return program


def _decoder(fields: Fields) -> DecoderProgram:
    scaling = fields.take("rope_scaling")
    program = DecoderProgram(
        family=fields.name("family"),
        vocab_size=fields.integer("vocab_size", 1, _MAX_WIDTH),
        hidden_size=fields.integer("hidden_size", 1, _MAX_WIDTH),
        intermediate_size=fields.integer("intermediate_size", 1, _MAX_WIDTH),
        num_layers=fields.integer("num_layers", 1, _MAX_LAYERS),
        num_heads=fields.integer("num_heads", 1, _MAX_HEADS),
        num_kv_heads=fields.integer("num_kv_heads", 1, _MAX_HEADS),
        head_dim=fields.integer("head_dim", 1, _MAX_HEADS),
        max_context=fields.integer("max_context", 1, _MAX_CONTEXT),
        norm_eps=fields.number("norm_eps", 0.0, 1.0),
        rope_theta=fields.number("rope_theta", 1.0, 1e15),
        rope_scaling=None if scaling is None else _rope_scaling(scaling),
        activation=cast(
            Literal["silu", "gelu", "gelu_tanh"], fields.choice("activation", _ACTIVATIONS)
        ),
        qkv_bias=fields.boolean("qkv_bias"),
        o_bias=fields.boolean("o_bias"),
        mlp_bias=fields.boolean("mlp_bias"),
        qk_norm=fields.boolean("qk_norm"),
        tie_embeddings=fields.boolean("tie_embeddings"),
        windows=tuple(
            None if item is None else as_integer(item, "a window of the program", 1, _MAX_CONTEXT)
            for item in fields.items("windows", _MAX_LAYERS)
        ),
        bos_token_id=fields.optional_integer("bos_token_id", 0, _MAX_WIDTH),
        eos_token_ids=tuple(
            as_integer(item, "an end-of-text token of the program", 0, _MAX_WIDTH)
            for item in fields.items("eos_token_ids", _MAX_EOS)
        ),
    )
    _check_decoder(program)
    return program


def _check_decoder(program: DecoderProgram) -> None:
    if program.num_heads % program.num_kv_heads:
        raise BundleFormatError(
            f"the program has {program.num_heads} heads and {program.num_kv_heads} key-value "
            "heads; expected a multiple"
        )
    if program.head_dim % 2:
        raise BundleFormatError(
            f"head_dim of the program is {program.head_dim}; the rotary embedding needs it even"
        )
    if len(program.windows) not in (0, program.num_layers):
        raise BundleFormatError(
            f"the program has {len(program.windows)} windows for {program.num_layers} layers; "
            "expected one a layer, or none at all"
        )
    tokens = (*program.eos_token_ids, program.bos_token_id or 0)
    if max(tokens) >= program.vocab_size:
        raise BundleFormatError(
            f"the program names token {max(tokens)}, but its vocabulary has {program.vocab_size}"
        )
    if len(set(program.eos_token_ids)) != len(program.eos_token_ids):
        raise BundleFormatError("the program lists an end-of-text token twice")


def _rope_scaling(value: object) -> RopeScaling:
    fields = Fields(value, "rope_scaling of the program")
    scaling = RopeScaling(
        kind=cast(Literal["linear", "llama3"], fields.choice("kind", _ROPE_KINDS)),
        factor=fields.number("factor", 1e-3, 1e6),
        low_freq_factor=fields.number("low_freq_factor", 1e-3, 1e6),
        high_freq_factor=fields.number("high_freq_factor", 1e-3, 1e6),
        original_max_context=fields.integer("original_max_context", 1, _MAX_CONTEXT),
    )
    fields.finish()
    # Equal factors would divide by zero where the two bands are blended.
    if scaling.kind == "llama3" and scaling.low_freq_factor >= scaling.high_freq_factor:
        raise BundleFormatError(
            f"{fields.where} has low_freq_factor {scaling.low_freq_factor:g} and "
            f"high_freq_factor {scaling.high_freq_factor:g}; expected the first to be smaller"
        )
    return scaling


def _graph(fields: Fields) -> GraphProgram:
    version = fields.items("schema_version", 2)
    if len(version) != 2:
        raise BundleFormatError(
            f"schema_version of the program has {len(version)} numbers; expected 2"
        )
    major, minor = (as_integer(item, "schema_version", 0, _MAX_VERSION) for item in version)
    text = fields.take("text")
    program = GraphProgram(
        graph_asset=fields.name("graph_asset"),
        schema_version=(major, minor),
        torch_version=fields.name("torch_version"),
        inputs=_specs(fields, "inputs"),
        outputs=_specs(fields, "outputs"),
        group_order=fields.names("group_order", limits.MAX_GROUPS),
        batch_dim_dynamic=fields.boolean("batch_dim_dynamic"),
        max_batch_size=fields.integer("max_batch_size", 1, _MAX_BATCH),
        text=None if text is None else _text(text),
    )
    _check_graph(program)
    return program


def _specs(fields: Fields, key: str) -> tuple[TensorSpec, ...]:
    specs = []
    for item in fields.items(key, limits.MAX_GRAPH_TENSORS):
        spec = Fields(item, f"an entry of {key} of the program")
        name = spec.name("name")
        dtype = spec.choice("dtype", tuple(DTYPES))
        shape = tuple(
            as_integer(dim, f"shape of {name}", -1, limits.MAX_DIMENSION)
            for dim in spec.items("shape", limits.MAX_RANK)
        )
        spec.finish()
        specs.append(TensorSpec(name=name, dtype=dtype, shape=shape))
    check_unique(tuple(spec.name for spec in specs), f"{key} of the program")
    return tuple(specs)


def _text(value: object) -> TextFrontend:
    fields = Fields(value, "text of the program")
    optional = {
        key: None if (name := fields.take(key)) is None else name
        for key in ("attention_mask", "token_type_ids")
    }
    for key, name in optional.items():
        if name is not None and not isinstance(name, str):
            raise BundleFormatError(f"{key} of {fields.where} is not a string or null")
    frontend = TextFrontend(
        input_ids=fields.name("input_ids"),
        attention_mask=cast("str | None", optional["attention_mask"]),
        token_type_ids=cast("str | None", optional["token_type_ids"]),
        max_tokens=fields.integer("max_tokens", 1, _MAX_CONTEXT),
    )
    fields.finish()
    return frontend


def _check_graph(program: GraphProgram) -> None:
    if not program.outputs:
        raise BundleFormatError("the program has no outputs; expected at least one")
    if program.max_batch_size > 1 and not program.batch_dim_dynamic:
        raise BundleFormatError(
            f"max_batch_size of the program is {program.max_batch_size}, but its batch dimension "
            "is fixed"
        )
    if program.batch_dim_dynamic:
        for spec in (*program.inputs, *program.outputs):
            if spec.shape[:1] != (-1,):
                raise BundleFormatError(
                    f"{spec.name} of the program has shape {list(spec.shape)}; with a dynamic "
                    "batch its first dimension is -1"
                )
    if program.text is not None:
        names = (
            program.text.input_ids, program.text.attention_mask, program.text.token_type_ids,
        )  # fmt: skip
        given = tuple(name for name in names if name is not None)
        check_unique(given, "text of the program")
        unknown = sorted(set(given) - {spec.name for spec in program.inputs})
        if unknown:
            raise BundleFormatError(
                f"text of the program fills {unknown[0]!r}, which is not one of its inputs"
            )


def _listed(value: Any) -> Any:
    """Tuples as lists, so that a program compares equal to its own JSON read back."""
    if isinstance(value, dict):
        return {key: _listed(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_listed(item) for item in value]
    return value
