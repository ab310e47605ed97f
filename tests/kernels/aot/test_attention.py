"""Machine code of the paged attention kernels, compiled ahead of time (see aot.py)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import triton
import triton.language as tl
from aot import Kernel, budget_tests

from tersor.kernels.attention.config import (
    DECODE_STAGES,
    MADE_REGISTERS,
    MAX_SEGMENTS,
    MIN_SEGMENT_TOKENS,
    PREFILL_STAGES,
    Tile,
    decode_tile,
    prefill_tile,
)
from tersor.kernels.attention.decode.triton import decode_heads_kernel, decode_kernel
from tersor.kernels.attention.launch import at_once
from tersor.kernels.attention.prefill.triton import prefill_kernel
from tersor.kernels.gemv.config import MAX_REGISTERS

KV_HEADS = 8
SCALARS = {"window": "i32", "scale": "fp32", "soft_cap": "fp32"}
STRIDES = ("stride_token", "stride_head")


def _types(cache: str, *more: str) -> dict[str, str]:
    pointers = {"q_ptr": "*bf16", "kv_ptr": f"*{cache}", "out_ptr": "*bf16"}
    pointers |= dict.fromkeys(("scales_ptr", "sinks_ptr", *more), "*fp32")
    return pointers | dict.fromkeys(("spans_ptr", "pages_ptr"), "*i32")


def _constants(
    tile: Tile, share: int, head_dim: int, cache: str, *, extras: bool, use_asm: bool
) -> dict[str, Any]:
    return {
        "QUANTIZED": cache == "i8",
        "SOFT_CAP": extras,
        "SINKS": extras,
        "COMPUTE": tl.bfloat16,
        "USE_ASM": use_asm,
        "KV_HEADS": KV_HEADS,
        "SHARE": share,
        "HEAD_DIM": head_dim,
        "PAGE_TOKENS": 16,
        "ROWS": tile.rows,
        "COLUMNS": tile.columns,
        "TOKENS": tile.tokens,
    }


def _decode(
    share: int = 4,
    head_dim: int = 128,
    cache: str = "bf16",
    *,
    extras: bool = False,
    use_asm: bool = False,
) -> Kernel:
    tile = decode_tile(share, head_dim, 1 if cache == "i8" else 2)
    share_rows = triton.next_power_of_2(share)
    pointers = _types(cache, "sums_ptr", "stats_ptr") | {"arrived_ptr": "*i32"}
    return Kernel(
        function=decode_kernel,
        types=pointers | dict.fromkeys(STRIDES, "i32") | SCALARS,
        constants=_constants(tile, share, head_dim, cache, extras=extras, use_asm=use_asm)
        | {
            "SEGMENT_TOKENS": MIN_SEGMENT_TOKENS,
            "SEGMENTS": MAX_SEGMENTS,
            "SHARE_ROWS": share_rows,
            "AT_ONCE": at_once(share_rows, tile.columns),
        },
        aligned=(*pointers, *STRIDES),
        options={"num_warps": tile.warps, "num_stages": DECODE_STAGES, "maxnreg": MAX_REGISTERS},
        weights_per_step=2 * tile.tokens * head_dim,
    )


def _decode_heads(
    share: int = 4,
    head_dim: int = 128,
    cache: str = "bf16",
    *,
    splits: int = 8,
    norm: bool = False,
    use_asm: bool = False,
) -> Kernel:
    """Attention that makes its heads from `splits` parts."""
    plain = _decode(share, head_dim, cache, use_asm=use_asm)
    types = {name: kind for name, kind in plain.types.items() if name not in ("q_ptr", *STRIDES)}
    pointers = {"qkv_ptr": "*fp32" if splits > 1 else "*bf16"}
    pointers |= dict.fromkeys(("cos_ptr", "sin_ptr", "q_gain_ptr", "k_gain_ptr"), "*bf16")
    scalars = {"tokens": "i32", "table_stride": "i32", "eps": "fp32"}
    aligned = [name for name in plain.aligned if name in types]
    return replace(
        plain,
        function=decode_heads_kernel,
        types=types | pointers | scalars,
        constants={**plain.constants, "SPLITS": splits, "NORM": norm},
        aligned=(*aligned, *pointers, "table_stride"),
        options={**plain.options, "maxnreg": MADE_REGISTERS},
    )


def _prefill(
    share: int = 4,
    head_dim: int = 128,
    cache: str = "bf16",
    *,
    extras: bool = False,
    use_asm: bool = False,
) -> Kernel:
    tile = prefill_tile(head_dim, 1 if cache == "i8" else 2)
    pointers = _types(cache)
    return Kernel(
        function=prefill_kernel,
        types=pointers | dict.fromkeys((*STRIDES, "spans"), "i32") | SCALARS,
        constants=_constants(tile, share, head_dim, cache, extras=extras, use_asm=use_asm)
        | {"SPANS": 1},
        aligned=(*pointers, *STRIDES),
        options={"num_warps": tile.warps, "num_stages": PREFILL_STAGES, "maxnreg": MAX_REGISTERS},
    )


KERNELS = {
    "decode": _decode(),
    "decode_int8": _decode(cache="i8", use_asm=True),
    "decode_int8_portable": _decode(cache="i8"),
    "decode_share8_64_extras": _decode(8, 64, extras=True),
    "decode_256_int8": _decode(2, 256, "i8", use_asm=True),
    "heads_split": _decode_heads(),
    "heads_norm_int8": _decode_heads(cache="i8", splits=4, norm=True, use_asm=True),
    "heads_int8_portable": _decode_heads(cache="i8"),
    "heads_share8_norm": _decode_heads(8, norm=True),
    "heads_256": _decode_heads(4, 256, norm=True),
    "heads_256_int8": _decode_heads(2, 256, "i8", norm=True, use_asm=True),
    "prefill": _prefill(extras=True),
    "prefill_int8": _prefill(cache="i8", use_asm=True),
    "prefill_256": _prefill(2, 256),
}

(
    test_machine_code_stays_within_its_budget,
    test_amd_machine_code_does_not_spill,
    test_sizes_of_one_compile,
    test_every_kernel_has_a_budget,
) = budget_tests(KERNELS, __file__)
