"""Claim: on an H200 a Llama-3-8B decodes one sequence at 230 tokens/s in bf16, 430 in int8 and 600
in int4.

Random weights in every layout, made on the device (speed does not depend on their values), one
sequence with a context of a thousand tokens; a step is captured in a CUDA graph with the choice of
the next token and replayed. The embedding stays bf16: a step reads one row of it. Beside the speed
stands the bound: the weights' bytes at the copy bandwidth of the same run.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

import record
import torch

from tersor.kernels.bench.samples import Sample, samples
from tersor.kernels.bench.timing import copy_bandwidth, graph_seconds
from tersor.kernels.layout import Layout

try:
    from tersor.bundle.program import EMBEDDING_GROUP, DecoderProgram
    from tersor.models.cache import GrowingCache
    from tersor.models.decoder import DecoderModel, decoder_weights
    from tersor.models.weights import ResidentWeights
except ModuleNotFoundError as missing:
    print(f"gpu_decode.py is left out: a decoder needs {missing.name}, which is not installed")
    sys.exit(0)

CONTEXT = 1000  # the cache grows by doubling: not in the steps that follow
DENSE = Sample(label="dense", layout="dense")


def llama_8b(layers: int = 32) -> DecoderProgram:
    return DecoderProgram(
        family="llama",
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_layers=layers,
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
        max_context=8192,
        norm_eps=1e-5,
        rope_theta=500000.0,
    )


def weights_of(
    program: DecoderProgram, sample: Sample, device: torch.device
) -> dict[str, dict[str, Layout]]:
    """Every weight of the program; matrices but the embedding as `sample` says."""
    groups: dict[str, dict[str, Layout]] = {}
    for group, shapes in decoder_weights(program).items():
        groups[group] = {}
        for name, shape in shapes.items():
            if len(shape) == 2:
                kind = DENSE if group == EMBEDDING_GROUP else sample
                groups[group][name] = kind.build(shape[0], shape[1], device)
            else:
                groups[group][name] = ones(shape, device)
    return groups


def ones(shape: tuple[int, ...], device: torch.device) -> Layout:
    from tersor.kernels.dense import DenseLayout

    return DenseLayout(torch.ones(shape, dtype=torch.bfloat16, device=device))


def step_of(
    program: DecoderProgram, weights: dict[str, dict[str, Layout]], device: torch.device
) -> Callable[[], torch.Tensor]:
    """A decode step at a context of CONTEXT tokens."""
    model = DecoderModel(
        program, ResidentWeights(weights), device=device, activations=torch.bfloat16
    )
    cache = GrowingCache()
    prompt = torch.randint(0, program.vocab_size, (CONTEXT,), device=device)
    positions = torch.arange(CONTEXT, device=device)
    last = torch.tensor([CONTEXT - 1], device=device)
    token = model.forward(prompt, positions, cache, rows=last).argmax(dim=-1)
    position = torch.tensor([CONTEXT], device=device)
    return lambda: model.forward(token, position, cache).argmax(dim=-1)


def measure(sample: Sample, device: torch.device, bandwidth: float) -> dict[str, object]:
    program = llama_8b()
    weights = weights_of(program, sample, device)
    read = sum(
        weight.resident_bytes
        for group, tensors in weights.items()
        if group != EMBEDDING_GROUP
        for weight in tensors.values()
    )
    seconds = graph_seconds(step_of(program, weights, device))
    bound = bandwidth / read
    print(
        f"  {sample.label:<16} {1 / seconds:7.1f} tokens/s  {read / 1e9:6.2f} GB  "
        f"{100 / seconds / bound:5.1f} % of the bound",
        flush=True,
    )
    return {
        "model": "llama-3-8b",
        "form": sample.label,
        "context": CONTEXT,
        "tokens_per_second": round(1 / seconds, 1),
        "weight_gb": round(read / 1e9, 3),
        "share_of_bound": round(1 / seconds / bound, 4),
        "copy_gb_per_second": round(bandwidth / 1e9, 1),
    }


def measured(device: torch.device) -> Iterator[list[dict[str, object]]]:
    bandwidth = copy_bandwidth(device)
    print(f"copy bandwidth {bandwidth / 1e9:.0f} GB/s", flush=True)
    for sample in samples():
        yield [measure(sample, device, bandwidth)]
        torch.cuda.empty_cache()


def main() -> int:
    if not torch.cuda.is_available():
        print("gpu_decode.py needs a CUDA device; torch sees none", file=sys.stderr)
        return 1
    torch.manual_seed(0)
    device = torch.device("cuda", torch.cuda.current_device())
    with torch.inference_mode():
        path = record.write_groups("gpu_decode", measured(device), packages=("triton",))
    print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
