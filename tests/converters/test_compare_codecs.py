"""Codecs compared on planes whose size, entropy and structure are known."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from rewrite_bundle import flip_a_byte
from tiny_bundles import add, noise, weights, writer
from tiny_models import save_tiny_decoder

from tersor.bundle.codecs import Codec, Lz4Codec, default_codecs
from tersor.bundle.dtypes import AnyArray, ByteArray
from tersor.bundle.errors import BundleCorruptError
from tersor.bundle.reader import BundleReader
from tersor.converters.compare_codecs import REPETITIONS, CodecReport, KindResult, compare_codecs
from tersor.converters.errors import RecipeError, RoundTripError, SourceError
from tersor.converters.order_zero import OrderZero
from tersor.converters.pipeline import convert
from tersor.converters.recipe import Recipe, load_recipe

RECIPE = """
[[quantize]]
match = ["embedding"]
kinds = ["embedding"]
method = "int8"

[[quantize]]
min_elements = 1000
method = "int4"
group = 16
"""


def ticking() -> Callable[[], float]:
    """A clock that is a second further at each look."""
    seconds = count()
    return lambda: float(next(seconds))


def compared(place: Path, **options: object) -> CodecReport:
    return compare_codecs(place, clock=ticking(), **options)  # type: ignore[arg-type]


def stored(path: Path, tensors: Mapping[str, tuple[str, AnyArray]]) -> Path:
    with writer(path) as target:
        for name, (dtype, array) in tensors.items():
            add(target, name, dtype, array)
        target.commit()
    return path


def ratios(kind: KindResult) -> dict[str, float]:
    return {result.codec: result.ratio for result in kind.results}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    path = tmp_path_factory.mktemp("recipe") / "small.toml"
    path.write_text(RECIPE, encoding="utf-8")
    return load_recipe(str(path))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder of 3 layers in f32."""
    folder = tmp_path_factory.mktemp("model")
    save_tiny_decoder(folder, "llama")
    return folder


@pytest.fixture(scope="module")
def report(model: Path, recipe: Recipe) -> CodecReport:
    return compared(model, recipe=recipe)


def test_every_kind_of_plane_and_each_stream_of_floats(report: CodecReport) -> None:
    names = [kind.name for kind in report.kinds]
    assert {
        "int4 codes u4", "int4 scales bf16", "int4 zeros u4", "int8 codes i8", "int8 scales bf16",
        "dense values f32",
    } == {name for name in names if ":" not in name}  # fmt: skip
    at = names.index("int4 scales bf16")
    assert names[at + 1].startswith("int4 scales bf16: ")
    assert "exponent" in " ".join(names[at + 1 : at + 3])
    assert [kind.measured_bytes for kind in report.kinds if kind.stream is None] == sorted(
        (kind.measured_bytes for kind in report.kinds if kind.stream is None), reverse=True
    )


def test_every_codec_of_the_build_and_two_more(report: CodecReport) -> None:
    names = [*default_codecs(), "auto"]
    names.insert(names.index("rans") + 1, "rans, columns")
    for kind in report.kinds:
        assert [result.codec for result in kind.results] == names


def test_raw_is_what_the_planes_take_in_memory(report: CodecReport) -> None:
    for kind in report.kinds:
        raw = kind.results[0]
        half = kind.dtype == "u4" and kind.stream is None  # two symbols a byte
        assert raw.ratio == (0.5 if half else 1)
        assert raw.codecs == {"raw": 1}
        assert kind.whole
        for result in kind.results:
            assert result.ratio <= raw.ratio * 1.001
            assert result.bits_per_symbol == pytest.approx(
                8 * result.ratio * kind.measured_bytes / kind.symbols
            )
            assert sum(result.codecs.values()) == pytest.approx(1, abs=1e-3)


