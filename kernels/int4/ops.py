"""The int4 operators, visible to torch.compile, torch.export and CUDA graphs."""

from __future__ import annotations

import torch
from torch import Tensor

from tersor.kernels.int4 import cpu

LIBRARY = torch.library.Library("tersor", "FRAGMENT")
LIBRARY.define(
    "int4_matmul_tiles(Tensor x, Tensor tiles, Tensor scale_offset, int n, int group, "
    "Tensor? bias=None) -> Tensor"
)


@torch.library.impl(LIBRARY, "int4_matmul_tiles", "CPU")
def _tiles_cpu(
    x: Tensor, tiles: Tensor, scale_offset: Tensor, n: int, group: int, bias: Tensor | None = None
) -> Tensor:
    return cpu.matmul(x, tiles, scale_offset, n, group, bias)


@torch.library.register_fake("tersor::int4_matmul_tiles", lib=LIBRARY)
def _tiles_fake(
    x: Tensor, tiles: Tensor, scale_offset: Tensor, n: int, group: int, bias: Tensor | None = None
) -> Tensor:
    return x.new_empty(x.shape[0], n)
