"""A decoding pass whose heads are still parts of the qkv product, by one launch and by two."""

from __future__ import annotations

import torch
from attention_cases import NAN, AttentionCase
from fusion_cases import heads, moved
from torch import Tensor

from tersor.kernels.attention import AttentionPlan
from tersor.kernels.rotary import triton as rotary


class HeadsPass:
    """Heads for the spans of a case, and a copy of its cache without their keys and values."""

    def __init__(self, case: AttentionCase, *, splits: int, norm: bool) -> None:
        device = case.cache.device
        kv_heads, head_dim = case.cache.shape[3:]
        tokens, num_heads, _ = case.q.shape
        made = heads(
            tokens, num_heads, kv_heads, head_dim, splits=splits, norm=norm, dtype=case.q.dtype
        )
        self.heads = moved(made, device) if device.type != "cpu" else made
        self.plan = AttentionPlan(
            case.spans, page_tokens=case.page_tokens, device=device, kernels=True
        )
        self.cache = case.cache.clone()
        scales: Tensor | None = case.options.get("kv_scales")
        self.kv_scales = None if scales is None else scales.clone()
        self.options = case.options | {"kv_scales": self.kv_scales}
        # A read before the store shows.
        if self.kv_scales is None:
            self.cache.flatten(0, 1)[self.plan.slots] = NAN
        else:
            self.kv_scales.flatten(0, 1)[self.plan.slots] = NAN

    def two_launches(self) -> Tensor:
        """By `rotate_store_kernel` and the kernel of plain queries."""
        case = self.heads
        cos, sin = case.rotation
        q = rotary.rotate_store(
            case.qkv, cos, sin, case.q_gain, case.k_gain, case.eps, case.num_heads,
            self.plan.slots, self.cache, self.kv_scales,
        )  # fmt: skip
        return self.plan.attend(q, self.cache, **self.options)

    def one_launch(self) -> Tensor:
        """By the plan, which takes one launch where it can."""
        return self.plan.attend_heads(self.heads, self.cache, **self.options)

    def stored(self) -> list[Tensor]:
        """Cache and scales as bytes, of which those of NaNs are equal, too."""
        tensors = (self.cache, self.kv_scales)
        return [tensor.view(torch.int8) for tensor in tensors if tensor is not None]
