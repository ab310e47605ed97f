"""Back from a bundle to a checkpoint that any reader of safetensors opens."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import save_tiny_decoder
from torch import Tensor

from tersor.bundle.errors import BundleCorruptError, BundleFormatError, BundleNotFoundError
from tersor.bundle.program import DecoderProgram
from tersor.bundle.writer import BundleWriter, PlaneData
from tersor.converters.errors import DestinationError
from tersor.converters.extract import extract
from tersor.converters.pipeline import convert
from tersor.converters.recipe import load_recipe


def load_folder(folder: Path) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(path)
    return tensors


def assert_identical(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> None:
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        other = right[name]
        assert (tensor.dtype, tensor.shape) == (other.dtype, other.shape), name
        same = tensor.contiguous().flatten().view(torch.uint8)
        assert torch.equal(same, other.contiguous().flatten().view(torch.uint8)), name


@pytest.mark.parametrize("recipe", ["lossless", "float12"])
def test_exact_recipes_give_back_every_bit_and_file(
    pico: Path, pico_bundles: Mapping[str, Path], tmp_path: Path, recipe: str
) -> None:
    report = extract(pico_bundles[recipe], tmp_path / "back")
    assert report.exact
    assert_identical(load_folder(pico), load_folder(tmp_path / "back"))
    for path in pico.iterdir():
        if path.suffix != ".safetensors":
            assert (tmp_path / "back" / path.name).read_bytes() == path.read_bytes()
    assert set(report.files) == {path.name for path in pico.iterdir()}


@pytest.mark.parametrize(("name", "limit"), [("int8", 0.012), ("int4", 0.1), ("int8-pruned", 0.4)])
def test_compressed_bundles_give_back_the_decoded_weights(
    pico: Path, pico_bundles: Mapping[str, Path], tmp_path: Path, name: str, limit: float
) -> None:
    report = extract(pico_bundles[name], tmp_path / "back")
    assert not report.exact
    original, back = load_folder(pico), load_folder(tmp_path / "back")
    assert original.keys() == back.keys()
    for key, tensor in original.items():
        assert back[key].dtype == torch.bfloat16
        error = (back[key].float() - tensor.float()).norm() / tensor.float().norm()
        assert error < limit, key
        assert ("norm" in key) <= bool(error == 0)


@pytest.mark.parametrize(
    ("step", "limit"),
    [
        ("method = 'int8'\nstep = 'tensor'", 0.03),
        ("method = 'fp8'\nblock = 128", 0.04),
        ("method = 'int6'\nstep = 'tensor'\noutliers = 0.005", 0.06),
        ("method = 'int4'\nstep = 'tensor'\noutliers = 0.005", 0.25),
        ("method = 'int4'\nsymmetric = false\noutliers = 0.00005", 0.15),
        ("method = 'nvfp4'", 0.15),
        ("method = 'bitmap'\nvalues = 'int8'", 0.03),
    ],
)
def test_rows_are_cut_with_what_they_share(
    pico: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, limit: float
) -> None:
    (tmp_path / "r.toml").write_text(f"[[quantize]]\nkinds = ['linear', 'embedding']\n{step}")
    convert(pico, tmp_path / "b.tersor", recipe=load_recipe(str(tmp_path / "r.toml")))
    extract(tmp_path / "b.tersor", tmp_path / "whole")
    monkeypatch.setattr("tersor.converters.extract._DECODED_ELEMENTS", 1)
    extract(tmp_path / "b.tersor", tmp_path / "back")
    back = load_folder(tmp_path / "back")
    assert_identical(load_folder(tmp_path / "whole"), back)
    for key, tensor in load_folder(pico).items():
        assert (back[key].float() - tensor.float()).norm() <= limit * tensor.float().norm(), key


@pytest.mark.parametrize("name", ["llama-biases", "qwen2-tied", "qwen3", "mistral-window"])
def test_shards_on_both_ends(tmp_path: Path, name: str) -> None:
    save_tiny_decoder(tmp_path / "in", name, shard_size="60KB")
    assert len(list((tmp_path / "in").glob("*.safetensors"))) > 3
    convert(tmp_path / "in", tmp_path / "b.tersor", recipe=load_recipe("lossless"))
    report = extract(tmp_path / "b.tersor", tmp_path / "out", shard_bytes=50_000)
    assert sum(file.endswith(".safetensors") for file in report.files) > 3
    assert_identical(load_folder(tmp_path / "in"), load_folder(tmp_path / "out"))
    convert(tmp_path / "out", tmp_path / "again.tersor", recipe=load_recipe("lossless"))


def test_mixed_dtypes_aliases_and_buffers_come_back(tmp_path: Path) -> None:
    """A tied head stored twice, rotary buffers, and a q that is wider than its k and v."""
    folder = tmp_path / "in"
    save_tiny_decoder(folder, "qwen2-tied")
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.rand(6)
    tensors["model.rotary_emb.inv_freq"] = torch.rand(6, dtype=torch.float64)
    for part in ("k", "v"):
        key = f"model.layers.1.self_attn.{part}_proj.weight"
        tensors[key] = tensors[key].to(torch.bfloat16)
    tensors["model.norm.weight"] = tensors["model.norm.weight"].to(torch.float16)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    convert(folder, tmp_path / "b.tersor", recipe=load_recipe("lossless"))
    report = extract(tmp_path / "b.tersor", tmp_path / "out")
    assert report.exact
    assert_identical(tensors, load_folder(tmp_path / "out"))


def test_a_folder_with_files_is_kept_unless_forced(
    pico_bundles: Mapping[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(DestinationError, match="not an empty folder"):
        extract(pico_bundles["int4"], tmp_path)
    extract(pico_bundles["int4"], tmp_path, force=True)
    assert (tmp_path / "precious.txt").read_text() == "mine"
    assert not list(tmp_path.glob("*.partial"))


class FullDisk:
    """A disk that fills up while the tensors are written."""

    def update(self, *, item: str, done_bytes: int, total_bytes: int) -> None:
        del item
        if done_bytes > total_bytes // 2:
            raise OSError(errno.ENOSPC, "No space left on device")


def test_a_failed_extraction_leaves_nothing_behind(
    pico_bundles: Mapping[str, Path], tmp_path: Path
) -> None:
    output = tmp_path / "out"
    with pytest.raises(
        DestinationError, match=r"out cannot be written: No space left on device\.$"
    ):
        extract(pico_bundles["int4"], output, progress=FullDisk())
    assert not output.exists()
    damaged = bytearray(pico_bundles["int4"].read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (tmp_path / "damaged.tersor").write_bytes(damaged)
    with pytest.raises(BundleCorruptError):
        extract(tmp_path / "damaged.tersor", output)
    assert not output.exists()


def test_a_missing_bundle_is_the_bundle_error(tmp_path: Path) -> None:
    with pytest.raises(BundleNotFoundError):
        extract(tmp_path / "none.tersor", tmp_path / "out")


def test_a_bundle_without_provenance_says_that_it_cannot_be_extracted(tmp_path: Path) -> None:
    program = DecoderProgram(
        family="llama", vocab_size=4, hidden_size=2, intermediate_size=2, num_layers=1, num_heads=1,
        num_kv_heads=1, head_dim=2, max_context=8, norm_eps=1e-5, rope_theta=1e4,
    )  # fmt: skip
    values = torch.ones((4, 2)).numpy()
    with BundleWriter(tmp_path / "b.tersor", program=program, source={}, recipe={}) as writer:
        writer.add_tensor(
            name="embedding", group="embedding", shape=(4, 2), dtype="f32", layout="dense",
            params={}, planes={"values": PlaneData(dtype="f32", array=values)},
        )  # fmt: skip
        writer.commit()
    with pytest.raises(
        BundleFormatError, match="does not say which source tensors it was made from"
    ):
        extract(tmp_path / "b.tersor", tmp_path / "out")
