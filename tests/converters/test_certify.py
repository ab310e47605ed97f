"""Evaluation: the numbers must be those that an independent computation gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from math import log
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_models import save_tiny_decoder
from tokenizers import Tokenizer

from tersor.bundle.errors import BundleNotFoundError
from tersor.converters.certify import EvalReport, evaluate
from tersor.converters.errors import EvaluationError
from tersor.converters.pipeline import convert
from tersor.converters.recipe import load_recipe

TOKENS = 1500  # two whole windows and a rest


@pytest.fixture(scope="module")
def reports(pico_bundles: Mapping[str, Path], heldout: str) -> Mapping[str, EvalReport]:
    reference = pico_bundles["lossless"]
    return {
        name: evaluate(path, heldout, reference=reference, activations="fp32", max_tokens=TOKENS)
        for name, path in pico_bundles.items()
    }


def test_bits_per_byte_equal_transformers(
    pico: Path, heldout: str, reports: Mapping[str, EvalReport]
) -> None:
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(pico, dtype=torch.float32).eval()
    encoding = Tokenizer.from_file(str(pico / "tokenizer.json")).encode(heldout[:20_000])
    ids = torch.tensor(encoding.ids[:TOKENS])
    nats = 0.0
    for start in range(0, TOKENS, 512):
        window = torch.cat([torch.tensor([0]), ids[start : start + 512]])
        with torch.no_grad():
            logits = model(window[None, :-1]).logits[0]
        nats += float(F.cross_entropy(logits, window[1:], reduction="sum"))
    num_bytes = len(heldout[: encoding.offsets[TOKENS - 1][1]].encode())
    assert reports["lossless"].tokens == TOKENS
    assert reports["lossless"].bits_per_byte == pytest.approx(nats / log(2) / num_bytes, rel=1e-5)


def test_the_lossless_bundle_is_its_own_reference(reports: Mapping[str, EvalReport]) -> None:
    report = reports["lossless"]
    assert report.kl_mean == report.kl_p99 == 0
    assert report.top1_agreement == 1
    assert report.bits_per_byte == report.reference_bits_per_byte


def test_quality_falls_with_the_rate_and_stays_within_bounds(
    reports: Mapping[str, EvalReport],
) -> None:
    kl = {name: report.kl_mean or 0.0 for name, report in reports.items()}
    top1 = {name: report.top1_agreement or 0.0 for name, report in reports.items()}
    assert 0 < kl["int8"] < 0.0003
    assert 0.002 < kl["int4"] < 0.012
    assert kl["int4"] < kl["int8-pruned"] < 0.2
    assert top1["int8"] > 0.985
    assert top1["int4"] > 0.93
    assert top1["int8-pruned"] > 0.75
    for name, report in reports.items():
        assert (report.kl_p99 or 0) >= kl[name]


def test_sizes_and_speed_are_reported(
    pico_bundles: Mapping[str, Path], reports: Mapping[str, EvalReport]
) -> None:
    for name, report in reports.items():
        assert report.kind == "decoder"
        assert report.bundle_bytes == pico_bundles[name].stat().st_size
        assert report.source_bytes == 14_688_768
        assert report.ratio == report.bundle_bytes / report.source_bytes
        assert report.tokens_per_second is not None
        assert report.tokens_per_second > 0
        assert report.scored_tokens_per_second is not None
        assert report.load_seconds > 0
    assert reports["int4"].resident_bytes < reports["int8"].resident_bytes
    assert reports["int4"].recipe == "int4"
    assert reports["int8-pruned"].recipe == "int8+magnitude:0.5"


def test_a_source_folder_as_reference(
    pico: Path, pico_bundles: Mapping[str, Path], heldout: str, reports: Mapping[str, EvalReport]
) -> None:
    report = evaluate(
        pico_bundles["int4"], heldout, reference=pico, activations="fp32", max_tokens=TOKENS
    )
    expected = reports["int4"]
    for field in (
        "bits_per_byte",
        "reference_bits_per_byte",
        "kl_mean",
        "kl_p99",
        "top1_agreement",
    ):
        assert asdict(report)[field] == pytest.approx(asdict(expected)[field], rel=1e-6)


def test_without_a_begin_token_the_first_token_is_not_scored(tmp_path: Path) -> None:
    reference = save_tiny_decoder(tmp_path / "model", "qwen2-tied")
    (tmp_path / "model" / "tokenizer_config.json").unlink()
    convert(tmp_path / "model", tmp_path / "b.tersor", recipe=load_recipe("lossless"))
    text = "naïve text of bytes, é and ü included, longer than one window of the model. " * 3
    report = evaluate(tmp_path / "b.tersor", text, activations="fp32")
    ids = Tokenizer.from_file(str(tmp_path / "model" / "tokenizer.json")).encode(text).ids
    assert report.tokens == len(ids) - 1
    nats = 0.0
    for start in range(0, len(ids) - 1, 128):  # the model's whole context
        window = torch.tensor(ids[start : start + 129])
        with torch.no_grad():
            logits = reference(window[None, :-1]).logits[0]
        nats += float(F.cross_entropy(logits, window[1:], reduction="sum"))
    num_bytes = len(text.encode()) - 1
    assert report.bits_per_byte == pytest.approx(nats / log(2) / num_bytes, rel=1e-5)
    assert report.kl_mean is None
    assert report.top1_agreement is None


def test_models_that_cannot_be_compared(
    tmp_path: Path, pico_bundles: Mapping[str, Path], heldout: str
) -> None:
    save_tiny_decoder(tmp_path / "model", "llama")
    with pytest.raises(EvaluationError, match="different tokenizers"):
        evaluate(pico_bundles["int4"], heldout, reference=tmp_path / "model", max_tokens=8)


@pytest.mark.parametrize(("text", "max_tokens"), [("", None), ("x", None), ("x = 1\n", 1)])
def test_too_little_text(
    pico_bundles: Mapping[str, Path], text: str, max_tokens: int | None
) -> None:
    with pytest.raises(EvaluationError, match="expected at least 2"):
        evaluate(pico_bundles["int4"], text, max_tokens=max_tokens)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "abacus"}, "the device is 'abacus'; expected cpu, cuda or cuda:INDEX"),
        ({"device": "meta"}, "the device is 'meta'"),
        ({"device": "cuda:63"}, r"the device is cuda:63, but torch sees \d+ CUDA devices here"),
        ({"activations": "fp8"}, "activations must be auto, bf16 or fp32, got 'fp8'"),
    ],
    ids=str,
)
def test_where_and_how_to_compute_are_checked(
    pico_bundles: Mapping[str, Path], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(EvaluationError, match=message):
        evaluate(pico_bundles["int4"], "x = 1\n", **options)


def test_a_missing_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleNotFoundError):
        evaluate(tmp_path / "none.tersor", "text")
