"""CPU form of the `int4` layout: a weight in torch's int4 tiles (cpu.py)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from tersor.kernels.gemv.finish import Finish, finish_product
from tersor.kernels.int4 import cpu
from tersor.kernels.int4.ops import int4_matmul_tiles
from tersor.kernels.int4.planes import Planes

ROWS_TO_PACK = 512  # torch packs from int32: in blocks, so that loading needs no 8-fold copy


@dataclass(frozen=True, slots=True, kw_only=True)
class TilesForm:
    """Codes in torch's tile order, padded to whole tiles and whole groups."""

    n: int
    k: int
    group: int  # one of OP_GROUPS
    tiles: Tensor  # uint8 [Np, Kp/2]
    scale_offset: Tensor  # bf16 [Kp/group, Np, 2]

    @classmethod
    def pack(cls, planes: Planes, group: int, rows: int) -> TilesForm:
        """Packs for the packed kernel's `group` (see `op_group`) and tiles of `rows` rows."""
        n, k = planes.codes.shape
        padded_n, padded_k = -(-n // rows) * rows, -(-k // group) * group
        blocks = [
            cpu.convert(_padded(planes.codes[start : start + ROWS_TO_PACK], rows, padded_k))
            for start in range(0, n, ROWS_TO_PACK)
        ]
        scales = planes.scales_of_rows().to(torch.float32)
        offsets = (8 - planes.zeros_of_rows().to(torch.float32)) * scales
        pairs = torch.stack((scales, offsets), dim=-1).to(torch.bfloat16)  # [N, G, 2]
        ours = torch.arange(0, padded_k, group).div_(planes.group, rounding_mode="floor")
        pairs = pairs[:, ours.clamp_(max=pairs.shape[1] - 1)]  # [N, Kp/group, 2]
        pairs = F.pad(pairs, (0, 0, 0, 0, 0, padded_n - n)).transpose(0, 1).contiguous()
        return cls(n=n, k=k, group=group, tiles=torch.cat(blocks), scale_offset=pairs)

    def matmul(self, x: Tensor, bias: Tensor | None, finish: Finish) -> Tensor:
        y = int4_matmul_tiles(x, self.tiles, self.scale_offset, self.n, self.group, bias)
        return finish_product(y, finish)

    def dequantize(self) -> Tensor:
        decoded = cpu.decode_tiles(*self._tiled(), torch.float32)  # [tiles, Kp, rows]
        return (
            decoded.transpose(1, 2).reshape(-1, decoded.shape[1])[: self.n, : self.k].contiguous()
        )

    def rows(self, indices: Tensor) -> Tensor:
        tiles, _ = self._tiled()
        half = tiles.shape[2]
        lane = indices % (2 * half)
        bytes_ = tiles[indices // (2 * half), :, lane % half]  # [T, Kp]
        codes = torch.where((lane >= half)[:, None], bytes_ >> 4, bytes_ & 15)
        pairs = self.scale_offset[:, indices].to(torch.float32)  # [Kp/group, T, 2]
        pairs = pairs.transpose(0, 1).repeat_interleave(self.group, 1)  # [T, Kp, 2]
        return ((codes.to(torch.float32) - 8) * pairs[..., 0] + pairs[..., 1])[:, : self.k]

    @property
    def nbytes(self) -> int:
        return self.tiles.nbytes + self.scale_offset.nbytes

    def _tiled(self) -> tuple[Tensor, Tensor]:
        return cpu.by_tile(self.tiles, self.scale_offset)


def _padded(codes: Tensor, row_multiple: int, columns: int) -> Tensor:
    """Widens codes uint8 to int32 and pads them; padding is multiplied by a zero scale or x."""
    n, k = codes.shape
    return F.pad(codes.to(torch.int32), (0, columns - k, 0, -n % row_multiple))
