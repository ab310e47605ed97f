"""What every batched matrix-vector kernel shares: how it is cut, launched and finished."""

from tersor.kernels.gemv.config import GEMM_MIN_ROWS, TileConfig, tile_config
from tersor.kernels.gemv.finish import Finish

__all__ = ["GEMM_MIN_ROWS", "Finish", "TileConfig", "tile_config"]
