"""Decoder folders: what transformers saved must run to the very same text from the bundle."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import TINY_DECODERS, VOCAB_SIZE, save_tiny_decoder
from torch import Tensor

from tersor.bundle.program import DecoderProgram, RopeScaling
from tersor.bundle.reader import BundleReader
from tersor.converters.errors import SourceError, UnsupportedSourceError
from tersor.converters.pipeline import convert
from tersor.converters.recipe import load_recipe
from tersor.converters.sources import open_source
from tersor.models.cache import FullAttention, GrowingCache
from tersor.models.decoder import DecoderModel
from tersor.models.weights import ResidentWeights

CPU = torch.device("cpu")
NEW_TOKENS = 24


def open_model(path: Path) -> DecoderModel:
    with BundleReader.open(path) as reader:
        program = reader.manifest.program
        assert isinstance(program, DecoderProgram)
        weights = ResidentWeights.from_bundle(reader, CPU)
    return DecoderModel(program, weights, device=CPU, activations=torch.float32)


def greedy(model: DecoderModel, prompt: list[int], count: int) -> list[int]:
    cache = GrowingCache()
    tokens, position = torch.tensor(prompt), 0
    continuation: list[int] = []
    for _ in range(count):
        positions = torch.arange(position, position + len(tokens))
        logits = model.forward(tokens, positions, cache)[-1]
        position += len(tokens)
        continuation.append(int(logits.argmax()))
        tokens = torch.tensor(continuation[-1:])
    return continuation


def reference_greedy(model: Any, prompt: list[int], count: int) -> list[int]:
    """transformers' own generation, which must not stop early."""
    tokens = torch.tensor([prompt])
    with torch.no_grad():
        for _ in range(count):
            logits = model(tokens, use_cache=False).logits[0, -1]
            tokens = torch.cat([tokens, logits.argmax()[None, None]], 1)
    ids: list[int] = tokens[0, len(prompt) :].tolist()
    return ids


@pytest.mark.parametrize("name", sorted(TINY_DECODERS))
def test_greedy_text_equals_transformers(tmp_path: Path, name: str) -> None:
    reference = save_tiny_decoder(tmp_path / "model", name, shard_size="100KB")
    convert(tmp_path / "model", tmp_path / "b.tersor", recipe=load_recipe("lossless"))
    model = open_model(tmp_path / "b.tersor")
    generator = torch.Generator().manual_seed(5)
    prompt = torch.randint(0, VOCAB_SIZE, (19,), generator=generator).tolist()
    assert greedy(model, prompt, NEW_TOKENS) == reference_greedy(reference, prompt, NEW_TOKENS)


def test_pico_equals_transformers(pico: Path, pico_bundles: dict[str, Path]) -> None:
    from transformers import LlamaForCausalLM

    reference = LlamaForCausalLM.from_pretrained(pico, dtype=torch.float32).eval()
    model = open_model(pico_bundles["lossless"])
    prompt = [0, 12, 345, 678, 901, 234, 567]
    assert greedy(model, prompt, 40) == reference_greedy(reference, prompt, 40)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_tiny_decoder(tmp_path / "model", "llama")
    return tmp_path / "model"


def edit(folder: Path, file: str = "config.json", **changes: Any) -> None:
    """Sets keys of a JSON file; a value of None removes the key."""
    path = folder / file
    values = json.loads(path.read_text()) if path.exists() else {}
    values = {key: value for key, value in {**values, **changes}.items() if value is not None}
    path.write_text(json.dumps(values))


