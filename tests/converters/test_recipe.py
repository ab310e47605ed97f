"""Recipes: what ships, what a file may say, and what each tensor gets."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tersor.bundle.manifest import SourceSlice
from tersor.converters.errors import RecipeError
from tersor.converters.recipe import QuantizeStep, Selector, load_recipe, recipe_names
from tersor.converters.sources.base import Kind, PlannedTensor


def planned(name: str, kind: Kind, shape: tuple[int, ...], source: str = "") -> PlannedTensor:
    slices = (SourceSlice(tensor=source or name, dtype="bf16", shape=shape, rows=shape[0]),)
    return PlannedTensor(name=name, group="g", kind=kind, shape=shape, dtype="bf16", sources=slices)


EMBEDDING = planned("embedding", "embedding", (4096, 256), "model.embed_tokens.weight")
HEAD = planned("head", "linear", (4096, 256), "lm_head.weight")
DOWN = planned("layers.3.down", "linear", (256, 768), "model.layers.3.mlp.down_proj.weight")
NORM = planned("final_norm", "other", (256,), "model.norm.weight")


def layouts_of(recipe_name: str) -> list[str | None]:
    recipe = load_recipe(recipe_name)
    steps = [recipe.plan(tensor).quantize for tensor in (EMBEDDING, HEAD, DOWN, NORM)]
    return [None if step is None else step.method for step in steps]


def test_shipped_recipes() -> None:
    names = "float12 fp8 int4 int6 int8 lossless mxfp4 nf4 pow2 w8a8"
    assert list(recipe_names()) == names.split()
    assert layouts_of("lossless") == [None, None, None, None]
    assert layouts_of("int8") == ["int8", "int8", "int8", None]
    for name in ("int4", "int6", "nf4", "mxfp4", "pow2"):
        assert layouts_of(name) == ["int8", "int8", name, None]
    assert layouts_of("fp8") == ["fp8", "fp8", "fp8", None]
    assert layouts_of("w8a8") == ["int8", "int8", "int8", None]
    for name in recipe_names():
        recipe = load_recipe(name)
        assert recipe.name == name
        assert recipe.description
        assert not recipe.prune
        json.dumps(recipe.to_json())


def test_the_documented_recipe_is_one(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text("utf-8")
    text = page.split("```toml\n")[1].split("```")[0]
    (tmp_path / "documented.toml").write_text(text)
    recipe = load_recipe(str(tmp_path / "documented.toml"))
    assert len(recipe.prune) == 1
    assert [step.method for step in recipe.quantize] == ["keep", "int8", "int4"]
    for key in ("match", "skip", "kinds", "min_elements", "method", "fraction", "keep", "of"):
        assert f"`{key}`" in page
    for name in recipe_names():
        assert f"| `{name}` |" in page


def test_float12_takes_matrices_of_bf16() -> None:
    recipe = load_recipe("float12")
    layouts = [recipe.plan(tensor).layout for tensor in (EMBEDDING, HEAD, DOWN, NORM)]
    assert layouts == ["dense", "float12", "float12", "dense"]
    assert layouts_of("float12") == [None] * 4  # nothing is quantized
    for tensor in (
        replace(DOWN, dtype="f32"),
        replace(DOWN, shape=(64, 64, 3)),
        replace(DOWN, shape=(8, 8)),
    ):
        assert recipe.plan(tensor).layout == "dense"


def test_only_matrices_in_layers_of_w8a8_round_activations() -> None:
    recipe = load_recipe("w8a8")
    steps = [recipe.plan(tensor).quantize for tensor in (EMBEDDING, HEAD, DOWN)]
    activations = [None if step is None else step.activations for step in steps]
    assert activations == ["16-bit", "16-bit", "int8"]


def test_small_matrices_stay_exact() -> None:
    assert load_recipe("int4").plan(planned("w", "linear", (8, 8))).quantize is None


@pytest.mark.parametrize("name", ["lossless", "float12", "int8", "int4", "fp8", "w8a8"])
def test_the_prune_argument_combines_with_every_recipe(name: str) -> None:
    recipe = load_recipe(name, prune="magnitude:0.5")
    assert recipe.name == f"{name}+magnitude:0.5"
    step = recipe.plan(DOWN).prune
    assert step is not None
    assert (step.method, step.fraction) == ("magnitude", 0.5)
    assert recipe.plan(DOWN).quantize == load_recipe(name).plan(DOWN).quantize
    for tensor in (EMBEDDING, HEAD, NORM):
        assert recipe.plan(tensor).prune is None
    pattern = load_recipe(name, prune="2:4").plan(DOWN).prune
    assert pattern is not None
    assert (pattern.method, pattern.keep, pattern.of) == ("pattern", 2, 4)


@pytest.mark.parametrize(
    "text", ["", "0.5", "magnitude", "magnitude:0", "magnitude:1.5", "4:2", "2:2", "0:4", "2:128"]
)
def test_a_wrong_prune_argument_says_what_is_expected(text: str) -> None:
    with pytest.raises(RecipeError, match=r"magnitude:0\.5.*2:4"):
        load_recipe("int8", prune=text)


def test_a_file_decides_by_first_match(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        """
        description = "attention in 8 bits, the rest in 4, the last layers exact"
        [[prune]]
        skip = ["head", "*embed*"]
        method = "pattern"
        keep = 4
        of = 8
        [[quantize]]
        match = ["layers.3.*", "head"]
        method = "keep"
        [[quantize]]
        match = ["*self_attn*"]
        method = "int8"
        [[quantize]]
        kinds = ["linear", "embedding"]
        min_elements = 100
        method = "int4"
        group = 64
        symmetric = true
        """
    )
    recipe = load_recipe(str(path))
    attention = planned("layers.0.qkv", "linear", (8, 8), "model.layers.0.self_attn.q_proj.weight")
    gate = planned("layers.0.gate_up", "linear", (16, 8), "model.layers.0.mlp.gate_proj.weight")
    assert recipe.name == "mine"
    assert recipe.plan(DOWN).quantize is None
    assert recipe.plan(DOWN).prune is not None
    assert recipe.plan(HEAD).prune is None
    by_name = recipe.plan(attention).quantize
    rest = recipe.plan(gate).quantize
    assert by_name is not None
    assert rest is not None
    assert by_name.method == "int8"
    assert (rest.method, rest.group, rest.symmetric) == ("int4", 64, True)
    step = QuantizeStep(where=Selector(), method="int4")
    assert (step.symmetric, step.step, step.outliers) == (None, None, 0.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nonsense", "not valid TOML"),
        ("quantise = 1", "unknown key 'quantise'; allowed are description, prune, quantize"),
        ("description = 3", "description is 3; expected a string"),
        ("[quantize]\nmethod = 'int8'", r"quantize must be a list of tables; write \[\[quantize"),
        ("[[quantize]]\nbits = 4\nmethod = 'int4'", "number 1: unknown key 'bits'; allowed are"),
        ("[[quantize]]\ngroup = 32", "method is missing; expected one of int8, int6, int4"),
        ("[[quantize]]\nmethod = 'int3'", "method is 'int3'; expected one of int8, int6, int4"),
        ("[[quantize]]\nmethod = 'int4'\ngroup = 48", "group is 48; expected one of 0, 16"),
        ("[[quantize]]\nmethod = 'int4'\ngroup = true", "group is True; expected one of"),
        ("[[quantize]]\nmethod = 'int4'\nsymmetric = 1", "symmetric is 1; expected true or false"),
        ("[[quantize]]\nmethod = 'int8'\ngroup = 32", "group means nothing for method 'int8'"),
        ("[[quantize]]\nmethod = 'int8'\nstep = 'group'", "step is 'group'; expected one of row,"),
        ("[[quantize]]\nmethod = 'fp8'\nstep = 'row'", "step means nothing for method 'fp8'"),
        ("[[quantize]]\nmethod = 'fp8'\nblock = 64", "block is 64; expected one of 0, 128"),
        ("[[quantize]]\nmethod = 'int4'\nblock = 128", "block means nothing for method 'int4'"),
        ("[[quantize]]\nmethod = 'int4'\nactivations = 'int8'", "activations means nothing for"),
        (
            "[[quantize]]\nmethod = 'int8'\nactivations = 'fp8'",
            "activations is 'fp8'; expected '16-bit' or 'int8' for method 'int8'",
        ),
        ("[[quantize]]\nmethod = 'int6'\ngroup = 32", "group means nothing for method 'int6'"),
        ("[[quantize]]\nmethod = 'int6'\nstep = 'all'", "step is 'all'; expected one of row,"),
        ("[[quantize]]\nmethod = 'int6'\noutliers = 0.5", "outliers is 0.5; expected a share"),
        ("[[quantize]]\nmethod = 'int6'\noutliers = 1", "outliers is 1; expected a share"),
        (
            "[[quantize]]\nmethod = 'int4'\nstep = 'row'\ngroup = 32",
            "step is 'row' and group 32; a scale is for a group of columns, or",
        ),
        ("[[quantize]]\nmethod = 'mxfp4'\ngroup = 32", "group means nothing for method 'mxfp4'"),
        ("[[quantize]]\nmethod = 'nf4'\nvalues = 'int8'", "values means nothing for method 'nf4'"),
        ("[[quantize]]\nmethod = 'bitmap'\nvalues = 'bf16'", "expected one of exact, int8"),
        ("[[quantize]]\nmethod = 'int8'\nkinds = ['other']", "kinds is .*; expected a list of"),
        ("[[quantize]]\nmethod = 'int8'\nmatch = '*'", "match is '.'; expected a list of globs"),
        (
            "[[quantize]]\nmethod = 'int8'\nmin_elements = -1",
            "min_elements is -1; expected a whole",
        ),
        ("[[prune]]\nmethod = 'magnitude'", "method 'magnitude' needs fraction, a number between"),
        ("[[prune]]\nmethod = 'magnitude'\nfraction = 1.0", "fraction is 1.0; expected a number"),
        ("[[prune]]\nmethod = 'pattern'\nkeep = 2", "method 'pattern' needs of"),
        ("[[prune]]\nmethod = 'pattern'\nkeep = 4\nof = 4", "keep is 4; expected less than of"),
        ("[[quantize]]\nmethod = 'float12'\ngroup = 32", "group means nothing for method"),
        ("[[prune]]\nmethod = 'magnitude'\nfraction = 0.5\nof = 4", "of means nothing for method"),
    ],
)
def test_a_wrong_file_names_key_value_and_what_is_allowed(
    tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=message):
        load_recipe(str(path))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("int5", "no recipe 'int5'; expected float12, fp8, int4, int6, int8, lossless, mxfp4"),
        ("missing.toml", "cannot be read"),
        ("some/folder", "cannot be read"),
    ],
)
def test_an_unknown_recipe_lists_those_that_exist(name: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe(name)
