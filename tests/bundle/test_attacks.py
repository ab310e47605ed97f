"""Hostile bundles, numbered: each ends in a BundleError, quickly, without a large allocation.

 1  cut off at any length                        11  depth, surrogates, not UTF-8, not JSON
 2  any byte flipped                             12  wrong types and ranges in every field
 3  bytes appended or put before                 13  unknown and missing fields
 4  another version, unknown flags               14  names that repeat or mislead
 5  a footer that lies about places and sizes    15  references to nothing
 6  a manifest that is a decompression bomb      16  shapes that overflow
 7  chunks that overlap, or hide in holes        17  planes that share chunks in part
 8  raw sizes that contradict the shape          18  streams and filters that do not fit
 9  chunks that are decompression bombs          19  asset names that leave their folder
10  duplicate keys, NaN, infinities, huge ints   20  symbols outside their dtype
"""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_bundles import (
    add,
    forge,
    forge_text,
    graph_program,
    manifest_text,
    read_all,
    symbols,
    write_tiny,
    writer,
)

from tersor.bundle import limits
from tersor.bundle.container import FOOTER_BYTES, HEADER_BYTES, Footer
from tersor.bundle.digests import checksum, digest_bytes
from tersor.bundle.errors import (
    BundleCorruptError,
    BundleError,
    BundleFormatError,
    BundleLimitError,
    BundleTruncatedError,
)
from tersor.bundle.manifest_json import manifest_from_json
from tersor.bundle.reader import BundleReader
from tersor.bundle.verify import verify

Json = dict[str, Any]


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    path = tmp_path / "x.tersor"
    write_tiny(path)
    return path


def _refuses(path: Path, message: str, kind: type[BundleError] = BundleFormatError) -> None:
    with pytest.raises(kind, match=message):
        read_all(path)


def test_01_cut_off_at_any_length(bundle: Path) -> None:
    data = bundle.read_bytes()
    places = {
        chunk["offset"] + extra
        for plane in json.loads(manifest_text(data)[0])["planes"]
        for stream in plane["streams"]
        for chunk in stream["chunks"]
        for extra in (-1, 0, 1, chunk["stored_bytes"])
    }
    lengths = {*range(200), *places, *range(0, len(data), 97), *range(len(data) - 200, len(data))}
    for length in sorted(lengths, reverse=True):
        with bundle.open("r+b") as file:
            file.truncate(length)
        if length == 0:
            _refuses(bundle, "not a bundle: it starts with nothing")
        else:
            _refuses(bundle, "truncated", BundleTruncatedError)


def test_02_any_byte_flipped(bundle: Path) -> None:
    data = bundle.read_bytes()
    content = read_all(bundle)
    text, footer = manifest_text(data)
    value = json.loads(text)
    chunks = [
        chunk
        for plane in value["planes"]
        for stream in plane["streams"]
        for chunk in stream["chunks"]
    ]
    chunks += [asset["chunk"] for asset in value["assets"]]
    used = {*range(HEADER_BYTES), *range(footer.manifest_offset, len(data))}
    for chunk in chunks:
        used.update(range(chunk["offset"], chunk["offset"] + chunk["stored_bytes"]))
    padding = sorted(set(range(len(data))) - used)
    with bundle.open("r+b", buffering=0) as file:
        for offset in sorted([*used, *padding[::500]]):
            file.seek(offset)
            file.write(bytes([data[offset] ^ (1 << offset % 8)]))
            if offset in used:
                with pytest.raises(BundleError):
                    read_all(bundle)
            else:
                # Nothing reads padding but verification.
                assert read_all(bundle) == content
                assert [damage.kind for damage in verify(bundle).damages] == ["padding"]
            file.seek(offset)
            file.write(data[offset : offset + 1])
    assert read_all(bundle) == content


def test_03_bytes_appended_or_put_before(bundle: Path) -> None:
    data = bundle.read_bytes()
    bundle.write_bytes(data + b"\0")
    _refuses(bundle, "does not end as one", BundleTruncatedError)
    bundle.write_bytes(data + data)
    _refuses(bundle, f"has {2 * len(data)} bytes, but its footer says {len(data)}")
    bundle.write_bytes(b"PK" + data)
    _refuses(bundle, "not a bundle: it starts with 50 4b 89")


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [
        (8, 2, "format version 2; this build reads version 1, so update"),
        (12, 1, "flags 0x1"),
        (63, 1, "reserved bytes"),
        (-16, 2, "footer has version 2"),
        (-12, 1, "reserved field 1"),
    ],
)
def test_04_another_version_or_unknown_flags(
    bundle: Path, offset: int, value: int, message: str
) -> None:
    data = bytearray(bundle.read_bytes())
    data[offset] = value
    bundle.write_bytes(data)
    _refuses(bundle, message)