def edit_weights(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def program(folder: Path) -> DecoderProgram:
    source = open_source(folder)
    assert isinstance(source.program, DecoderProgram)
    return source.program


def test_both_spellings_of_the_rotary_settings(folder: Path) -> None:
    assert program(folder).rope_theta == 10_000.0
    edit(
        folder, rope_parameters=None, rope_theta=5000, rope_scaling={"type": "linear", "factor": 2}
    )
    assert program(folder).rope_theta == 5000.0
    assert program(folder).rope_scaling == RopeScaling(kind="linear", factor=2.0)
    llama3 = {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }  # fmt: skip
    edit(folder, rope_scaling=llama3)
    scaling = program(folder).rope_scaling
    assert scaling == RopeScaling(kind="llama3", factor=8.0, original_max_context=64)
    edit(folder, rope_scaling={"rope_type": "yarn", "factor": 4.0})
    with pytest.raises(UnsupportedSourceError, match=r"'yarn'.*default, linear, llama3"):
        program(folder)
    edit(folder, rope_scaling=None, rope_theta=None)
    assert program(folder).rope_theta == 10_000.0  # Llama 1 and 2 do not say it


def test_layer_types_win_over_max_window_layers(tmp_path: Path) -> None:
    save_tiny_decoder(tmp_path, "qwen2-window")
    assert program(tmp_path).windows == (None, 6, 6)
    edit(tmp_path, layer_types=["sliding_attention", "full_attention", "full_attention"])
    assert program(tmp_path).windows == (6, None, None)
    edit(tmp_path, layer_types=None)
    assert program(tmp_path).windows == (None, 6, 6)
    edit(tmp_path, use_sliding_window=False)
    assert program(tmp_path).windows == ()
    edit(tmp_path, use_sliding_window=True, layer_types=["chunked_attention"] * 3)
    with pytest.raises(UnsupportedSourceError, match="chunked_attention"):
        program(tmp_path)
    edit(tmp_path, layer_types=["full_attention"])
    with pytest.raises(SourceError, match="layer_types has 1 entries; expected 3"):
        program(tmp_path)


def test_begin_and_end_tokens(folder: Path) -> None:
    assert program(folder).bos_token_id == 256
    assert program(folder).eos_token_ids == (256,)
    edit(folder, "generation_config.json", eos_token_id=[256, 7])
    assert program(folder).eos_token_ids == (256, 7)
    edit(folder, "tokenizer_config.json", add_bos_token=False)
    assert program(folder).bos_token_id is None
    edit(folder, "tokenizer_config.json", add_bos_token=None)
    assert program(folder).bos_token_id == 256  # it names one
    edit(folder, "tokenizer_config.json", bos_token={"content": "<|end|>"})
    assert program(folder).bos_token_id == 256
    edit(folder, "tokenizer_config.json", bos_token=None)
    assert program(folder).bos_token_id is None
    (folder / "tokenizer_config.json").unlink()
    assert program(folder).bos_token_id is None


def test_a_tied_head_that_differs_is_not_tied(tmp_path: Path) -> None:
    save_tiny_decoder(tmp_path, "qwen2-tied")
    assert program(tmp_path).tie_embeddings

    def same(tensors: dict[str, Tensor]) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

    def different(tensors: dict[str, Tensor]) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] * 2

    edit_weights(tmp_path, same)
    source = open_source(tmp_path)
    assert source.program.tie_embeddings  # type: ignore[union-attr]
    assert source.tensors[0].aliases == ("lm_head.weight",)
    edit_weights(tmp_path, different)
    source = open_source(tmp_path)
    assert not source.program.tie_embeddings  # type: ignore[union-attr]
    assert source.tensors[-1].name == "head"


def test_names_without_the_model_prefix(tmp_path: Path) -> None:
    save_tiny_decoder(tmp_path, "qwen2-tied")
    tensors = load_file(tmp_path / "model.safetensors")
    bare = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    save_file(bare, tmp_path / "model.safetensors")
    edit(tmp_path, architectures=["Qwen2Model"])
    source = open_source(tmp_path)
    assert source.tensors[0].sources[0].tensor == "embed_tokens.weight"


