"""Programs: every field survives the manifest, and contradictions are refused in words."""

from __future__ import annotations

from typing import Any

import pytest
from tiny_bundles import decoder_program, graph_program

from tersor.bundle.errors import BundleFormatError
from tersor.bundle.program import (
    DecoderProgram,
    GraphProgram,
    Program,
    RopeScaling,
    TensorSpec,
    TextFrontend,
)
from tersor.bundle.program_json import program_from_json, program_to_json
from tersor.bundle.strict_json import dumps, loads

FULL_DECODER = decoder_program(
    rope_scaling=RopeScaling(kind="llama3", factor=8.0),
    activation="gelu_tanh",
    qkv_bias=True,
    o_bias=True,
    mlp_bias=True,
    qk_norm=True,
    tie_embeddings=True,
    windows=(None, 32),
    bos_token_id=1,
    eos_token_ids=(2, 3),
)
FULL_GRAPH = graph_program(
    inputs=(
        TensorSpec(name="ids", dtype="i64", shape=(-1, -1)),
        TensorSpec(name="mask", dtype="i64", shape=(-1, -1)),
    ),
    group_order=("a", "b"),
    text=TextFrontend(input_ids="ids", attention_mask="mask", max_tokens=64),
)


@pytest.mark.parametrize("program", [decoder_program(), FULL_DECODER, graph_program(), FULL_GRAPH])
def test_every_field_survives(program: Program) -> None:
    value = program_to_json(program)
    assert program_from_json(loads(dumps(value), what="a program")) == program
    assert set(value) == {"kind", *type(program).__dataclass_fields__}


def test_an_integer_is_a_number() -> None:
    value = program_to_json(decoder_program(rope_theta=10000))
    program = program_from_json(value)
    assert isinstance(program, DecoderProgram)
    assert isinstance(program.rope_theta, float)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 0}, "vocab_size of the program is 0; expected 1 to"),
        ({"num_layers": -1}, "num_layers of the program is -1"),
        ({"hidden_size": 16.0}, "hidden_size of the program is a number; expected an integer"),
        ({"hidden_size": True}, "hidden_size of the program is a boolean; expected an integer"),
        ({"num_kv_heads": 3}, "4 heads and 3 key-value heads; expected a multiple"),
        ({"head_dim": 5}, "head_dim of the program is 5; the rotary embedding needs it even"),
        ({"windows": (8,)}, "has 1 windows for 2 layers"),
        ({"windows": (8, 0)}, "a window of the program is 0; expected 1 to"),
        ({"bos_token_id": 64}, "names token 64, but its vocabulary has 64"),
        ({"eos_token_ids": (64,)}, "names token 64, but its vocabulary has 64"),
        ({"eos_token_ids": (2, 2)}, "end-of-text token twice"),
        ({"norm_eps": -1e-5}, "norm_eps of the program is -1e-05"),
        ({"norm_eps": float("nan")}, "norm_eps of the program is nan"),
        ({"rope_theta": 0.0}, "rope_theta of the program is 0.0"),
        ({"activation": "relu"}, "activation of the program is 'relu'; expected one of silu"),
        ({"family": ""}, "family of the program is ''; expected printable"),
        (
            {"rope_scaling": RopeScaling(kind="llama3", factor=8.0, low_freq_factor=4.0)},
            "low_freq_factor 4 and high_freq_factor 4",
        ),
        (
            {"rope_scaling": RopeScaling(kind="linear", factor=0.0)},
            "factor of rope_scaling of the program is 0.0",
        ),
    ],
)
def test_bad_decoders(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BundleFormatError, match=message):
        program_from_json(program_to_json(decoder_program(**changes)))


_FIXED = (TensorSpec(name="y", dtype="f32", shape=(4, 2)),)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"outputs": ()}, "has no outputs"),
        ({"outputs": _FIXED}, r"y of the program has shape \[4, 2\]; with a dynamic batch"),
        ({"batch_dim_dynamic": False}, "max_batch_size of the program is 8, but its batch"),
        ({"inputs": _FIXED * 2, "batch_dim_dynamic": False, "max_batch_size": 1}, "'y' twice"),
        ({"inputs": (TensorSpec(name="x", dtype="f16x", shape=(-1,)),)}, "expected one of bool"),
        ({"inputs": (TensorSpec(name="x", dtype="f32", shape=(-2,)),)}, "shape of x is -2"),
        ({"schema_version": (8,)}, "has 1 numbers; expected 2"),
        ({"text": TextFrontend(input_ids="ids")}, "fills 'ids', which is not one of its inputs"),
        ({"text": TextFrontend(input_ids="x", attention_mask="x")}, "'x' twice"),
        ({"text": TextFrontend(input_ids="x", max_tokens=0)}, "max_tokens .* is 0"),
        ({"group_order": ("a", "a")}, "'a' twice"),
        ({"graph_asset": ""}, "graph_asset of the program is ''"),
    ],
)
def test_bad_graphs(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BundleFormatError, match=message):
        program_from_json(program_to_json(graph_program(**changes)))


def test_a_program_is_one_of_two_kinds() -> None:
    assert isinstance(program_from_json(program_to_json(graph_program())), GraphProgram)
    for bad in ("", "script", None, 1):
        with pytest.raises(BundleFormatError, match="kind of the program"):
            program_from_json({**program_to_json(graph_program()), "kind": bad})