@pytest.mark.parametrize(
    ("changes", "message", "kind"),
    [
        ({"manifest_offset": 0}, "does not end at the footer", BundleFormatError),
        ({"manifest_offset": 1 << 63}, "does not end at the footer", BundleFormatError),
        ({"manifest_stored_bytes": 0}, "does not end at the footer", BundleFormatError),
        ({"manifest_stored_bytes": (1 << 64) - 1}, "this build reads at most", BundleLimitError),
        ({"manifest_raw_bytes": (1 << 64) - 1}, "this build reads at most", BundleLimitError),
        ({"manifest_raw_bytes": 1 << 27}, "cannot hold|declares", BundleError),
        ({"manifest_raw_bytes": 5}, "declares", BundleCorruptError),
        ({"file_bytes": 1 << 62}, "of 4611686018427387904; copy it again", BundleTruncatedError),
        ({"file_bytes": 1}, "its footer says 1", BundleFormatError),
    ],
)
def test_05_a_lying_footer(
    bundle: Path, changes: dict[str, int], message: str, kind: type[BundleError]
) -> None:
    data = bundle.read_bytes()
    footer = Footer.unpack(data[-FOOTER_BYTES:], len(data))
    fields: dict[str, Any] = {name: getattr(footer, name) for name in Footer.__dataclass_fields__}
    bundle.write_bytes(data[:-FOOTER_BYTES] + Footer(**{**fields, **changes}).pack())
    _refuses(bundle, message, kind)


def test_06_a_manifest_that_is_a_bomb(bundle: Path) -> None:
    data = bundle.read_bytes()
    _, footer = manifest_text(data)
    bomb = zstandard.ZstdCompressor(level=1).compress(bytes(200 << 20))
    forged = Footer(
        manifest_offset=footer.manifest_offset,
        manifest_stored_bytes=len(bomb),
        manifest_raw_bytes=1000,
        file_bytes=footer.manifest_offset + len(bomb) + FOOTER_BYTES,
        manifest_digest=bytes.fromhex(digest_bytes(bomb)),
    )
    bundle.write_bytes(data[: footer.manifest_offset] + bomb + forged.pack())
    tracemalloc.start()
    _refuses(bundle, "declares 209715200 raw bytes, expected 1000", BundleCorruptError)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5 << 20


