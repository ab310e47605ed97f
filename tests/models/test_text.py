from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny_encoder import CLS, SEP, WORDS, tokenizer_json

from tersor.bundle.program import GraphProgram, TensorSpec, TextFrontend
from tersor.models.errors import InvalidInputError, UnsupportedProgramError
from tersor.models.text import TextEncoder
from tersor.models.tokenizer import Tokenizer

FRONTEND = TextFrontend(input_ids="ids", attention_mask="mask", max_tokens=6)


def program(*, length: int = -1, dtype: str = "i64") -> GraphProgram:
    return GraphProgram(
        graph_asset="graph.json",
        schema_version=(8, 0),
        torch_version="2.13.0",
        inputs=tuple(
            TensorSpec(name=name, dtype=dtype, shape=(-1, length)) for name in ("ids", "mask")
        ),
        outputs=(TensorSpec(name="y", dtype="f32", shape=(-1, 4)),),
        batch_dim_dynamic=True,
        max_batch_size=8,
    )


def encoder(program: GraphProgram, frontend: TextFrontend = FRONTEND) -> TextEncoder:
    return TextEncoder(program, frontend, Tokenizer.from_bytes(tokenizer_json()))


def test_a_batch_is_padded_to_its_longest_text() -> None:
    inputs = encoder(program(dtype="i32")).encode(["w0 w1", "w2", ""])
    assert inputs["ids"].tolist() == [[CLS, 4, 5, SEP], [CLS, 6, SEP, 0], [CLS, SEP, 0, 0]]
    assert inputs["mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0]]
    assert set(inputs) == {"ids", "mask"}
    assert inputs["ids"].dtype == inputs["mask"].dtype == torch.int32


@pytest.mark.parametrize(("words", "kept"), [(4, 4), (5, 4), (30, 4)])
def test_a_text_is_cut_to_max_tokens_with_its_frame(words: int, kept: int) -> None:
    ids = encoder(program()).encode([" ".join(WORDS[:words])])["ids"]
    assert ids.tolist() == [[CLS, *range(4, 4 + kept), SEP]]


def test_a_program_of_fixed_length_gets_that_length() -> None:
    fixed = encoder(program(length=4))
    assert fixed.max_tokens == 4
    assert fixed.encode(["w0"])["ids"].tolist() == [[CLS, 4, SEP, 0]]
    assert fixed.encode([" ".join(WORDS)])["ids"].tolist() == [[CLS, 4, 5, SEP]]


def test_less_room_than_the_frame_takes_what_fits() -> None:
    tight = encoder(program(), replace(FRONTEND, max_tokens=1))
    assert tight.encode(["w0 w1"])["ids"].tolist() == [[CLS]]


def test_no_text_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="got no text, expected at least one"):
        encoder(program()).encode([])


def test_a_frontend_that_does_not_fit_its_program_is_refused() -> None:
    with pytest.raises(UnsupportedProgramError, match=r"fills inputs ids, expected .* ids, mask"):
        encoder(program(), TextFrontend(input_ids="ids"))
    flat = replace(program(), inputs=tuple(replace(spec, shape=(-1,)) for spec in program().inputs))
    with pytest.raises(
        UnsupportedProgramError, match=r"one shape \[batch, tokens\], got \[-1\], \[-1\]"
    ):
        encoder(flat)
