"""Claim: bf16 matrices take little more than 12 bits a weight in a GPU's memory, bit for bit.

Per set of matrices: the share of escapes (of all weights, and of the worst matrix), the matrices
that would be held dense, and the resident bits per weight. Every matrix is decoded and compared.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import record
import torch
from real_weights import ROOT, gaussian, matrices, minilm, read_tensors
from torch import Tensor

from tersor.kernels.float12.ops import float12_decode
from tersor.kernels.float12.packing import pack
from tersor.kernels.float12.words import WordsForm

GAUSSIAN_ROWS = 2048  # of 4096 columns each


def pico() -> Iterator[Tensor]:
    """The matrices of the example model, which is trained in bf16."""
    for array in matrices(read_tensors(ROOT / "examples" / "pico" / "model.safetensors")):
        yield torch.from_numpy(array).view(torch.bfloat16)


def minilm_bf16() -> Iterator[Tensor]:
    """The matrices of MiniLM, rounded from float32."""
    for array in matrices(read_tensors(minilm() / "model.safetensors")):
        yield torch.from_numpy(np.asarray(array)).to(torch.bfloat16)


def gaussian_rows() -> Iterator[Tensor]:
    """Rows that differ in scale."""
    array = gaussian(0).array[:GAUSSIAN_ROWS]
    yield torch.from_numpy(array).view(torch.bfloat16)


def pruned(weights: Iterable[Tensor]) -> Iterator[Tensor]:
    """Half of each matrix's weights set to zero, the smallest."""
    for weight in weights:
        magnitude = weight.float().abs()
        half = magnitude.flatten().kthvalue(magnitude.numel() // 2).values
        yield torch.where(magnitude <= half, torch.zeros_like(weight), weight)


def measured(name: str, weights: Iterable[Tensor]) -> Mapping[str, object]:
    """One row of the results."""
    count = elements = dense = escapes = resident = 0
    worst = 0.0
    for weight in weights:
        count += 1
        elements += weight.numel()
        packed = pack(weight)
        if packed is None:
            dense += 1
            resident += weight.nbytes
            continue
        if not torch.equal(float12_decode(packed).view(torch.int16), weight.view(torch.int16)):
            raise SystemExit(f"{name}: a weight does not come back bit for bit")
        escapes += packed.columns.numel()
        worst = max(worst, packed.columns.numel() / weight.numel())
        resident += WordsForm(packed).resident_bytes
    return {
        "weights": name,
        "matrices": count,
        "elements": elements,
        "held_dense": dense,
        "escape_share": f"{escapes / elements:.6f}",
        "worst_escape_share": f"{worst:.6f}",
        "resident_bits_per_weight": f"{8 * resident / elements:.4f}",
    }


def main() -> int:
    sets = {
        "pico, bf16": pico(),
        "pico, bf16, half pruned": pruned(pico()),
        "MiniLM, rounded to bf16": minilm_bf16(),
        f"Gaussian rows, {GAUSSIAN_ROWS} of 4096 columns": gaussian_rows(),
    }
    rows = [measured(name, weights) for name, weights in sets.items()]
    for row in rows:
        print(*row.values(), sep="  ")
    print(record.write("float12_size", rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
