"""`tersor::rotate_store`: everything between the qkv product and attention, one launch on a GPU."""

from __future__ import annotations

import torch
from torch import Tensor

from tersor.kernels.rotary.heads import Heads, Rotation
from tersor.kernels.rotary.quantize import quantize_kv

LIBRARY = torch.library.Library("tersor", "FRAGMENT")
LIBRARY.define(
    "rotate_store(Tensor qkv, Tensor cos, Tensor sin, Tensor? q_gain, Tensor? k_gain, float eps, "
    "int num_heads, Tensor slots, Tensor(a!) cache, Tensor(b!)? kv_scales=None) -> Tensor"
)


@torch.library.impl(LIBRARY, "rotate_store", "CPU")
def _rotate_store_cpu(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    q_gain: Tensor | None,
    k_gain: Tensor | None,
    eps: float,
    num_heads: int,
    slots: Tensor,
    cache: Tensor,
    kv_scales: Tensor | None = None,
) -> Tensor:
    heads = Heads(
        qkv=qkv,
        num_heads=num_heads,
        num_kv_heads=cache.shape[-2],
        rotation=Rotation(cos, sin),
        q_gain=q_gain,
        k_gain=k_gain,
        eps=eps,
    )
    return _split_and_store(heads, slots, cache, kv_scales).contiguous()


@torch.library.impl(LIBRARY, "rotate_store", "CUDA")
def _rotate_store_cuda(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    q_gain: Tensor | None,
    k_gain: Tensor | None,
    eps: float,
    num_heads: int,
    slots: Tensor,
    cache: Tensor,
    kv_scales: Tensor | None = None,
) -> Tensor:
    from tersor.kernels.rotary import triton  # imports triton, which a CPU need not have

    return triton.rotate_store(
        qkv, cos, sin, q_gain, k_gain, eps, num_heads, slots, cache, kv_scales
    )


def _rotate_store_fake(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    q_gain: Tensor | None,
    k_gain: Tensor | None,
    eps: float,
    num_heads: int,
    slots: Tensor,
    cache: Tensor,
    kv_scales: Tensor | None = None,
) -> Tensor:
    del sin, q_gain, k_gain, eps, slots, kv_scales  # the shape does not depend on them
    return cos.new_empty(qkv.shape[1], num_heads, cache.shape[-1])


torch.library.register_fake("tersor::rotate_store", _rotate_store_fake, lib=LIBRARY)


def rotate_store(
    heads: Heads, slots: Tensor, cache: Tensor, kv_scales: Tensor | None = None
) -> Tensor:
    """Writes the keys and values of `heads` into one layer's cache, and returns its queries.

    Args:
        heads: of one pass of T tokens.
        slots: int64 [T], the place of each token in the cache, counted over its pages.
        cache: [num_pages, page_tokens, 2, num_kv_heads, head_dim], keys then values, contiguous,
            fp32 or bf16, or int8 with `kv_scales`; changed.
        kv_scales: float32 [num_pages, page_tokens, 2, num_kv_heads] of an int8 cache; changed.

    Returns:
        Rotated queries [T, num_heads, head_dim] in `heads.dtype`.

    Raises:
        LayoutError: on a GPU, an operand has another shape, dtype or device.
    """
    if cache.device.type == "cpu":  # torch's own operators need none around them
        return _split_and_store(heads, slots, cache, kv_scales)
    cos, sin = heads.rotation
    q: Tensor = torch.ops.tersor.rotate_store(
        heads.qkv, cos, sin, heads.q_gain, heads.k_gain, heads.eps, heads.num_heads, slots, cache,
        kv_scales,
    )  # fmt: skip
    return q


def _split_and_store(
    heads: Heads, slots: Tensor, cache: Tensor, kv_scales: Tensor | None
) -> Tensor:
    q, k, v = heads.split()
    flat = cache.view(-1, *cache.shape[2:])  # [slots, 2, kv_heads, head_dim]
    if kv_scales is not None:
        both, scales = quantize_kv(torch.stack((k, v), dim=1))  # [T, 2, kv_heads, head_dim]
        flat.index_copy_(0, slots, both)
        kv_scales.flatten(0, 1).index_copy_(0, slots, scales)
        return q
    flat.select(1, 0).index_copy_(0, slots, k.to(cache.dtype))
    flat.select(1, 1).index_copy_(0, slots, v.to(cache.dtype))
    return q