def test_auto_is_what_a_conversion_stores(
    model: Path, recipe: Recipe, report: CodecReport, tmp_path: Path
) -> None:
    bundle = tmp_path / "b.tersor"
    convert(model, bundle, recipe=recipe)
    sizes: dict[tuple[str, str, str], int] = {}
    with BundleReader.open(bundle) as reader:
        for tensor in reader.manifest.tensors:
            for plane in tensor.planes:
                key = (tensor.layout, plane.name, plane.dtype)
                sizes[key] = sizes.get(key, 0) + plane.stored_bytes
    whole = [kind for kind in report.kinds if kind.stream is None]
    assert {
        (kind.layout, kind.plane, kind.dtype): kind.results[-1].stored_bytes for kind in whole
    } == sizes


def test_a_bundle_gives_what_its_source_gives(
    model: Path, recipe: Recipe, report: CodecReport, tmp_path: Path
) -> None:
    bundle = tmp_path / "b.tersor"
    convert(model, bundle, recipe=recipe)
    again = compared(bundle)
    assert again.recipe == report.recipe == "small"
    assert again.source == str(bundle)
    assert {kind.name: kind for kind in again.kinds} == {kind.name: kind for kind in report.kinds}


def test_sizes_beside_the_entropy(tmp_path: Path) -> None:
    place = stored(tmp_path / "x", {"x": ("i8", (noise(1 << 17) & 7).view(np.int8))})
    (kind,) = compared(place).kinds
    assert kind.entropy_bits == pytest.approx(3, abs=1e-3)
    assert kind.entropy_ratio == pytest.approx(3 / 8, abs=1e-4)
    for result in kind.results:
        if result.codec in {"zstd", "huffman", "rans", "rans, columns", "auto"}:
            assert kind.entropy_ratio < result.ratio < 1.02 * kind.entropy_ratio, result.codec


def test_speeds_are_raw_bytes_by_the_clock(tmp_path: Path) -> None:
    """Three blocks of 1 MiB, each encoded and decoded within one tick."""
    place = stored(tmp_path / "x", {"x": ("bf16", weights((3 << 9, 1 << 10)))})
    for kind in compared(place).kinds:
        for result in kind.results:
            expected = kind.measured_bytes / 3 / 1e6
            assert result.encode_mb_per_second == pytest.approx(expected)
            assert result.decode_mb_per_second == pytest.approx(expected)


def test_each_measurement_is_the_median_of_its_runs(tmp_path: Path) -> None:
    """The second of three runs takes very long; the median does not notice."""
    looks = count()
    now = 0.0

    def clock() -> float:
        nonlocal now
        now += 1000.0 if next(looks) % (2 * REPETITIONS) == 3 else 1.0
        return now

    place = stored(tmp_path / "x", {"x": ("i8", noise(1000).view(np.int8))})
    (kind,) = compare_codecs(place, clock=clock).kinds
    assert kind.results[0].encode_mb_per_second == pytest.approx(1000 / 1e6)


def test_columns_that_differ_pay_for_classes(tmp_path: Path) -> None:
    rows, columns = 1024, 256
    wide = noise(rows * columns).view(np.int8).reshape(rows, columns).copy()
    wide[:, ::2] >>= 6
    place = stored(tmp_path / "x", {"x": ("i8", wide)})
    (kind,) = compared(place).kinds
    assert ratios(kind)["rans, columns"] < 0.9 * ratios(kind)["rans"]


def test_a_sample_stays_within_its_bytes_and_is_spread(tmp_path: Path) -> None:
    """Of eight tensors of 1 MiB three fit; the damaged others are not even read."""
    tensors = {
        f"t{index}": ("i8", noise(1 << 20, index).view(np.int8).reshape(1024, 1024))
        for index in range(8)
    }
    place = stored(tmp_path / "x", tensors)
    for index in (1, 3, 5, 6, 7):
        flip_a_byte(place, f"t{index}")
    (kind,) = compared(place, max_bytes=(3 << 20) + 1000).kinds
    assert kind.measured_bytes == 3 << 20
    assert (kind.tensors, kind.of_tensors) == (3, 8)
    assert not kind.whole
    flip_a_byte(place, "t4")
    with pytest.raises(BundleCorruptError, match="damaged"):
        compared(place, max_bytes=3 << 20)


def test_a_large_plane_is_sampled_in_blocks(tmp_path: Path) -> None:
    place = stored(tmp_path / "x", {"x": ("i8", noise(6 << 20).view(np.int8).reshape(6, 1 << 20))})
    (kind,) = compared(place, max_bytes=2 << 20).kinds
    assert (kind.measured_bytes, kind.whole, kind.tensors) == (2 << 20, False, 1)


