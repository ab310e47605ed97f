"""Caps of format version 2, checked before anything is allocated.

Each is far above any real model and low enough that a hostile file cannot exhaust a machine by
merely being opened. `docs/format.md` lists them; raising one is a compatible change.
"""

# Alignment of each plane's first chunk: a page and a direct-I/O block.
PLANE_ALIGNMENT = 4096
# A writer aligns planes of at least so many raw bytes: between smaller ones it would take 0.6 % of
# MiniLM and 0.9 % of pico for nothing.
MIN_ALIGNED_PLANE_BYTES = 1 << 20

# Raw bytes a writer aims for in one block of rows: large enough that the 100-byte manifest entries
# of its chunks are noise, small enough that a plane of a few MiB already decodes in parallel.
TARGET_BLOCK_RAW_BYTES = 1 << 20
# Larger planes get larger blocks, not more of them, so that a manifest grows with the number of
# tensors rather than with the bytes of a model; up to a size that a thread still decodes at ease.
TARGET_BLOCKS_PER_PLANE = 32
MAX_TARGET_BLOCK_RAW_BYTES = 1 << 24

# Parity blocks are whole pages, so that a damaged sector is one block or two; and a whole stripe of
# 255 of the largest fits into 16 MiB, which bounds what encoding and repair hold in memory.
PARITY_BLOCK_UNIT = 4096
MAX_PARITY_BLOCK_BYTES = 1 << 16
MAX_STRIPE_BLOCKS = 255  # data and parity: the points of GF(256) but one

MAX_FILE_BYTES = 1 << 48
MAX_MANIFEST_STORED_BYTES = 1 << 26
MAX_MANIFEST_RAW_BYTES = 1 << 27
# JSON values in a manifest: parsed objects take up to 30 times their text, so that bytes alone do
# not bound memory; and the costliest take 2.5 µs each to check, so that opening ends within 2 s.
MAX_MANIFEST_VALUES = 3 << 18
MAX_JSON_DEPTH = 32
MAX_JSON_INTEGER = 1 << 63

MAX_TENSORS = 1 << 16
MAX_PLANES_PER_TENSOR = 16
MAX_STREAMS_PER_PLANE = 16
MAX_CHUNKS_PER_STREAM = 1 << 20
MAX_TABLE_RAW_BYTES = 1 << 20  # what all chunks of a stream share; read for each plane
MAX_GROUPS = 1 << 16
MAX_ASSETS = 1 << 12
MAX_SOURCES_PER_TENSOR = 1 << 12
MAX_ALIASES_PER_TENSOR = 1 << 8
MAX_PARAMS_PER_TENSOR = 1 << 8
MAX_GRAPH_TENSORS = 1 << 10

MAX_RANK = 16
MAX_DIMENSION = 1 << 40
# Bytes of a shape with its zeros taken for ones: arrays count them in 64 bits, also where a
# dimension of 0 leaves nothing to count.
MAX_EXTENT_BYTES = 1 << 62
MAX_PLANE_RAW_BYTES = 1 << 38
# Chunks may be shared, so a file of one chunk could declare any number of bytes; this bounds what
# checking a whole file can take by its length. It is the ratio that a single zstd chunk may have.
MAX_EXPANSION = 1 << 15
MAX_BLOCK_RAW_BYTES = 1 << 30  # one row is never split, so this is also the widest row
MAX_ASSET_RAW_BYTES = 1 << 28

MAX_NAME_BYTES = 512
MAX_STRING_BYTES = 1 << 16
