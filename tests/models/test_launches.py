"""What a layer costs in launches on a GPU: a step of a quantized 8B model at batch 1 is 1 ms."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from engine_rig import tiny_program
from launches import Launches
from torch import Tensor

from tersor.kernels.dense import DenseLayout
from tersor.kernels.int8 import Int8Layout
from tersor.kernels.layout import Layout
from tersor.kernels.rotary import Heads
from tersor.models.contracts import AttentionState
from tersor.models.decoder import DecoderModel, decoder_weights
from tersor.models.weights import ResidentWeights

# Tensors without data, for which operators do as on a GPU: each is one launch (see
# tests/kernels/interpreted/launch_cases.py) but computes nothing.
META = torch.device("meta")
FUSED = {
    "tersor::add_rms_norm": "norm",
    "tersor::rms_norm_rows": "norm",
    "tersor::int8_matmul": "matmul",
    "aten::mm": "matmul",
    "aten::addmm": "matmul",
    "aten::linear": "matmul",
    "tersor::gated": "gated",
    "aten::relu": "attention",
}
EXPECTED = {
    "int8": "norm matmul attention matmul norm matmul matmul",
    "dense": "norm matmul attention matmul norm matmul gated matmul",
}


class _OneLaunch(AttentionState):
    """A paged state of a decoding pass: one launch from the parts of the qkv product on."""

    def attend(self, layer: int, heads: Heads, *, scale: float, window: int | None) -> Tensor:
        shape = (heads.qkv.shape[1], heads.num_heads, heads.rotation.cos.shape[-1])
        return torch.relu(torch.empty(shape, dtype=heads.dtype, device=META))


def _dense(shape: tuple[int, ...]) -> Layout:
    return DenseLayout(torch.empty(shape, dtype=torch.bfloat16, device=META))


def _int8(shape: tuple[int, ...]) -> Layout:
    if len(shape) == 1:
        return _dense(shape)
    codes = torch.empty(shape, dtype=torch.int8, device=META)
    scales = torch.empty(shape[0], dtype=torch.bfloat16, device=META)
    return Int8Layout(codes, scales, (shape[0], shape[1]), torch.bfloat16, int8_activations=False)


def _pass(
    layers: int, made: Callable[[tuple[int, ...]], Layout], rows: Tensor | None, *, extras: bool
) -> list[str]:
    """The launches of a pass over two sequences of a Llama-3-8B with fewer layers."""
    program = tiny_program(
        hidden_size=4096, intermediate_size=14336, num_layers=layers, num_heads=32,
        num_kv_heads=8, head_dim=128, vocab_size=128256, qk_norm=extras, qkv_bias=extras,
        o_bias=extras, mlp_bias=extras,
    )  # fmt: skip
    weights = {
        group: {
            name: _dense(shape) if name == "embedding" else made(shape)
            for name, shape in tensors.items()
        }
        for group, tensors in decoder_weights(program).items()
    }
    model = DecoderModel(program, ResidentWeights(weights), device=META, activations=torch.bfloat16)
    tokens = torch.zeros(2, dtype=torch.int64, device=META)
    attention = _OneLaunch()
    with Launches() as launches:
        model.forward(tokens, tokens, attention, rows=rows)
    return [FUSED.get(name, name) for name in launches.names]


@pytest.mark.parametrize("extras", [False, True], ids=["llama", "norms-and-biases"])
@pytest.mark.parametrize(("layout", "made"), [("int8", _int8), ("dense", _dense)])
def test_launches_of_a_layer(
    layout: str, made: Callable[[tuple[int, ...]], Layout], extras: bool
) -> None:
    one, two = (_pass(layers, made, None, extras=extras) for layers in (1, 2))
    first = one.index("norm")
    layer = two[first : first + len(two) - len(one)]
    assert layer == EXPECTED[layout].split()
    assert two == [*one[:first], *layer, *one[first:]]


def test_launches_around_the_layers() -> None:
    """Embedding, three for the rotary rows, norm, head, float32: no copy of the residual."""
    whole = _pass(1, _int8, None, extras=False)
    layer = EXPECTED["int8"].split()
    before = ["aten::index", "aten::mul", "aten::cos", "aten::sin"]
    assert whole == [*before, *layer, "norm", "matmul", "aten::to"]
    rows = _pass(1, _int8, torch.zeros(1, dtype=torch.int64, device=META), extras=False)
    assert rows == whole
