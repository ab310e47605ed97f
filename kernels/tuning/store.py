"""Where tuning tables are kept, and which of them speak for a device.

Looked up in this order: the user's table, the one that ships for the GPU, none. Files are read at
the first launch on a device, not at import, and once: what they say holds while the process lives.
"""

from __future__ import annotations

import logging
import os
import re
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch

from tersor.kernels.errors import TuningError
from tersor.kernels.tuning.cut import Cut
from tersor.kernels.tuning.table import MAX_BYTES, Shape, TuningTable, parse_table

_log = logging.getLogger(__name__)
SHIPPED = Path(__file__).parent


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """What a table is for, and what a rule can know of a device."""

    name: str
    compute_capability: tuple[int, int]
    processors: int  # streaming multiprocessors
    triton: str


@lru_cache(maxsize=64)
def gpu_of(device: torch.device) -> Gpu | None:
    """The GPU that `device` is; None for a CPU, and where a device is only talked about."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return None
    import triton  # a CPU need not have it

    properties = torch.cuda.get_device_properties(device)
    return Gpu(
        name=properties.name,
        compute_capability=(properties.major, properties.minor),
        processors=properties.multi_processor_count,
        triton=triton.__version__,
    )


def gpu_slug(name: str) -> str:
    """The name of a GPU's table: "NVIDIA H200" -> "nvidia-h200"."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:100] or "gpu"


def user_table(name: str) -> Path | None:
    """Where the user's table for the GPU called `name` is kept; None for a user without a home."""
    data = os.environ.get("XDG_DATA_HOME", "")
    try:
        # The specification of XDG_DATA_HOME says to ignore a relative path.
        folder = Path(data) if Path(data).is_absolute() else Path.home() / ".local" / "share"
    except RuntimeError:
        return None
    return folder / "tersor" / "kernels" / f"{gpu_slug(name)}.json"


def cut_from_tables(gpu: Gpu, shape: Shape) -> Cut | None:
    """The measured cut of exactly this kernel and weight, the user's first.

    Raises:
        TuningError: a table is broken or cannot be read.
    """
    return next((table.cuts[shape] for table in _tables(gpu) if shape in table.cuts), None)


def check_tables(device: torch.device) -> None:
    """Reads the tables of `device` now, so that a broken one is refused before anything is served.

    Raises:
        TuningError: a table is broken or cannot be read.
    """
    gpu = gpu_of(device)
    if gpu is not None:
        _tables(gpu)


@lru_cache(maxsize=64)
def _tables(gpu: Gpu) -> tuple[TuningTable, ...]:
    shipped = SHIPPED / f"{gpu_slug(gpu.name)}.json"
    tables = [read_table(path, gpu) for path in (user_table(gpu.name), shipped) if path]
    return tuple(table for table in tables if table is not None)


def read_table(path: Path, gpu: Gpu) -> TuningTable | None:
    """The table in `path`; None where there is none, or it was measured under another Triton.

    Another Triton compiles other machine code, so what was measured no longer holds: the rule takes
    over, and the log says so.

    Raises:
        TuningError: it is broken, cannot be read, or is for another GPU.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        text = data.decode("utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or "it is not UTF-8"
        raise TuningError(f"tuning table {path} cannot be read: {reason}; delete it") from None
    if len(data) > MAX_BYTES:
        raise TuningError(
            f"tuning table {path} has more than {MAX_BYTES} bytes, expected fewer; delete it"
        )
    table = parse_table(text, str(path))
    if (table.device, table.compute_capability) != (gpu.name, gpu.compute_capability):
        raise TuningError(
            f"tuning table {path} is for {table.device!r} {table.compute_capability}, expected "
            f"{gpu.name!r} {gpu.compute_capability}; delete it"
        )
    if _minor(table.triton) != _minor(gpu.triton):
        _log.warning(
            "%s was measured with Triton %s and is not used with %s; "
            "`tersor bench kernels --tune` measures again",
            path,
            table.triton,
            gpu.triton,
        )
        return None
    return table


def write_table(path: Path, table: TuningTable) -> None:
    """Writes `table` whole or not at all. Raises OSError if it cannot be written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(
        "w", encoding="utf-8", dir=path.parent, suffix=".tmp", delete=False
    ) as file:
        file.write(table.to_json())
    Path(file.name).chmod(0o644)  # a table is no secret, and a service may run as another user
    Path(file.name).replace(path)


def _minor(version: str) -> str:
    """Major and minor: 3.6 of 3.6.0."""
    return ".".join(version.split(".")[:2])
