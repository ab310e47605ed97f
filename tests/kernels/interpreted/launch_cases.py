"""How often each fused operator launches, under Triton's interpreter (see matmul_cases.py)."""

from __future__ import annotations

import torch
from attention_cases import AttentionCase
from fusion_cases import EPS, heads, random
from heads_pass import HeadsPass
from kernel_cases import Int8Case, activations
from launches import interpreted_launches

from tersor.kernels.gated.triton import gated_sum
from tersor.kernels.gemv.finish import Finish
from tersor.kernels.int8 import triton as int8
from tersor.kernels.int8.packing import pack
from tersor.kernels.norm import triton as norm
from tersor.kernels.rotary import triton as rotary


def test_a_norm_is_one_launch() -> None:
    residual, gain, partials = random(2, 8, seed=1), random(8, seed=2), random(3, 2, 8, seed=3)
    rows = torch.tensor([1])
    with interpreted_launches() as names:
        norm.add_rms_norm(residual, partials, gain, EPS)
        norm.add_rms_norm(residual, None, gain, EPS)
        norm.rms_norm_rows(residual, partials, rows, gain, EPS)
    assert names == ["add_rms_norm_kernel"] * 3


def test_rotation_and_store_are_one_launch() -> None:
    case = heads(2, 2, 1, 4, splits=2, norm=True)
    cache, slots = torch.zeros(1, 2, 2, 1, 4), torch.tensor([1, 0])
    cos, sin = case.rotation
    with interpreted_launches() as names:
        rotary.rotate_store(
            case.qkv, cos, sin, case.q_gain, case.k_gain, EPS, case.num_heads, slots, cache
        )
    assert names == ["rotate_store_kernel"]


def test_decoding_is_one_launch_with_its_rotation_and_store() -> None:
    """Of every layer but the first, which also allocates the counters of the pass."""
    case = AttentionCase.random([(1, 20), (1, 140)], kv_heads=1, share=2, head_dim=16)
    decoding = HeadsPass(case, splits=2, norm=True)
    decoding.one_launch()
    with interpreted_launches() as names:
        decoding.one_launch()
    assert names == ["decode_heads_kernel"]


def test_gating_is_one_launch() -> None:
    y = activations(2, 8).view(1, 2, 8)
    with interpreted_launches() as names:
        gated_sum(y, "silu", torch.float32)
    assert names == ["gated_sum_kernel"]


def test_products_are_one_launch_where_their_consumer_adds_up() -> None:
    x = activations(2, 2100, torch.bfloat16)
    # Small: exp overflows into a warning in the interpreter, not on a GPU.
    x, few = x * 2**-14, activations(2, 40, torch.bfloat16) * 2**-14
    split, whole = Int8Case.random(6, 2100), Int8Case.random(6, 40)
    split_codes, whole_codes = pack(split.codes), pack(whole.codes)
    with interpreted_launches() as names:
        parts = int8.matmul(x, split_codes, split.scales, None, Finish.PARTIALS)
    assert (names, parts.shape[0] > 1) == (["int8_matmul_kernel"], True)
    with interpreted_launches() as names:
        int8.matmul(few, whole_codes, whole.scales, None, Finish.SILU)
        int8.matmul(x, split_codes, split.scales, None, Finish.SILU)
    assert names == ["int8_matmul_kernel"] * 2 + ["gated_sum_kernel"]
