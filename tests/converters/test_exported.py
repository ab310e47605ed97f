"""`.pt2` files: converted and run without torch's loader; hostile ones refused, never unpickled."""

from __future__ import annotations

import json
import pickle
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from tersor.bundle.program import GraphProgram
from tersor.bundle.reader import BundleReader
from tersor.converters.errors import SourceError, UnsupportedSourceError
from tersor.converters.extract import extract
from tersor.converters.pipeline import convert
from tersor.converters.recipe import load_recipe
from tersor.converters.sources import open_source
from tersor.models.graph import GraphModel
from tersor.models.weights import ResidentWeights

CPU = torch.device("cpu")


class Recommender(nn.Module):
    """An embedding tied to the output, a convolution, a buffer, an expanded constant."""

    shift: Tensor
    wide: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.items = nn.Embedding(90, 64)
        self.mix = nn.Conv1d(64, 64, 3, padding=1)
        self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(2))
        self.register_buffer("shift", torch.randn(64))
        self.register_buffer("wide", torch.randn(64, 1).expand(64, 3))

    def forward(self, history: Tensor) -> dict[str, Tensor]:
        x = self.items(history)
        x = self.mix(x.transpose(1, 2)).transpose(1, 2) + self.shift + self.wide.sum(1)
        for layer in self.layers:
            x = F.gelu(layer(x))
        return {"scores": x.mean(1) @ self.items.weight.T, "states": x}


@pytest.fixture(scope="module")
def model() -> Recommender:
    torch.manual_seed(0)
    return Recommender().eval()


@pytest.fixture(scope="module")
def saved(model: Recommender, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pt2") / "recommender.pt2"
    dims = {0: torch.export.Dim("batch", min=1, max=16), 1: torch.export.Dim("length", min=2)}
    history = torch.randint(0, 90, (2, 7))
    exported = torch.export.export(model, (history,), dynamic_shapes=(dims,))
    with warnings.catch_warnings():
        # The expanded buffer holds only a part of its storage; torch says so.
        warnings.filterwarnings("ignore", "No complete tensor found", UserWarning)
        torch.export.save(exported, path)
    return path


def run(path: Path, history: Tensor) -> dict[str, Tensor]:
    with BundleReader.open(path) as reader:
        program = reader.manifest.program
        assert isinstance(program, GraphProgram)
        weights = ResidentWeights.from_bundle(reader, CPU)
        graph = reader.read_asset(program.graph_asset)
    return GraphModel(program, graph, weights, device=CPU).run({"history": history})


@pytest.mark.parametrize(
    ("recipe", "least"), [("lossless", 0.999999), ("int8", 0.999), ("int4", 0.98)]
)
def test_outputs_equal_the_module(
    model: Recommender, saved: Path, tmp_path: Path, recipe: str, least: float
) -> None:
    convert(saved, tmp_path / "r.tersor", recipe=load_recipe(recipe))
    history = torch.randint(0, 90, (5, 11), generator=torch.Generator().manual_seed(1))
    outputs = run(tmp_path / "r.tersor", history)
    with torch.no_grad():
        expected = model(history)
    assert outputs.keys() == expected.keys()
    for name, value in expected.items():
        assert outputs[name].shape == value.shape
        cosine = F.cosine_similarity(outputs[name].flatten(), value.flatten(), dim=0)
        assert float(cosine) >= least, name
    if recipe == "lossless":
        assert torch.allclose(outputs["scores"], expected["scores"], atol=1e-5)


def test_the_program_and_what_is_compressed(saved: Path, tmp_path: Path) -> None:
    recipe = load_recipe("int4", prune="magnitude:0.5")
    convert(saved, tmp_path / "r.tersor", recipe=recipe)
    with BundleReader.open(tmp_path / "r.tersor") as reader:
        program = reader.manifest.program
        assert isinstance(program, GraphProgram)
        assert [(spec.name, spec.shape) for spec in program.inputs] == [("history", (-1, -1))]
        assert [spec.name for spec in program.outputs] == ["scores", "states"]
        assert program.batch_dim_dynamic
        assert program.max_batch_size == 16
        assert program.text is None
        layouts = {entry.name: entry.layout for entry in reader.manifest.tensors}
    assert layouts["layers.0.weight"] == layouts["layers.1.weight"] == "int4"
    # Read by a transpose, too, so nothing could compute on a compressed one.
    assert layouts["items.weight"] == "dense"
    assert layouts["mix.weight"] == "dense"


def test_extract_gives_the_weights_under_their_names(
    model: Recommender, saved: Path, tmp_path: Path
) -> None:
    convert(saved, tmp_path / "r.tersor", recipe=load_recipe("lossless"))
    extract(tmp_path / "r.tersor", tmp_path / "out")
    back = load_file(tmp_path / "out" / "model.safetensors")
    expected = model.state_dict()
    assert back.keys() == expected.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in expected.items())