def test_06_a_manifest_of_too_many_values(bundle: Path) -> None:
    forge_text(bundle, lambda _: b"[" + b"[]," * (limits.MAX_MANIFEST_VALUES // 2) + b"[]]")
    _refuses(bundle, "JSON values; this build reads at most", BundleLimitError)


def _chunk(value: Json, plane: int = 0, stream: int = 0, index: int = 0) -> Json:
    chunk: Json = value["planes"][plane]["streams"][stream]["chunks"][index]
    return chunk


def _move(places: dict[tuple[int, int], int]) -> Callable[[Json], None]:
    def change(value: Json) -> None:
        for (plane, stream), shift in places.items():
            _chunk(value, plane, stream)["offset"] += shift

    return change


@pytest.mark.parametrize(
    ("places", "message"),
    [
        ({(0, 0): -1}, "overlaps the one before it; expected offset 4096"),
        ({(0, 1): -1}, "overlaps the one before it"),
        ({(0, 1): 1}, "leaves a hole"),
        ({(1, 0): 4096}, "leaves a hole"),
        ({(1, 0): -4096}, "overlaps the one before it"),
    ],
)
def test_07_overlaps_and_holes(
    bundle: Path, places: dict[tuple[int, int], int], message: str
) -> None:
    forge(bundle, _move(places))
    _refuses(bundle, message)


def test_07_bytes_that_belong_to_no_chunk(bundle: Path) -> None:
    forge(bundle, lambda value: value["assets"].pop())
    _refuses(bundle, "bytes before the manifest belong to no chunk")


def test_07_a_chunk_beyond_the_data(bundle: Path) -> None:
    forge(bundle, lambda value: _asset(value, 1).update(stored_bytes=1 << 40))
    _refuses(bundle, "cannot hold|beyond the manifest")
    forge(bundle, lambda value: _asset(value, 1).update(raw_bytes=limits.MAX_ASSET_RAW_BYTES + 1))
    _refuses(bundle, "raw bytes; this build reads at most", BundleLimitError)


def _asset(value: Json, index: int) -> Json:
    chunk: Json = value["assets"][index]["chunk"]
    return chunk


@pytest.mark.parametrize("raw_bytes", [1, 127, 129, 1 << 30])
def test_08_raw_sizes_that_contradict_the_shape(bundle: Path, raw_bytes: int) -> None:
    forge(bundle, lambda value: _chunk(value).update(raw_bytes=raw_bytes))
    _refuses(bundle, f"declares {raw_bytes} raw bytes; its rows make 128")


def test_08_rows_per_chunk_that_contradicts_the_chunks(bundle: Path) -> None:
    forge(bundle, lambda value: value["planes"][0].update(rows_per_chunk=3))
    _refuses(bundle, "has 1, 1 chunks; its shape and rows_per_chunk make 3")


def test_08_a_shape_larger_than_its_chunks(bundle: Path) -> None:
    forge(bundle, lambda value: value["planes"][0].update(shape=[8, 1 << 20], rows_per_chunk=8))
    _refuses(bundle, "declares 128 raw bytes; its rows make 8388608")


def test_09_a_chunk_that_is_a_bomb(bundle: Path) -> None:
    # 16 stored bytes that claim to be a gigabyte: more than zstd can ever hold.
    def change(value: Json) -> None:
        asset = _asset(value, 1)
        asset.update(raw_bytes=asset["stored_bytes"] * (1 << 15) + 1, codec="zstd")

    forge(bundle, change)
    _refuses(bundle, "cannot hold 131073 raw bytes in 4 bytes of zstd")


def test_09_a_chunk_that_decodes_to_more_than_it_declares(tmp_path: Path) -> None:
    path = tmp_path / "x.tersor"
    bomb = zstandard.ZstdCompressor(level=1).compress(bytes(100 << 20))
    with writer(path) as target:
        target.add_asset("bomb", symbols("u8", (len(bomb),)).tobytes(), "application/zstd")
        manifest = target.commit()
    chunk = manifest.assets[0].chunk
    assert (chunk.codec, chunk.stored_bytes) == ("raw", len(bomb))
    data = path.read_bytes()
    path.write_bytes(data[: chunk.offset] + bomb + data[chunk.offset + len(bomb) :])
    digits = f"{checksum(bomb):016x}"
    forge(path, lambda v: _asset(v, 0).update(codec="zstd", raw_bytes=1000, checksum=digits))
    tracemalloc.start()
    _refuses(path, "declares 104857600 raw bytes, expected 1000", BundleCorruptError)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5 << 20


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
    _refuses(bundle, message)


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
    _refuses(bundle, message)


def test_11_an_escaped_backslash_before_u_is_no_surrogate(bundle: Path) -> None:
    forge_text(bundle, lambda text: _replaced(text, b'"lossless"', b'"C:\\\\ud800"'))
    with BundleReader.open(bundle) as reader:
        assert reader.manifest.recipe["name"] == "C:\\ud800"


def test_11_deep_free_json(bundle: Path) -> None:
    deep: Any = 1
    for _ in range(40):
        deep = [deep]
    forge(bundle, lambda value: value["recipe"].update(deep=deep))
    _refuses(bundle, "recipe of the manifest is nested deeper than 32 levels")


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
            with pytest.raises(BundleFormatError, match=r"unknown fields: 'surprise'|exactly the"):
                manifest_from_json(json.dumps(value).encode(), data_end=footer.manifest_offset)
        for key in _get(json.loads(text), path):
            value = json.loads(text)
            del _get(value, path)[key]
            with pytest.raises(BundleFormatError, match=r"has no field|exactly the fields"):
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
    _refuses(bundle, message)


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
    _refuses(bundle, message)


def test_15_a_graph_without_its_asset(bundle: Path) -> None:
    program = {
        "kind": "graph", "graph_asset": "graph.json", "schema_version": [8, 1],
        "torch_version": "2", "inputs": [], "group_order": [], "batch_dim_dynamic": False,
        "outputs": [{"name": "y", "dtype": "f32", "shape": []}], "max_batch_size": 1, "text": None,
    }  # fmt: skip
    forge(bundle, lambda value: value.update(program=program))
    _refuses(bundle, "asset 'graph.json', which the bundle does not have")


def test_15_a_group_order_of_other_groups(tmp_path: Path) -> None:
    path = tmp_path / "x.tersor"
    with writer(path, program=graph_program()) as target:
        target.add_asset("graph.json", b"{}", "application/json")
        add(target, "w", "u8", symbols("u8", (3,)), group="g")
        target.commit()
    forge(path, lambda value: value["program"].update(group_order=["g", "h"]))
    _refuses(path, "lists other groups than the bundle has: h")


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

    def other_digest(value: Json) -> None:
        repeated(value)
        value["planes"][-1] = {**value["planes"][0], "digest": "0" * 64}

    data = bundle.read_bytes()
    forge(bundle, repeated)
    _refuses(bundle, "plane 6 repeats the digest, dtype and shape of plane 0")
    bundle.write_bytes(data)
    forge(bundle, other_digest)
    _refuses(bundle, "overlaps the one before it")


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
        (lambda v: _chunk(v).update(codec="pickle"), "codec 'pickle'; this build knows raw"),
        (lambda v: _chunk(v, 0, 1).update(codec="lz4", raw_bytes=128), "damaged|decode"),
        (lambda v: _chunk(v).update(checksum="0" * 15), "expected 16 lowercase hexadecimal"),
        (lambda v: _chunk(v).update(checksum="G" * 16), "expected 16 lowercase hexadecimal"),
    ],
)
def test_18_streams_and_filters(
    bundle: Path, change: Callable[[Json], object], message: str
) -> None:
    forge(bundle, change)
    _refuses(bundle, message, BundleError)