def test_a_kind_is_never_without_a_block(tmp_path: Path) -> None:
    data = {"x": ("bf16", weights((64, 64))), "y": ("bf16", weights((64, 64), 1))}
    kinds = compared(stored(tmp_path / "x", data), max_bytes=1).kinds
    assert [kind.measured_bytes for kind in kinds] == [8192, 4096, 4096]
    assert all(kind.tensors == 1 and not kind.whole for kind in kinds)


def test_empty_planes_are_no_kind(tmp_path: Path) -> None:
    data = {"x": ("f32", np.zeros((0, 4), np.float32)), "y": ("f64", np.array(0.5))}
    kinds = compared(stored(tmp_path / "x", data)).kinds
    assert [kind.name for kind in kinds if kind.stream is None] == ["dense values f64"]


class Forgetful(Lz4Codec):
    """Loses a bit of every chunk."""

    def decode(
        self, stored: ByteArray, raw_bytes: int, table: ByteArray | None = None
    ) -> ByteArray:
        data = super().decode(stored, raw_bytes, table).copy()
        data[17] ^= 1
        return data


class Stubborn(Lz4Codec):
    """Does not decode what it encoded."""

    def decode(
        self, stored: ByteArray, raw_bytes: int, table: ByteArray | None = None
    ) -> ByteArray:
        raise BundleCorruptError("no such symbol")


@pytest.mark.parametrize(
    ("codec", "message"),
    [(Forgetful, "1 differ, the first at 17"), (Stubborn, "no such symbol")],
)
def test_a_codec_that_loses_something_is_an_error(
    tmp_path: Path, codec: type[Codec], message: str
) -> None:
    place = stored(tmp_path / "x", {"x": ("i8", np.zeros((64, 64), np.int8))})
    with pytest.raises(RoundTripError, match=f"codec 'lz4' .*{message}"):
        compared(place, codecs={**default_codecs(), "lz4": codec()})


def test_a_codec_joins_by_registration(tmp_path: Path) -> None:
    class Other(Lz4Codec):
        name = "other"

    place = stored(tmp_path / "x", {"x": ("i8", np.zeros((64, 64), np.int8))})
    (kind,) = compared(place, codecs={**default_codecs(), "other": Other()}).kinds
    results = {result.codec: result for result in kind.results}
    assert results["other"].codecs == {"other": 1}
    assert replace(results["other"], codec="lz4", codecs={"lz4": 1}) == results["lz4"]


def test_what_cannot_be_compared_says_why(
    model: Path, recipe: Recipe, tmp_path: Path, report: CodecReport
) -> None:
    place = stored(tmp_path / "x", {"x": ("bf16", weights((4, 4)))})
    with pytest.raises(RecipeError, match="leave the recipe out"):
        compared(place, recipe=recipe)
    with pytest.raises(SourceError, match="no config"):
        compared(tmp_path)
    with pytest.raises(SourceError, match="does not exist"):
        compared(tmp_path / "none.pt2")


@pytest.mark.parametrize(
    ("dtype", "values", "bits"),
    [
        ("u4", np.arange(16, dtype=np.uint8), 4),
        ("bool", np.array([True, False, False, False]), 2 - 0.75 * math.log2(3)),
        ("bf16", np.arange(1 << 16, dtype=np.uint16), 16),
        ("f32", np.array([1, 2, 1, 2], np.float32), 1),
        ("i64", np.array([1, 2, 3, 4, 257, 258, 259, 260]), 3),
        ("i8", np.zeros(5, np.int8), 0),
    ],
)
def test_the_order_0_entropy(dtype: str, values: AnyArray, bits: float) -> None:
    entropy = OrderZero(dtype)
    assert entropy.bits == 0
    for part in np.split(values.reshape(1, -1), [values.size // 2], axis=1):
        entropy.add(np.ascontiguousarray(part))
    assert entropy.bits == pytest.approx(bits)
    assert json.dumps(entropy.bits) != "-0.0"