class Touch:
    """Unpickling this creates a file: the proof that nothing was unpickled is that none appears."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.path,)


def rebuild(source: Path, target: Path, change: Callable[[str, bytes], bytes | None]) -> None:
    """Copies an archive; `change` gives each entry's new bytes, None leaves it out."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            data = change(name, old.read(name))
            if data is not None:
                new.writestr(name, data)


def edit_json(name_end: str, change: Callable[[Any], None]) -> Callable[[str, bytes], bytes]:
    def edit(name: str, data: bytes) -> bytes:
        if not name.endswith(name_end):
            return data
        values = json.loads(data)
        change(values)
        return json.dumps(values).encode()

    return edit


def test_nothing_is_ever_unpickled(saved: Path, tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    payload = pickle.dumps(Touch(marker))

    def poison(name: str, data: bytes) -> bytes:
        return payload if name.endswith(("sample_inputs/model.pt", "serialization_id")) else data

    rebuild(saved, tmp_path / "samples.pt2", poison)
    convert(tmp_path / "samples.pt2", tmp_path / "r.tersor", recipe=load_recipe("lossless"))

    def mark(values: Any) -> None:
        for entry in values["config"].values():
            entry["use_pickle"] = True

    def poison_weight(name: str, data: bytes) -> bytes:
        edited = edit_json("model_weights_config.json", mark)(name, data)
        return payload if "/data/weights/weight_" in name else edited

    rebuild(saved, tmp_path / "weights.pt2", poison_weight)
    with pytest.raises(UnsupportedSourceError, match="is pickled, which may run code"):
        open_source(tmp_path / "weights.pt2")
    assert not marker.exists()


def weights_entry(key: str, value: Any) -> Callable[[Any], None]:
    def change(values: Any) -> None:
        entry = values["config"]["mix.bias"]
        (entry if key == "path_name" else entry["tensor_meta"])[key] = value

    return change


def expanded(values: Any) -> None:
    meta = values["config"]["mix.bias"]["tensor_meta"]
    meta["sizes"], meta["strides"] = [{"as_int": 1 << 40}], [{"as_int": 0}]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (weights_entry("path_name", "weight_999"), "weight_999, are missing"),
        (weights_entry("path_name", "../models/model.json"), "are missing"),
        (weights_entry("sizes", [{"as_int": 65}]), "64 stored values; its shape .65. needs 65"),
        (weights_entry("sizes", [{"as_int": -1}]), "not a plain dense tensor"),
        (weights_entry("sizes", [{"as_int": 1 << 60}]), "not a plain dense tensor"),
        (weights_entry("sizes", [{"as_expr": "s0"}]), "description of 'mix.bias' is malformed"),
        (weights_entry("strides", [{"as_int": 2}]), "64 stored values"),
        (expanded, "expands 64 stored values to 1099511627776"),
        (weights_entry("strides", []), "not a plain dense tensor"),
        (weights_entry("storage_offset", {"as_int": 1}), "64 stored values"),
        (weights_entry("dtype", 77), "description of 'mix.bias' is malformed"),
        (weights_entry("dtype", 6), "'mix.bias' is torch.float16 .64., the graph needs"),
        (weights_entry("layout", 1), "not a plain dense tensor"),
        (lambda values: values["config"].pop("mix.bias"), "mix.bias"),
        (lambda values: values.pop("config"), "has no object called config"),
    ],
)
def test_descriptions_that_contradict_the_bytes(
    saved: Path, tmp_path: Path, change: Callable[[Any], None], message: str
) -> None:
    rebuild(saved, tmp_path / "x.pt2", edit_json("model_weights_config.json", change))
    with pytest.raises(SourceError, match=message):
        open_source(tmp_path / "x.pt2")


