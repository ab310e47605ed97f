"""The whole conversion of a real model: sizes, certificate, determinism, refusals."""

from __future__ import annotations

import json
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tersor.bundle.manifest import SourceSlice
from tersor.bundle.reader import BundleReader
from tersor.bundle.verify import verify
from tersor.converters.errors import DestinationError, RecipeError, SourceError
from tersor.converters.pipeline import convert
from tersor.converters.recipe import load_recipe
from tersor.converters.sources.checkpoint import Checkpoint

SOURCE_BYTES = 14_688_768


class Recorder:
    """A progress watcher that remembers."""

    def __init__(self) -> None:
        self.events: list[tuple[str, int, int]] = []

    def update(self, *, item: str, done_bytes: int, total_bytes: int) -> None:
        self.events.append((item, done_bytes, total_bytes))


def test_sizes_fall_from_recipe_to_recipe(pico_bundles: Mapping[str, Path]) -> None:
    size = {name: path.stat().st_size / SOURCE_BYTES for name, path in pico_bundles.items()}
    assert size["lossless"] < 0.69
    assert size["float12"] == pytest.approx(size["lossless"], rel=1e-3)  # the same planes
    assert size["int8"] < 0.50
    assert size["int4"] < 0.33


def test_the_codec_pays_for_zeros(pico_bundles: Mapping[str, Path]) -> None:
    size = {name: path.stat().st_size for name, path in pico_bundles.items()}
    assert size["int8-pruned"] < 0.75 * size["int8"]
    assert size["int4-pruned"] < 0.80 * size["int4"]
    assert size["lossless-2:4"] < 0.80 * size["lossless"]


def test_pruned_weights_are_exact_zeros_in_the_bundle(pico_bundles: Mapping[str, Path]) -> None:
    with BundleReader.open(pico_bundles["int8-pruned"]) as reader:
        entry = reader.manifest.tensor("layers.4.down")
        codes = reader.read_plane(entry.plane("codes"))
        assert (codes == 0).mean() >= 0.5
        certificate = reader.manifest.certificate
        assert certificate is not None
        tensors = {tensor["name"]: tensor for tensor in certificate["tensors"]}
        assert tensors["layers.4.down"]["zeros"] == 0.5
        assert "zeros" not in tensors["embedding"]
    with BundleReader.open(pico_bundles["int4-pruned"]) as reader:
        entry = reader.manifest.tensor("layers.4.down")
        assert entry.params == {"group": 32, "symmetric": True}
        assert (reader.read_plane(entry.plane("codes")) == 8).mean() >= 0.5
    with BundleReader.open(pico_bundles["int4"]) as reader:
        assert reader.manifest.tensor("layers.4.down").params["symmetric"] is False
    with BundleReader.open(pico_bundles["lossless-2:4"]) as reader:
        values = reader.read_plane(reader.manifest.tensor("layers.4.down").plane("values"))
        blocks = (values.reshape(256, -1, 4) & 0x7FFF) != 0
        assert (blocks.sum(-1) <= 2).all()


def test_a_bundle_is_whole_and_says_what_it_is(pico_bundles: Mapping[str, Path]) -> None:
    for name, path in pico_bundles.items():
        assert verify(path).ok, name
    with BundleReader.open(pico_bundles["int4"]) as reader:
        manifest = reader.manifest
        layouts = {entry.name: entry.layout for entry in manifest.tensors}
        assert layouts["embedding"] == "int8"
        assert layouts["layers.0.qkv"] == "int4"
        assert layouts["final_norm"] == "dense"
        assert [group.name for group in manifest.groups] == list(manifest.program.groups)  # type: ignore[union-attr]
        assert manifest.recipe["name"] == "int4"
        assert manifest.source["model_type"] == "llama"
        assert len(manifest.source["files_digest"]) == 64
        assert json.loads(reader.read_asset("config.json"))["model_type"] == "llama"
        assert reader.read_asset("tokenizer.json")


def test_the_certificate_holds_measured_errors(pico_bundles: Mapping[str, Path]) -> None:
    worst = {}
    for name in ("lossless", "int8", "int4"):
        with BundleReader.open(pico_bundles[name]) as reader:
            certificate = reader.manifest.certificate
            assert certificate is not None
            worst[name] = certificate["max_relative_error"]
            by_name = {tensor["name"]: tensor for tensor in certificate["tensors"]}
            assert len(by_name) == len(reader.manifest.tensors)
            qkv = by_name["layers.2.qkv"]
        if name == "int4":
            assert 4 < qkv["bits_per_weight"] < 5
            assert 20 < qkv["sqnr_db"] < 25
    assert worst["lossless"] == 0
    assert worst["int8"] < 0.012
    assert worst["int4"] < 0.1


