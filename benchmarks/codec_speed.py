"""Claim: weights are smallest in an entropy code; LZ77, LZ78 and LZW store more of them.

Every codec on the same bytes: pico's planes, floats split into exponents and mantissas, in chunks
of 512 KiB, on one thread, without tables. A codec with several encoders keeps the smallest and pays
for all of them.
`decode_mb_per_second` of each codec class is its row of bf16 exponents, rounded down.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import record

from tersor.bundle.codecs import BYTES, Codec, default_codecs
from tersor.bundle.dtypes import ByteArray
from tersor.bundle.filters import FILTERS
from tersor.bundle.reader import BundleReader
from tersor.converters.pipeline import convert
from tersor.converters.recipe import load_recipe

ROOT = Path(__file__).resolve().parent.parent
CHUNK_BYTES = 512 << 10
STREAM_BYTES = 3 << 20
RECIPES = {"lossless": None, "int8": None, "int8 pruned": "magnitude:0.5", "int4": None}
Chunks = Sequence[ByteArray]
Row = dict[str, object]


def streams(name: str, prune: str | None, work: Path) -> dict[str, Chunks]:
    """Chunks of each stream by what it holds; several planes in a row where they are small."""
    out = work / f"{name}.tersor"
    recipe = load_recipe(name.split(maxsplit=1)[0], prune=prune)
    convert(ROOT / "examples" / "pico", out, recipe=recipe)
    parts: defaultdict[str, list[ByteArray]] = defaultdict(list)
    with BundleReader.open(out) as reader:
        for tensor in reader.manifest.tensors:
            for plane in tensor.planes:
                floats = FILTERS["float_split"]
                used = floats if plane.dtype in floats.dtypes else FILTERS["none"]
                array = reader.read_plane(plane)
                split = used.split(plane.dtype, array.reshape(array.shape[0], -1))
                for stream, data in zip(used.stream_names(plane.dtype), split, strict=True):
                    parts[f"{plane.dtype} {stream}"].append(data)
    whole = {stream: np.concatenate(data)[:STREAM_BYTES] for stream, data in parts.items()}
    return {
        stream: [data[at : at + CHUNK_BYTES] for at in range(0, data.size, CHUNK_BYTES)]
        for stream, data in whole.items()
        if data.size == STREAM_BYTES
    }


def row(recipe: str, stream: str, name: str, codec: Codec, chunks: Chunks) -> Row:
    def encode() -> Chunks:
        smallest = (
            min((e(chunk, BYTES, None) for e in codec.encoders), key=len) for chunk in chunks
        )
        return [np.frombuffer(stored, np.uint8) for stored in smallest]

    def decode() -> None:
        for data, chunk in zip(stored, chunks, strict=True):
            codec.decode_into(data, out[: chunk.size])

    stored, out = encode(), np.empty(CHUNK_BYTES, np.uint8)
    size = sum(chunk.size for chunk in chunks)
    ratio = sum(data.size for data in stored) / size
    speeds = [
        size / 1e6 / seconds
        for seconds in (record.seconds(encode, repeat=5, warmup=1), record.seconds(decode))
    ]
    print(f"  {recipe:<11} {stream:<15} {name:<7} {ratio:.4f} {speeds[0]:>7.0f} {speeds[1]:>7.0f}")
    return {
        "recipe": recipe,
        "stream": stream,
        "codec": name,
        "ratio": round(ratio, 4),
        "encode_mb_per_second": round(speeds[0]),
        "decode_mb_per_second": round(speeds[1]),
    }


def main() -> None:
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as temporary:
        for recipe, prune in RECIPES.items():
            for stream, chunks in streams(recipe, prune, Path(temporary)).items():
                for name, codec in default_codecs().items():
                    rows.append(row(recipe, stream, name, codec, chunks))
    print(f"wrote {record.write('codec_speed', rows)}")


if __name__ == "__main__":
    main()