def first_node(values: Any) -> Any:
    return values["graph_module"]["graph"]["nodes"][-1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda values: first_node(values).update(target="os.system"), "os.system"),
        (lambda values: values.pop("graph_module"), "not a program that torch.export.save wrote"),
        (lambda values: values["graph_module"].update(graph=7), "not a program that"),
        (lambda values: values["schema_version"].update(major=99), "schema is 99"),
        (lambda values: values["graph_module"]["graph"]["nodes"].clear(), "cannot be"),
        (lambda values: values["graph_module"]["module_call_graph"].clear(), "not a program that"),
    ],
)
def test_programs_that_are_not_what_they_seem(
    saved: Path, tmp_path: Path, change: Callable[[Any], None], message: str
) -> None:
    rebuild(saved, tmp_path / "x.pt2", edit_json("models/model.json", change))
    with pytest.raises(SourceError, match=message):
        open_source(tmp_path / "x.pt2")


def test_files_that_are_no_archives(saved: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.pt2"
    for data in (b"", b"PK", saved.read_bytes()[:5000], b"\x80\x02" + pickle.dumps({})):
        path.write_bytes(data)
        with pytest.raises(SourceError, match=r"not a readable \.pt2 archive"):
            open_source(path)
    rebuild(saved, path, lambda name, data: None if name.endswith("model.json") else data)
    with pytest.raises(SourceError, match="holds 0 programs"):
        open_source(path)
    rebuild(saved, path, lambda name, data: b"{" if name.endswith("model.json") else data)
    with pytest.raises(SourceError, match="is not readable JSON"):
        open_source(path)


def test_a_compressed_weight_is_refused(saved: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.pt2"
    with zipfile.ZipFile(saved) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name), zipfile.ZIP_DEFLATED)
    with pytest.raises(UnsupportedSourceError, match="is compressed or encrypted"):
        open_source(path)


class Nested(nn.Module):
    """Returns tensors inside a tuple inside a dict."""

    def forward(self, x: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        return {"pair": (x + 1, x * 2)}


class Pair(nn.Module):
    """Returns a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x + 1, x * self.scale


def test_outputs_are_named_or_refused(tmp_path: Path) -> None:
    example = (torch.ones(3),)
    torch.export.save(torch.export.export(Nested(), example), tmp_path / "nested.pt2")
    with pytest.raises(UnsupportedSourceError, match="nested structure; wrap the module"):
        open_source(tmp_path / "nested.pt2")
    torch.export.save(torch.export.export(Pair(), example), tmp_path / "pair.pt2")
    source = open_source(tmp_path / "pair.pt2")
    assert isinstance(source.program, GraphProgram)
    assert [spec.name for spec in source.program.outputs] == ["output_0", "output_1"]
    assert not source.program.batch_dim_dynamic

    def halve(values: Any) -> None:  # this program is not run when it is opened
        values["config"]["scale"]["tensor_meta"]["dtype"] = 6

    edit = edit_json("model_weights_config.json", halve)
    rebuild(tmp_path / "pair.pt2", tmp_path / "wrong.pt2", edit)
    with pytest.raises(SourceError, match=r"scale is f16 \[\], the program needs f32"):
        open_source(tmp_path / "wrong.pt2")
    convert(tmp_path / "pair.pt2", tmp_path / "p.tersor", recipe=load_recipe("int8"))
    extract(tmp_path / "p.tersor", tmp_path / "out")
    assert float(load_file(tmp_path / "out" / "model.safetensors")["scale"]) == 2.0
