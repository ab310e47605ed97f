"""The canonical decoder against transformers, in float32 on the CPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_decoders import (
    TINY,
    canonical_program,
    canonical_tensors,
    pretrained,
    resident,
    tiny_model,
)
from torch import Tensor

from tersor.bundle.program import DecoderProgram
from tersor.kernels.dense import DenseLayout
from tersor.models.cache import FullAttention, GrowingCache
from tersor.models.decoder import DecoderModel, decoder_weights
from tersor.models.errors import UnsupportedProgramError, WeightError
from tersor.models.rotary import Rotary
from tersor.models.weights import ResidentWeights

CPU = torch.device("cpu")


def _decoder(model: Any, activations: torch.dtype = torch.float32) -> DecoderModel:
    return DecoderModel(
        canonical_program(model),
        resident(canonical_tensors(model)),
        device=CPU,
        activations=activations,
    )


def _greedy(decoder: DecoderModel, prompt: list[int], count: int) -> list[int]:
    cache, ids = GrowingCache(), list(prompt)
    pending = torch.tensor(prompt)
    for _ in range(count):
        positions = torch.arange(len(ids) - len(pending), len(ids))
        last = torch.tensor([len(pending) - 1])
        logits = decoder.forward(pending, positions, cache, rows=last)
        pending = logits[0].argmax().view(1)
        ids.append(int(pending))
    return ids


def _reference_greedy(model: Any, prompt: list[int], count: int) -> list[int]:
    with torch.inference_mode():
        output = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=count,
            min_new_tokens=count,
            eos_token_id=None,
            do_sample=False,
        )
    ids: list[int] = output[0].tolist()
    return ids


def _reference_logits(model: Any, tokens: Tensor) -> Tensor:
    with torch.inference_mode():
        logits: Tensor = model(tokens).logits
    return logits


@pytest.mark.parametrize("name", TINY)
def test_logits_of_a_batch_equal_transformers(name: str) -> None:
    model = tiny_model(name)
    tokens = torch.randint(3, 97, (2, 40), generator=torch.Generator().manual_seed(1))
    expected = _reference_logits(model, tokens)
    positions = torch.arange(40).repeat(2)
    actual = _decoder(model).forward(tokens.flatten(), positions, FullAttention(2, 40))
    assert actual.dtype == torch.float32
    scale = expected.abs().max()
    torch.testing.assert_close(
        actual.view_as(expected) / scale, expected / scale, atol=3e-6, rtol=0
    )


@pytest.mark.parametrize("name", TINY)
def test_greedy_tokens_equal_transformers(name: str) -> None:
    model = tiny_model(name, seed=3)
    for prompt in ([1, 17, 5], [1, *range(10, 40)]):
        expected = _reference_greedy(model, prompt, 30)
        assert _greedy(_decoder(model), prompt, 30) == expected


def test_greedy_text_of_pico_equals_transformers(pico_dir: Path) -> None:
    model = pretrained(pico_dir)
    decoder = _decoder(model)
    for prompt in ([0, 501, 77, 1203], [0, *range(300, 340)]):
        assert _greedy(decoder, prompt, 48) == _reference_greedy(model, prompt, 48)


@pytest.mark.parametrize("name", ["mistral", "qwen2-window", "qwen3"])
def test_chunked_prefill_and_steps_give_the_logits_of_one_pass(name: str) -> None:
    decoder = _decoder(tiny_model(name))
    tokens = torch.randint(3, 97, (90,), generator=torch.Generator().manual_seed(2))
    positions = torch.arange(90)
    whole = decoder.forward(tokens, positions, FullAttention(1, 90))
    cache = GrowingCache()
    parts = [
        decoder.forward(tokens[start:end], positions[start:end], cache)
        for start, end in ((0, 30), (30, 41), (41, 42), (42, 43), (43, 90))
    ]
    assert cache.length == 90
    torch.testing.assert_close(torch.cat(parts), whole, atol=2e-5, rtol=1e-5)


def test_rows_select_logits_without_changing_them() -> None:
    decoder = _decoder(tiny_model("qwen3"))
    tokens, positions = torch.arange(3, 13), torch.arange(10)
    whole = decoder.forward(tokens, positions, FullAttention(1, 10))
    rows = decoder.forward(tokens, positions, FullAttention(1, 10), rows=torch.tensor([9, 2]))
    torch.testing.assert_close(rows, whole[[9, 2]], atol=1e-5, rtol=1e-5)
    none = decoder.forward(
        tokens, positions, FullAttention(1, 10), rows=torch.empty(0, dtype=torch.long)
    )
    assert none.shape == (0, 97)


def test_bf16_activations_stay_near_fp32() -> None:
    model = tiny_model("llama-tied-biased").bfloat16()
    tokens, positions = torch.arange(3, 33), torch.arange(30)
    exact = _decoder(model).forward(tokens, positions, FullAttention(1, 30))
    rounded = _decoder(model, torch.bfloat16).forward(tokens, positions, FullAttention(1, 30))
    assert rounded.dtype == torch.float32
    error = (rounded - exact).pow(2).mean().sqrt() / exact.std()
    assert error < 0.03


def test_positions_beyond_the_first_table_are_rotated() -> None:
    model = tiny_model("llama")
    model.config.max_position_embeddings = 4096
    decoder = _decoder(model)
    tokens = torch.arange(3, 11)
    near = decoder.forward(tokens, torch.arange(8), FullAttention(1, 8))
    far = decoder.forward(tokens, torch.arange(3000, 3008), FullAttention(1, 8))
    # Rotary attention sees differences of positions only.
    torch.testing.assert_close(far, near, atol=3e-3, rtol=1e-3)


def test_decoder_weights_name_every_tensor() -> None:
    for name in TINY:
        model = tiny_model(name)
        groups = canonical_tensors(model)
        shapes = {
            group: {key: tuple(tensor.shape) for key, tensor in tensors.items()}
            for group, tensors in groups.items()
        }
        program = canonical_program(model)
        assert decoder_weights(program) == shapes
        assert tuple(decoder_weights(program)) == program.groups


def test_missing_and_misshaped_weights_are_named() -> None:
    model = tiny_model("llama")
    tokens, positions = torch.arange(3, 5), torch.arange(2)
    groups = canonical_tensors(model)
    groups["layers.1"].pop("layers.1.down")
    decoder = DecoderModel(
        canonical_program(model), resident(groups), device=CPU, activations=torch.float32
    )
    with pytest.raises(WeightError, match=r"'layers\.1\.down' \[48, 80\] is missing"):
        decoder.forward(tokens, positions, FullAttention(1, 2))
    groups["layers.1"]["layers.1.down"] = torch.zeros(48, 79)
    decoder = DecoderModel(
        canonical_program(model), resident(groups), device=CPU, activations=torch.float32
    )
    with pytest.raises(WeightError, match=r"is \[48, 79\], the program needs \[48, 80\]"):
        decoder.forward(tokens, positions, FullAttention(1, 2))


def test_unknown_group_is_an_error() -> None:
    weights = ResidentWeights({"a": {"w": DenseLayout(torch.zeros(2, 3))}})
    assert weights.resident_bytes == 24
    with pytest.raises(WeightError, match="no weight group 'b'; there are a"):
        weights.acquire("b")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_kv_heads": 4}, "6 heads do not share 4 kv heads"),
        ({"head_dim": 7}, "head_dim must be even"),
        ({"windows": (3,)}, "1 windows for 3 layers"),
        ({"windows": (3, 0, None)}, "at least 1 token"),
        ({"num_layers": 0}, "every size must be positive"),
        ({"activation": "relu"}, "activation 'relu' is none of silu, gelu, gelu_tanh"),
    ],
)
def test_contradictory_programs_are_refused(change: dict[str, Any], message: str) -> None:
    program: DecoderProgram = replace(canonical_program(tiny_model("llama")), **change)
    with pytest.raises(UnsupportedProgramError, match=message):
        DecoderModel(program, ResidentWeights({}), device=CPU, activations=torch.float32)


def test_rotations_are_the_same_with_and_without_a_table() -> None:
    program = canonical_program(tiny_model("llama-rope-llama3"))
    tabled = Rotary(program, device=CPU, dtype=torch.float32)
    computed = Rotary(program, device=CPU, dtype=torch.float32)
    computed._table = None  # as on a device other than the CPU
    for positions in (torch.tensor([0, 5, 255]), torch.tensor([7, 1000]), torch.tensor([3])):
        for left, right in zip(tabled.at(positions), computed.at(positions), strict=True):
            assert left.shape == (len(positions), 1, program.head_dim)
            assert torch.equal(left, right)
    assert tabled.at(torch.empty(0, dtype=torch.long)).cos.shape[0] == 0
