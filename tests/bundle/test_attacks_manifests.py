"""Hostile manifests with valid digests, numbered on from the hostile files.

10  duplicate keys, NaN, infinities, huge integers   16  shapes that overflow
11  depth, surrogates, not UTF-8, not JSON           17  planes that share chunks in part
12  wrong types and ranges in every field            18  streams and filters that do not fit
13  unknown and missing fields                       19  asset names that leave their folder
14  names that repeat or mislead                     20  symbols outside their dtype
15  references to nothing
"""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_bundles import (
    Json,
    add,
    chunk_of,
    forge,
    forge_text,
    graph_program,
    manifest_text,
    read_all,
    refuses,
    symbols,
    writer,
)

from tersor.bundle.errors import (
    BundleCorruptError,
    BundleError,
    BundleFormatError,
)
from tersor.bundle.manifest_json import manifest_from_json
from tersor.bundle.reader import BundleReader
from tersor.bundle.verify import verify


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b'{"producer":', b'{"producer":"x","producer":', "'producer' appears twice"),
        (b'"group":0', b'"group":0,"group":1', "'group' appears twice"),
        (b'"kl":0.0', b'"kl":NaN', "NaN is not JSON"),
        (b'"kl":0.0', b'"kl":-Infinity', "-Infinity is not JSON"),
        (b'"kl":0.0', b'"kl":1e999', "certificate of the manifest holds inf"),
        (b'"norm_eps":1e-05', b'"norm_eps":1e999', "norm_eps of the program is inf"),
        (b'"kl":0.0', b'"kl":' + b"9" * 5000, "not valid JSON"),
        (b'"kl":0.0', b'"kl":' + b"9" * 100, "an integer beyond 64 bits"),
        (b'"vocab_size":64', b'"vocab_size":' + b"9" * 400, "is an integer of 1329 bits"),
        (b'"norm_eps":1e-05', b'"norm_eps":' + b"9" * 400, "is an integer of 1329 bits"),
    ],
)
def test_10_loose_json(bundle: Path, old: bytes, new: bytes, message: str) -> None:
    forge_text(bundle, lambda text: _replaced(text, old, new))
    refuses(bundle, message)


def _replaced(text: bytes, old: bytes, new: bytes) -> bytes:
    assert old in text
    return text.replace(old, new, 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"[" * 100_000 + b"]" * 100_000, "nested too deep"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "nested too deep"),
        (b"", "not valid JSON"),
        (b"{}", "has no field"),
        (b"[]", "is an array; expected an object"),
        (b"null", "is null; expected an object"),
        (b'{"planes": "\xff"}', "not UTF-8"),
        (b"\xef\xbb\xbf{}", "not valid JSON"),
        (b'{"a": "\\ud800"}', "escapes a surrogate"),
        (b'{"a": "\\\\\\uDFFF"}', "escapes a surrogate"),
        (b"{} {}", "not valid JSON"),
        (b'{"planes": [], }', "not valid JSON"),
    ],
)
def test_11_text_that_is_not_a_manifest(bundle: Path, text: bytes, message: str) -> None:
    forge_text(bundle, lambda _: text or b" ")
    refuses(bundle, message)


def test_11_an_escaped_backslash_before_u_is_no_surrogate(bundle: Path) -> None:
    forge_text(bundle, lambda text: _replaced(text, b'"lossless"', b'"C:\\\\ud800"'))
    with BundleReader.open(bundle) as reader:
        assert reader.manifest.recipe["name"] == "C:\\ud800"


def test_11_deep_free_json(bundle: Path) -> None:
    deep: Any = 1
    for _ in range(40):
        deep = [deep]
    forge(bundle, lambda value: value["recipe"].update(deep=deep))
    refuses(bundle, "recipe of the manifest is nested deeper than 32 levels")