@pytest.mark.parametrize("codec", ["auto", "zstd"])
def test_the_same_input_gives_the_same_bytes(pico: Path, tmp_path: Path, codec: str) -> None:
    recipe = load_recipe("int4", prune="magnitude:0.3")
    first = convert(pico, tmp_path / "a.tersor", recipe=recipe, codec=codec)
    second = convert(pico, tmp_path / "b.tersor", recipe=recipe, codec=codec)
    assert first.digest == second.digest
    assert (tmp_path / "a.tersor").read_bytes() == (tmp_path / "b.tersor").read_bytes()


def test_progress_counts_every_source_byte(pico: Path, tmp_path: Path) -> None:
    recorder = Recorder()
    report = convert(pico, tmp_path / "p.tersor", recipe=load_recipe("int8"), progress=recorder)
    done = [event[1] for event in recorder.events]
    assert done == sorted(done)
    assert recorder.events[0] == ("embedding", 0, SOURCE_BYTES)
    assert recorder.events[-1] == ("final_norm", SOURCE_BYTES, SOURCE_BYTES)
    assert {item for item, _done, _total in recorder.events} == {t.name for t in report.tensors}
    assert report.source_bytes == 14_696_792
    assert report.bundle_bytes == (tmp_path / "p.tersor").stat().st_size
    assert report.ratio == report.bundle_bytes / report.source_bytes


def test_an_existing_bundle_is_replaced_only_by_force(pico: Path, tmp_path: Path) -> None:
    out = tmp_path / "p.tersor"
    out.write_bytes(b"precious")
    recipe = load_recipe("lossless")
    with pytest.raises(DestinationError, match="exists"):
        convert(pico, out, recipe=recipe)
    assert out.read_bytes() == b"precious"
    convert(pico, out, recipe=recipe, force=True)
    assert verify(out).ok


def test_a_destination_that_cannot_be_written_is_refused(pico: Path, tmp_path: Path) -> None:
    recipe = load_recipe("lossless")
    with pytest.raises(DestinationError, match="is a folder"):
        convert(pico, tmp_path, recipe=recipe)
    with pytest.raises(DestinationError, match="does not exist; create it first"):
        convert(pico, tmp_path / "missing" / "p.tersor", recipe=recipe)


def test_force_does_not_overwrite_the_source(pico: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for path in pico.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    with pytest.raises(DestinationError, match="is a part of the source"):
        convert(folder, folder / "model.safetensors", recipe=load_recipe("int8"), force=True)
    assert (folder / "model.safetensors").stat().st_size == 14_696_792
    convert(folder, folder / "p.tersor", recipe=load_recipe("int8"))
    convert(folder, folder / "p.tersor", recipe=load_recipe("int8"), force=True)


def test_a_failed_conversion_leaves_nothing_behind(pico: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for path in pico.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.7.mlp.up_proj.weight"][3, 5] = float("nan")
    save_file(tensors, folder / "model.safetensors")
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(SourceError, match=r"layers\.7\.gate_up holds NaN or infinite"):
        convert(folder, out / "p.tersor", recipe=load_recipe("int8"))
    assert list(out.iterdir()) == []
    convert(folder, out / "p.tersor", recipe=load_recipe("lossless"))  # exact keeps even NaN


def test_one_tensor_is_in_memory_at_a_time(
    pico: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: list[weakref.ref[Tensor]] = []
    most = 0
    stack = Checkpoint.stack

    def counting(self: Checkpoint, sources: Sequence[SourceSlice], dtype: str) -> Tensor:
        nonlocal most
        value = stack(self, sources, dtype)
        alive.append(weakref.ref(value))
        most = max(most, sum(reference() is not None for reference in alive))
        return value

    monkeypatch.setattr(Checkpoint, "stack", counting)
    convert(pico, tmp_path / "p.tersor", recipe=load_recipe("int4"))
    assert len(alive) == 50
    assert most == 1


def test_a_recipe_that_does_not_fit_the_model_says_so(pico: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="int5"):
        convert(pico, tmp_path / "p.tersor", recipe=load_recipe("int5"))


def test_bf16_ties_do_not_disturb_the_share_of_zeros(
    pico: Path, pico_bundles: Mapping[str, Path]
) -> None:
    with BundleReader.open(pico_bundles["int8-pruned"]) as reader:
        entry = reader.manifest.tensor("layers.0.o")
        codes = torch.from_numpy(reader.read_plane(entry.plane("codes")))
    weight = load_file(pico / "model.safetensors")["model.layers.0.self_attn.o_proj.weight"]
    kept = weight.float().abs()[codes != 0]
    assert kept.numel() <= weight.numel() // 2
    assert kept.min() >= weight.float().abs().flatten().kthvalue(weight.numel() // 2).values