@pytest.mark.parametrize(
    "name", ["../x", "/x", "a/../x", "a/./x", "a\\x", "C:x", ".x", "a/.x", "x/", "a//x", "ä"]
)
def test_19_asset_names(bundle: Path, name: str) -> None:
    forge(bundle, lambda value: value["assets"][1].update(name=name))
    _refuses(bundle, "is not a plain relative path")


@pytest.mark.parametrize("dtype", ["bool", "u4"])
def test_20_symbols_outside_their_dtype(tmp_path: Path, dtype: str) -> None:
    path = tmp_path / "x.tersor"
    with writer(path, codec="raw") as target:
        add(target, "w", "u8", np.full((4, 4), 200, np.uint8))
        target.commit()
    forge(path, lambda value: value["planes"][0].update(dtype=dtype))
    _refuses(path, "a symbol is 200, expected at most", BundleCorruptError)
    assert [damage.kind for damage in verify(path).damages] == ["chunk"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    path = tmp_path_factory.mktemp("fuzz") / "x.tersor"
    write_tiny(path)
    return path, path.read_bytes()


@given(data=st.data())
@settings(derandomize=True, max_examples=150, deadline=None)
def test_fuzz_manifests_with_valid_digests(tiny: tuple[Path, bytes], data: st.DataObject) -> None:
    path, original = tiny
    path.write_bytes(original)

    def mutate(text: bytes) -> bytes:
        mutable = bytearray(text)
        for _ in range(data.draw(st.integers(1, 4))):
            at = data.draw(st.integers(0, len(mutable) - 1))
            length = data.draw(st.integers(0, 6))
            mutable[at : at + length] = data.draw(
                st.binary(max_size=6) | st.sampled_from([b"0", b"9", b"-1", b"[]", b"{}", b'""'])
            )
        return bytes(mutable) or b" "

    forge_text(path, mutate)
    with suppress(BundleError):
        read_all(path)
    with suppress(BundleError):
        verify(path)


@given(data=st.data())
@settings(derandomize=True, max_examples=100, deadline=None)
def test_fuzz_stored_chunks_with_valid_checksums(
    tiny: tuple[Path, bytes], data: st.DataObject
) -> None:
    """The codecs and filters themselves meet arbitrary bytes."""
    path, original = tiny
    mutable = bytearray(original)
    value = json.loads(manifest_text(original)[0])
    plane = data.draw(st.sampled_from([p for p in value["planes"] if p["streams"][0]["chunks"]]))
    chunk = data.draw(st.sampled_from(plane["streams"]))["chunks"][0]
    start, size = chunk["offset"], chunk["stored_bytes"]
    for _ in range(data.draw(st.integers(1, 8))):
        mutable[start + data.draw(st.integers(0, size - 1))] = data.draw(st.integers(0, 255))
    chunk["checksum"] = f"{checksum(bytes(mutable[start : start + size])):016x}"
    chunk["codec"] = data.draw(st.sampled_from(["raw", "lz4", "zstd"]))
    path.write_bytes(bytes(mutable))
    forge(path, lambda text: text.update(value))
    with suppress(BundleError):
        read_all(path)