def _leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths to every value of the parts whose structure the format fixes."""
    paths = [path] if path else []
    if path and path[0] in {"recipe", "source", "certificate"}:
        return []
    if isinstance(value, dict):
        for key, item in value.items():
            paths += _leaves(item, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value[:2]):
            paths += _leaves(item, (*path, index))
    return paths


def _get(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        value = value[key]
    return value


WRONG: list[Any] = [
    None, True, -1, 0, 1, 1 << 70, 0.5, "", "x", "\u0007", "f" * 64, [], [None], {}, {"x": 1},
]  # fmt: skip


def test_12_any_value_replaced_by_any_other(bundle: Path) -> None:
    """Either refused with a BundleError, or a manifest that says nothing impossible."""
    text, footer = manifest_text(bundle.read_bytes())
    original = json.loads(text)
    refused = accepted = 0
    for path in _leaves(original):
        for wrong in WRONG:
            value = json.loads(text)
            if _get(value, path) == wrong and type(_get(value, path)) is type(wrong):
                continue
            _get(value, path[:-1])[path[-1]] = wrong
            forged = json.dumps(value).encode()
            try:
                manifest_from_json(forged, data_end=footer.manifest_offset)
                accepted += 1
                # Free choices: names, digests, parameters, the program's numbers within their
                # ranges, and sizes that only the data itself can contradict.
                assert path[-1] not in {"offset", "filter", "codec", "rows_per_chunk", "plane"}
            except BundleError:
                refused += 1
    assert refused > 1500
    assert accepted < refused / 10


def test_13_unknown_and_missing_fields(bundle: Path) -> None:
    text, footer = manifest_text(bundle.read_bytes())
    objects = [
        path
        for path in [(), *_leaves(json.loads(text))]
        if isinstance(_get(json.loads(text), path), dict) and path[-1:] != ("params",)
    ]
    assert len(objects) > 15
    for path in objects:
        value = json.loads(text)
        _get(value, path)["surprise"] = 1
        if path not in [("recipe",), ("source",), ("certificate",)]:
            with pytest.raises(BundleFormatError, match=r"unknown fields: 'surprise'"):
                manifest_from_json(json.dumps(value).encode(), data_end=footer.manifest_offset)
        for key in _get(json.loads(text), path):
            value = json.loads(text)
            del _get(value, path)[key]
            with pytest.raises(BundleFormatError, match=r"has no field"):
                manifest_from_json(json.dumps(value).encode(), data_end=footer.manifest_offset)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v["tensors"][1].update(name="embedding"), "tensors has 'embedding' twice"),
        (lambda v: v["tensors"][1]["planes"][1].update(name="codes"), "has 'codes' twice"),
        (lambda v: v["groups"][1].update(name="embedding"), "groups has 'embedding' twice"),
        (lambda v: v["assets"][1].update(name="tokenizer.json"), "has 'tokenizer.json' twice"),
        (lambda v: v["tensors"][2]["sources"][0].update(tensor="embedding"), "'embedding' twice"),
        (lambda v: v["tensors"][0].update(aliases=["head"]), "'head' twice"),
        (lambda v: v["tensors"][0].update(aliases=["a", "a"]), "has 'a' twice"),
        (lambda v: v["tensors"][0].update(name="a\x1b[31m"), "expected printable characters"),
        (lambda v: v["tensors"][0].update(name="a" * 513), "expected at most 512"),
        (lambda v: v["assets"][1].update(name="tokenizer.json/x"), "is also the folder of"),
    ],
)
def test_14_names(bundle: Path, change: Callable[[Json], object], message: str) -> None:
    forge(bundle, change)
    refuses(bundle, message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v["tensors"][0]["planes"][0].update(plane=99), "there are 6 planes"),
        (lambda v: v["tensors"][0]["planes"][0].update(plane=1), "in the order of their first"),
        (lambda v: v["tensors"].pop(1), "in the order of their first use"),
        (lambda v: v["tensors"][-2:-1].clear() or v["tensors"].pop(4), "belongs to no tensor"),
        (lambda v: v["groups"][0].update(tensors=["none"]), "'none', which is no tensor"),
        (lambda v: v["groups"][0].update(tensors=[]), "'embedding' is empty"),
        (lambda v: v["groups"].pop(), "tensor 'head' is in no group"),
        (lambda v: v["groups"][0]["tensors"].append("head"), "'head' is in the groups"),
        (lambda v: v["tensors"][0]["sources"][0].update(rows=7), "cover 7 rows of 8"),
    ],
)
def test_15_references(bundle: Path, change: Callable[[Json], object], message: str) -> None:
    forge(bundle, change)
    refuses(bundle, message)


def test_15_a_graph_without_its_asset(bundle: Path) -> None:
    program = {
        "kind": "graph", "graph_asset": "graph.json", "schema_version": [8, 1],
        "torch_version": "2", "inputs": [], "group_order": [], "batch_dim_dynamic": False,
        "outputs": [{"name": "y", "dtype": "f32", "shape": []}], "max_batch_size": 1, "text": None,
    }  # fmt: skip
    forge(bundle, lambda value: value.update(program=program))
    refuses(bundle, "asset 'graph.json', which the bundle does not have")


def test_15_a_group_order_of_other_groups(tmp_path: Path) -> None:
    path = tmp_path / "x.tersor"
    with writer(path, program=graph_program()) as target:
        target.add_asset("graph.json", b"{}", "application/json")
        add(target, "w", "u8", symbols("u8", (3,)), group="g")
        target.commit()
    forge(path, lambda value: value["program"].update(group_order=["g", "h"]))
    refuses(path, "lists other groups than the bundle has: h")


@pytest.mark.parametrize(
    "shape",
    [
        [1 << 40, 1 << 40],
        [1 << 40] * 16,
        [1 << 31, 1 << 31],
        [8, 16] + [1] * 15,
        [1 << 41],
        [-8, -16],
        [8.0, 16],
    ],
)
def test_16_shapes_that_overflow(bundle: Path, shape: list[Any]) -> None:
    forge(bundle, lambda value: value["planes"][0].update(shape=shape))
    tracemalloc.start()
    with pytest.raises(BundleError):
        read_all(bundle)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5 << 20


def test_17_planes_that_share_chunks(bundle: Path) -> None:
    def repeated(value: Json) -> None:
        value["planes"].append(value["planes"][0])
        value["tensors"][-1]["planes"][0]["plane"] = len(value["planes"]) - 1

    def overlapping(value: Json) -> None:
        first = chunk_of(value)
        chunk_of(value, 0, 1)["offset"] = first["offset"] + 1

    def shortened(value: Json) -> None:
        first = chunk_of(value)
        value["planes"][0]["streams"][1]["chunks"] = [
            {**first, "stored_bytes": first["stored_bytes"] - 1}
        ]

    data = bundle.read_bytes()
    forge(bundle, repeated)
    refuses(bundle, "plane 6 repeats the digest, dtype and shape of plane 0")
    bundle.write_bytes(data)
    for part in (overlapping, shortened):
        forge(bundle, part)
        refuses(bundle, "overlaps the one before it")
        bundle.write_bytes(data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v["planes"][0].update(filter="nibbles"), "nibbles, which does not split bf16"),
        (lambda v: v["planes"][0].update(filter="none"), "other streams than its filter none"),
        (lambda v: v["planes"][0].update(filter="delta"), "expected one of none, float_split"),
        (lambda v: v["planes"][0]["streams"].pop(), "other streams than its filter"),
        (lambda v: v["planes"][0]["streams"].reverse(), "other streams than its filter"),
        (lambda v: v["planes"][0]["streams"].clear(), "other streams than its filter"),
        (lambda v: v["planes"][0]["streams"][0]["chunks"].clear(), "has 0, 1 chunks"),
        (lambda v: chunk_of(v).update(codec="pickle"), "is 'pickle'; expected one of raw"),
        (lambda v: chunk_of(v, 0, 1).update(codec="lz4", raw_bytes=128), "damaged|decode"),
        (lambda v: chunk_of(v).update(checksum="0" * 15), "expected 16 lowercase hexadecimal"),
        (lambda v: chunk_of(v).update(checksum="G" * 16), "expected 16 lowercase hexadecimal"),
    ],
)
def test_18_streams_and_filters(
    bundle: Path, change: Callable[[Json], object], message: str
) -> None:
    forge(bundle, change)
    refuses(bundle, message, BundleError)


@pytest.mark.parametrize(
    "name", ["../x", "/x", "a/../x", "a/./x", "a\\x", "C:x", ".x", "a/.x", "x/", "a//x", "ä"]
)
def test_19_asset_names(bundle: Path, name: str) -> None:
    forge(bundle, lambda value: value["assets"][1].update(name=name))
    refuses(bundle, "is not a plain relative path")


@pytest.mark.parametrize("dtype", ["bool", "u4"])
def test_20_symbols_outside_their_dtype(tmp_path: Path, dtype: str) -> None:
    path = tmp_path / "x.tersor"
    with writer(path, codec="raw") as target:
        add(target, "w", "u8", np.full((4, 4), 200, np.uint8))
        target.commit()
    forge(path, lambda value: value["planes"][0].update(dtype=dtype))
    refuses(path, "a symbol is 200, expected at most", BundleCorruptError)
    assert [damage.kind for damage in verify(path).damages] == ["chunk"]