def test_all_wrong_tensors_are_listed(folder: Path) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        del tensors["model.layers.1.mlp.up_proj.weight"]
        tensors["model.norm.weight"] = torch.ones(47)
        tensors["model.layers.0.self_attn.q_proj.bias"] = torch.ones(48)
        tensors["lm_head.weight"] = tensors["lm_head.weight"].to(torch.float64)

    edit_weights(folder, change)
    with pytest.raises(SourceError) as caught:
        open_source(folder)
    message = str(caught.value)
    assert "4 tensors" in message
    assert "missing model.layers.1.mlp.up_proj.weight [72, 48]" in message
    assert "model.norm.weight is [47], expected [48]" in message
    assert "unknown model.layers.0.self_attn.q_proj.bias [48]" in message
    assert "lm_head.weight is f64" in message


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"model_type": "gemma2"}, UnsupportedSourceError, "'gemma2' is not supported; supported"),
        ({"model_type": None}, SourceError, "has no model_type, which is needed"),
        ({"architectures": ["LlamaForSequenceClassification"]}, UnsupportedSourceError, "expected"),
        ({"quantization_config": {"bits": 4}}, UnsupportedSourceError, "already quantized"),
        ({"hidden_size": None}, SourceError, "has no hidden_size"),
        ({"hidden_size": "48"}, SourceError, 'hidden_size is "48"; expected a whole number'),
        ({"hidden_size": -48}, SourceError, "hidden_size is -48; expected a whole number from 1"),
        ({"num_hidden_layers": True}, SourceError, "num_hidden_layers is true; expected"),
        ({"num_hidden_layers": 10**9}, SourceError, "from 1 to 10000"),
        ({"num_key_value_heads": 3}, SourceError, "4 is not a multiple of num_key_value_heads 3"),
        ({"head_dim": 13}, SourceError, "head_dim 13 is odd"),
        ({"head_dim": None, "hidden_size": 50}, SourceError, "50 is not a multiple"),
        ({"rms_norm_eps": None}, SourceError, "has no rms_norm_eps"),
        ({"rms_norm_eps": 0}, SourceError, "rms_norm_eps is 0; expected a finite number above 0"),
        ({"hidden_act": "relu2"}, UnsupportedSourceError, "'relu2' is not supported; supported"),
        ({"partial_rotary_factor": 0.5}, UnsupportedSourceError, "partial_rotary_factor 0.5"),
        ({"tie_word_embeddings": "no"}, SourceError, "expected true or false"),
        ({"eos_token_id": "end"}, SourceError, "eos_token_id is .end.; expected a token id"),
        ({"intermediate_size": 73}, SourceError, r"gate_proj.weight is \[72, 48\], expected \[73"),
    ],
)
def test_a_wrong_configuration_gives_one_clear_error(
    folder: Path, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    edit(folder, **changes)
    with pytest.raises(error, match=message):
        open_source(folder)


def test_what_is_not_a_model_folder(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="does not exist"):
        open_source(tmp_path / "missing")
    with pytest.raises(SourceError, match=r"is not a model folder: it has no config\.json"):
        open_source(tmp_path)
    with pytest.raises(SourceError, match=r"is a file; expected a Hugging Face folder or a \.pt2"):
        open_source(folder / "model.safetensors")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(SourceError, match=r"tokenizer\.json is missing"):
        open_source(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "\x00", '{"model_type": ' + "[" * 100_000])
def test_a_broken_configuration(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(SourceError, match=r"config\.json"):
        open_source(folder)


def test_a_broken_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"model": {"type": "Nonsense"}}')
    with pytest.raises(SourceError, match=r"tokenizer\.json is not a tokenizer"):
        open_source(folder)


@pytest.mark.parametrize("keep", [0, 4, 8, 100, -1])
def test_a_truncated_checkpoint(folder: Path, keep: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(SourceError, match="is not a readable safetensors file"):
        open_source(folder)


def test_weights_in_another_format(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(SourceError, match=r"pytorch_model\.bin: save the model with"):
        open_source(folder)
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(SourceError, match=r"expected model\.safetensors or"):
        open_source(folder)


def test_an_index_that_lies(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    save_tiny_decoder(folder, "llama", shard_size="60KB")
    index_path = folder / "model.safetensors.index.json"
    index = json.loads(index_path.read_text())
    name, file = next(iter(index["weight_map"].items()))

    def write(weight_map: Any) -> None:
        index_path.write_text(json.dumps({"weight_map": weight_map}))

    write({**index["weight_map"], "ghost.weight": file})
    with pytest.raises(SourceError, match=r"disagree about: ghost\.weight"):
        open_source(folder)
    write({**index["weight_map"], name: "../secret.safetensors"})
    with pytest.raises(SourceError, match=r"places .* in '\.\./secret\.safetensors'"):
        open_source(folder)
    write({})
    with pytest.raises(SourceError, match="lists no tensors"):
        open_source(folder)
    write(["list"])
    with pytest.raises(SourceError, match=r"weight_map is .*; expected an object"):
        open_source(folder)
    write(index["weight_map"])
    (folder / file).unlink()
    with pytest.raises(SourceError, match="is missing, but"):
        open_source(folder)


def test_logits_of_a_whole_window_equal_transformers(tmp_path: Path) -> None:
    reference = save_tiny_decoder(tmp_path / "model", "qwen3-tied")
    convert(tmp_path / "model", tmp_path / "b.tersor", recipe=load_recipe("lossless"))
    tokens = torch.arange(64) * 37 % VOCAB_SIZE
    ours = open_model(tmp_path / "b.tersor").forward(tokens, torch.arange(64), FullAttention(1, 64))
    with torch.no_grad():
        theirs = reference(tokens[None]).logits[0]
    assert torch.allclose(ours, theirs, atol=2e-5, rtol=1e-5)
