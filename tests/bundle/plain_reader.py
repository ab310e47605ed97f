"""A second reader of bundles, from format.md alone. It trusts their places, names and limits."""

import json
import struct
from io import BytesIO
from typing import Any

import lz4.block
import numpy as np
import xxhash
import zstandard
from blake3 import blake3

Array = np.ndarray[Any, Any]
DTYPES = {"bool": "?", "u4": "u1", "f8_e4m3": "u1", "f8_e5m2": "u1", "bf16": "<u2"}


def require(condition: object, message: str) -> None:
    """Refuse the bundle unless the condition holds."""
    if not condition:
        raise ValueError(message)


def take(part: BytesIO, dtype: str, count: int) -> Array:
    """The next array of a chunk or model, which zeros pad to a multiple of 4 bytes."""
    values = np.frombuffer(part.read(count * np.dtype(dtype).itemsize), dtype)
    require(len(values) == count and not any(part.read(-part.tell() % 4)), "bad padding")
    return values


def unpack(packed: Array, bits: int, count: int) -> Array:
    """Fields of 1, 2 or 4 bits, the earliest in the lowest bits of a byte; zeros for 0 bits."""
    fields = np.ravel(packed[:, None] >> np.arange(0, 8, bits or 8).astype("u1") & (1 << bits) - 1)
    require(len(packed) == -(-count * bits // 8) and not any(fields[count:]), "bad unused bits")
    return np.resize(fields, count)


def take_classes(part: BytesIO, classes: int, count: int) -> Array:
    """The packed classes of rows or columns, section 2.3."""
    bits = {1: 0, 2: 1, 3: 2, 4: 2}.get(classes, 4)
    return unpack(take(part, "u1", -(-count * bits // 8)), bits, count).astype(int)


def decode_phrases(stored: bytes, raw_bytes: int, lzw: bool) -> bytes:
    """`lz78` and `lzw`, section 2.4."""
    known = [bytes([value]) for value in range(256)] if lzw else [b""]
    largest, at, phrase, raw = len(known) - 1, 0, b"", bytearray()
    while len(raw) < raw_bytes:
        width = largest.bit_length()
        field = int.from_bytes(stored[at // 8 : at // 8 + 4], "little") >> at % 8
        number, byte = field % (1 << width), bytes([field >> width & 255])
        require(number <= largest, "there is no such phrase")
        entry = known[number] if number < len(known) else phrase + phrase[:1]
        new = phrase + entry[:1] if lzw else entry + byte  # what gets a number now
        known += [new] if len(known) < 65536 and (phrase or not lzw) else []
        raw += (phrase := entry if lzw else new)
        largest, at = min(largest + 1, 65535), at + width + (0 if lzw else 8)
    require(-(-at // 8) == len(stored) and not int.from_bytes(stored, "little") >> at, "bad end")
    return bytes(raw)


def load_coded(stored: bytes, raw_bytes: int, table: bytes | None, decode: Any) -> bytes:
    """`huffman` and `rans`, section 2.1: all but the symbols before patches."""
    part = BytesIO(stored)
    layout, flags, width, zero, row, size, patches = struct.unpack("<4B3I", part.read(16))
    require((layout, flags, zero) == (1, size > 0, 0) and width in (1, 2), "bad header of a chunk")
    model = BytesIO(take(part, "u1", size).tobytes() if flags else table or b"")
    symbols = decode(part, model, f"<u{width}", raw_bytes // width, row)
    positions = take(part, "<u4", patches)
    symbols[positions] = take(part, f"<u{width}", patches)
    require(all(positions[1:] > positions[:-1]) and not part.read() + model.read(), "bad end")
    return bytes(symbols)


def decode_huffman(part: BytesIO, model: BytesIO, dtype: str, count: int, row: int) -> Array:
    """The symbols of a chunk before patches, section 2.2."""
    width, *rest, n = struct.unpack("<4BI", model.read(8))
    symbols, lengths = take(model, dtype, n), take(model, "u1", n).astype(int)
    complete = min(lengths) > 0 and max(lengths) < 13 and sum(4096 >> lengths) == 4096
    require(complete and (f"<u{width}", *rest, row) == (dtype, 12, 0, 0, 0), "bad model")
    order = np.argsort(lengths, kind="stable")
    index = np.repeat(order, 4096 >> lengths[order])  # by 12 bits that begin with a symbol's code
    blocks = [min(65536, count - first) for first in range(0, count, 65536)]
    counts = [min(q, max(0, b - k * q)) for b in blocks for q in [-(-b // 4)] for k in range(4)]
    sizes = take(part, "<u2", len(counts)).astype(int)
    bits = np.pad(np.unpackbits(take(part, "u1", sum(sizes))), (0, 12))
    windows = np.lib.stride_tricks.sliding_window_view(bits, 12) @ (1 << np.arange(12)[::-1])
    steps, places, at = lengths[index[windows]].tolist(), [], 0
    for end, todo in zip((8 * sizes.cumsum()).tolist(), counts, strict=True):
        for _ in range(todo):
            places.append(at)
            at += steps[at]
        require(0 <= end - at < 8 and not any(bits[at:end]), "bad end of a segment")
        at = end
    return np.array(symbols[index[windows[places]]])


def decode_rans(part: BytesIO, model: BytesIO, dtype: str, count: int, row: int) -> Array:
    """The symbols of a chunk before patches, section 2.3."""
    width, p, r, c, w = struct.unpack("<4BI", model.read(8))
    require((f"<u{width}", w, row > 0) == (dtype, row if c > 1 else 0, r * c > 1), "bad model")
    columns = take_classes(model, c, w)
    tables = []  # for each slot: its symbol, and the frequency and start of that
    for _ in range(r * c):
        n = int(take(model, "<u4", 1)[0])
        symbols, steps = take(model, dtype, n), take(model, "<u2", n).astype(int)
        require(8 <= p < 16 and min(steps) >= 1 and sum(steps) == 1 << p, "bad frequencies")
        tables.append(np.repeat([symbols, steps, np.cumsum(steps) - steps], steps, axis=1))
    symbol_of, step_of, start_of = np.stack(tables, axis=1)
    rows = take_classes(part, r, -(-count // row) if row else 1).repeat(row or count)
    table_of = rows[:count] * c + np.resize(columns, count)
    ends = take(part, "<u4", -(-count // 65536)).astype(int)
    states = take(part, "<u4", 32 * len(ends)).reshape(-1, 32).astype(int)
    words = take(part, "<u2", int(ends[-1])).astype(int)
    decoded = np.empty(count, dtype)
    for begin, x, left in zip(range(0, count, 65536), states, ends[-1] - ends, strict=True):
        require(np.all(x >= 1 << 16), "bad state of a block")
        for at in range(begin, min(begin + 65536, count), 32):
            lanes = x[: count - at]  # a view, so that what is assigned to it is kept
            key = table_of[at : at + 32], lanes & (1 << p) - 1
            decoded[at : at + 32] = symbol_of[key]
            lanes[:] = step_of[key] * (lanes >> p) + key[1] - start_of[key]
            low = lanes < 1 << 16
            new, words = np.split(words, [low.sum()])
            lanes[low] = lanes[low] << 16 | new
        require(len(words) == left and np.all(x == 1 << 16), "bad end of a block")
    return decoded


def load(data: bytes, chunk: dict[str, Any], table: bytes | None = None) -> bytes:
    """The raw bytes of a chunk, section 2."""
    raw = stored = data[chunk["offset"] :][: chunk["stored_bytes"]]
    codec, size = chunk["codec"], chunk["raw_bytes"]
    require(xxhash.xxh3_64_hexdigest(stored) == chunk["checksum"], "a chunk is damaged")
    if codec == "lz4":
        raw = lz4.block.decompress(stored, uncompressed_size=size)
    elif codec == "zstd":
        raw = zstandard.ZstdDecompressor().decompress(stored, allow_extra_data=False)
    elif codec in ("lz78", "lzw"):
        raw = decode_phrases(stored, size, codec == "lzw")
    elif codec != "raw":
        raw = load_coded(stored, size, table, decode_huffman if codec == "huffman" else decode_rans)
    require(len(raw) == size, "a chunk decodes to another size")
    return raw


def unfilter(plane: dict[str, Any], streams: list[Array], rows: int, count: int) -> Array:
    """The symbols of a block, section 3, as bytes or unsigned integers."""
    match plane["filter"], streams:
        case "none" | "nibbles" as name, [data]:
            return data if name == "none" else unpack(data, 4, count)
        case "bit_planes", _:
            bits_of = [unpack(stream, 1, count) for stream in reversed(streams)]
            return np.array(np.packbits(bits_of, axis=0, bitorder="little")[0])
        case "f8_split", [exponent, packed]:
            bits, low = (3 if plane["dtype"] == "f8_e4m3" else 2), unpack(packed, 4, count)
            require(not any(exponent >> 7 - bits) and not any(low >> bits + 1), "bad f8")
            return np.array(low >> bits << 7 | exponent << bits | low & (1 << bits) - 1)
        case "row_exponent", [base, exponent, *mantissas]:
            streams = [exponent + base.repeat(count // rows), *mantissas]
    require(plane["filter"] in ("float_split", "row_exponent"), "unknown filter or streams")
    word = np.stack(streams[::-1], axis=1).view(f"<u{len(streams)}")[:, 0]
    return np.array(word >> 1 | word << 8 * len(streams) - 1)


def read_plane(data: bytes, plane: dict[str, Any]) -> Array:
    """A whole plane, its digest checked; what numpy has no type for as unsigned integers."""
    rows, *rest = plane["shape"] or [1]
    row, step, streams = int(np.prod(rest)), plane["rows_per_chunk"], plane["streams"]
    tables = [load(data, s["table"]) if "table" in s else None for s in streams]
    blocks, starts = [np.empty(0, "u1")], range(0, rows if row else 0, step)
    for start, *chunks in zip(starts, *(s["chunks"] for s in streams), strict=True):
        raw = [np.frombuffer(load(data, *c), "u1") for c in zip(chunks, tables, strict=True)]
        n = min(step, rows - start)
        blocks.append(unfilter(plane, raw, n, n * row))
    symbols, dtype = np.concatenate(blocks), plane["dtype"]
    require(symbols.max(initial=0) <= {"bool": 1, "u4": 15}.get(dtype, 2**64), "symbol too large")
    require(blake3(symbols.tobytes()).hexdigest() == plane["digest"], "a plane is damaged")
    dtype = DTYPES.get(dtype) or f"<{dtype[0]}{int(dtype[1:]) // 8}"
    return symbols.view(dtype).reshape(plane["shape"])


def read_bundle(data: bytes) -> tuple[dict[str, dict[str, Array]], dict[str, bytes]]:
    """The planes of a bundle by tensor and name, and its assets by name."""
    at, stored, raw_bytes, size = struct.unpack("<4Q", data[-80:-48])
    require(data[:8] == b"\x89TSR\r\n\x1a\n" and data[-8:] == b"TSREND\r\n", "not a whole bundle")
    require(data[8] in (1, 2) and not any(data[9:64]) and data[-16:-8] == data[8:16], "new version")
    require(at + stored + 80 == size == len(data), "the file was cut off or extended")
    require(blake3(data[at:-80]).digest() == data[-48:-16], "the manifest is damaged")
    text = zstandard.ZstdDecompressor().decompress(data[at:-80], allow_extra_data=False)
    require(len(text) == raw_bytes, "the manifest decodes to another size")
    manifest = json.loads(text)
    planes = [read_plane(data, plane) for plane in manifest["planes"]]
    assets = {asset["name"]: load(data, asset["chunk"]) for asset in manifest["assets"]}
    uses = {tensor["name"]: tensor["planes"] for tensor in manifest["tensors"]}
    tensors = {name: {u["name"]: planes[u["plane"]] for u in used} for name, used in uses.items()}
    parts = [plane.tobytes() for used in tensors.values() for plane in used.values()]
    digests = b"".join(blake3(part).digest() for part in [*parts, *assets.values()])
    require(blake3(digests).hexdigest() == manifest["digest"], "bad digest of the content")
    return tensors, assets
