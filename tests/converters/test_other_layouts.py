"""Codebooks and bitmaps from a checkpoint to a bundle, to a computing model, and back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import save_tiny_decoder

from tersor.bundle.reader import BundleReader
from tersor.converters.extract import extract
from tersor.converters.pipeline import convert
from tersor.converters.recipe import load_recipe

PRUNE = "[[prune]]\nmethod = 'magnitude'\nfraction = 0.5\n"
# Relative error of a weight: of a normal distribution, and of its half of least magnitude (0.27).
CASES = [
    ("nf4", "group = 16", "", "codebook4", 0.12),
    ("mxfp4", "", "", "codebook4", 0.16),
    ("nvfp4", "", "", "codebook4", 0.12),
    ("pow2", "group = 16", "", "codebook4", 0.22),
    ("bitmap", "", PRUNE, "bitmap", 0.3),
    ("bitmap", "values = 'int8'", PRUNE, "bitmap", 0.3),
]


@pytest.mark.parametrize(("method", "more", "prune", "layout", "limit"), CASES)
def test_a_checkpoint_comes_back_decoded(
    tmp_path: Path, method: str, more: str, prune: str, layout: str, limit: float
) -> None:
    save_tiny_decoder(tmp_path / "in", "llama-biases")
    recipe = tmp_path / "own.toml"
    recipe.write_text(f"{prune}[[quantize]]\nmethod = '{method}'\n{more}\n")
    convert(tmp_path / "in", tmp_path / "b.tersor", recipe=load_recipe(str(recipe)))
    with BundleReader.open(tmp_path / "b.tersor") as reader:
        assert layout in {tensor.layout for tensor in reader.manifest.tensors}
    extract(tmp_path / "b.tersor", tmp_path / "out")
    before = load_file(tmp_path / "in" / "model.safetensors")
    after = load_file(tmp_path / "out" / "model.safetensors")
    assert before.keys() == after.keys()
    changed = 0
    for name, tensor in before.items():
        error = (after[name].float() - tensor.float()).norm() / tensor.float().norm()
        assert error < limit, name
        if prune and error:
            kept = after[name] != 0
            assert 0.4 < kept.float().mean() < 0.55
            if "int8" not in more:
                assert torch.equal(after[name][kept], tensor[kept])
        changed += int(error > 0)
    assert changed > 5
