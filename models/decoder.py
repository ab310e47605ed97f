"""The canonical decoder: one forward pass for Llama, Mistral, Qwen2 and Qwen3 shapes.

Weights come group by group from a `WeightSource`, attention is the `AttentionState`'s: this file is
only the arithmetic between them. It keeps no state between passes but the rotary table.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tersor.bundle.program import EMBEDDING_GROUP, HEAD_GROUP, DecoderProgram, layer_group
from tersor.kernels.gated import ACTIVATIONS
from tersor.kernels.layout import Layout
from tersor.kernels.rotary import Heads, Rotation
from tersor.models.contracts import AttentionState, GroupWeights, WeightSource
from tersor.models.errors import UnsupportedProgramError, WeightError
from tersor.models.residual import ResidualStream
from tersor.models.rotary import Rotary
from tersor.models.weights import WeightShapes


@dataclass(frozen=True, slots=True)
class _Weight:
    """Name and shape a weight must have; the names are formatted once, not for every token."""

    name: str
    shape: tuple[int, ...]

    def of(self, weights: GroupWeights) -> Layout:
        layout = weights.get(self.name)
        if layout is None:
            raise WeightError(f"weight {self.name!r} {list(self.shape)} is missing from its group")
        if layout.shape != self.shape:
            raise WeightError(
                f"weight {self.name!r} is {list(layout.shape)}, "
                f"the program needs {list(self.shape)}"
            )
        return layout


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layer:
    """The weights and constants of one layer."""

    index: int
    group: str
    window: int | None
    attention_norm: _Weight
    qkv: _Weight
    qkv_bias: _Weight | None
    q_norm: _Weight | None
    k_norm: _Weight | None
    o: _Weight
    o_bias: _Weight | None
    mlp_norm: _Weight
    gate_up: _Weight
    gate_up_bias: _Weight | None
    down: _Weight
    down_bias: _Weight | None

    @property
    def weights(self) -> tuple[_Weight, ...]:
        values = (getattr(self, name) for name in self.__slots__)
        return tuple(value for value in values if isinstance(value, _Weight))


def decoder_weights(program: DecoderProgram) -> WeightShapes:
    """Every weight the program needs: group -> tensor name -> shape, groups in execution order."""
    shapes: dict[str, dict[str, tuple[int, ...]]] = {
        EMBEDDING_GROUP: {"embedding": (program.vocab_size, program.hidden_size)}
    }
    for index in range(program.num_layers):
        layer = _layer(program, index)
        shapes[layer.group] = {weight.name: weight.shape for weight in layer.weights}
    shapes[HEAD_GROUP] = {"final_norm": (program.hidden_size,)}
    if not program.tie_embeddings:
        shapes[HEAD_GROUP]["head"] = (program.vocab_size, program.hidden_size)
    return shapes


class DecoderModel:
    """Runs a decoder program. Safe from many threads if its `WeightSource` is."""

    def __init__(
        self,
        program: DecoderProgram,
        weights: WeightSource,
        *,
        device: torch.device,
        activations: torch.dtype,
    ) -> None:
        """Prepares the program; reads no weights.

        Args:
            program: the canonical configuration.
            weights: where layouts come from, in the groups of `decoder_weights`.
            device: where they are resident and inputs must be.
            activations: dtype of the residual stream, float32 or bfloat16.

        Raises:
            UnsupportedProgramError: the configuration contradicts itself.
        """
        _check(program)
        self.program = program
        self.device = device
        self.activations = activations
        self._source = weights
        self._layers = tuple(_layer(program, index) for index in range(program.num_layers))
        self._rotary = Rotary(program, device=device, dtype=activations)
        self._scale = program.head_dim**-0.5
        self._eps = program.norm_eps
        table = (program.vocab_size, program.hidden_size)
        self._embedding = _Weight("embedding", table)
        self._head = _Weight("head", table)
        self._final_norm = _Weight("final_norm", (program.hidden_size,))

    @torch.inference_mode()
    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        attention: AttentionState,
        *,
        rows: Tensor | None = None,
    ) -> Tensor:
        """One pass over the flat tokens of any number of sequences.

        Args:
            tokens: int64 [T].
            positions: int64 [T], each below `max_context`.
            attention: the sequences' keys and values; knows which token is whose.
            rows: int64 [R], the tokens whose logits are wanted; None means all.

        Returns:
            Logits float32 [R or T, vocab_size].

        Raises:
            WeightError: a weight is missing or mis-shaped.
            BundleError: a group could not be loaded.
        """
        with self._source.acquire(EMBEDDING_GROUP) as weights:
            stream = ResidualStream(self._embedding.of(weights).rows(tokens, self.activations))
        rotation = self._rotary.at(positions)
        for layer in self._layers:
            with self._source.acquire(layer.group) as weights:
                x = stream.norm(self._vector(layer.attention_norm, weights), self._eps)
                stream.add(self._attend(layer, weights, x, rotation, attention))
                x = stream.norm(self._vector(layer.mlp_norm, weights), self._eps)
                stream.add(self._mlp(layer, weights, x))
        return self._logits(stream, rows)

    def _attend(
        self,
        layer: _Layer,
        weights: GroupWeights,
        x: Tensor,
        rotation: Rotation,
        attention: AttentionState,
    ) -> Tensor:
        """Attention of normed x [T, hidden]: parts [S, T, hidden] that add up to it."""
        qkv_bias = self._optional(layer.qkv_bias, weights)
        heads = Heads(
            qkv=layer.qkv.of(weights).partials(x, qkv_bias),
            num_heads=self.program.num_heads,
            num_kv_heads=self.program.num_kv_heads,
            rotation=rotation,
            q_gain=self._optional(layer.q_norm, weights),
            k_gain=self._optional(layer.k_norm, weights),
            eps=self._eps,
        )
        y = attention.attend(layer.index, heads, scale=self._scale, window=layer.window)
        y = y.reshape(x.shape[0], -1)  # [T, heads * head_dim]
        return layer.o.of(weights).partials(y, self._optional(layer.o_bias, weights))

    def _mlp(self, layer: _Layer, weights: GroupWeights, x: Tensor) -> Tensor:
        """The MLP of normed x [T, hidden]: parts [S, T, hidden] that add up to it."""
        bias = self._optional(layer.gate_up_bias, weights)
        y = layer.gate_up.of(weights).gated(x, bias, self.program.activation)
        return layer.down.of(weights).partials(y, self._optional(layer.down_bias, weights))

    def _logits(self, stream: ResidualStream, rows: Tensor | None) -> Tensor:
        with self._source.acquire(HEAD_GROUP) as weights:
            gain = self._vector(self._final_norm, weights)
            x = stream.norm(gain, self._eps, rows=rows)
            if not self.program.tie_embeddings:
                return self._head.of(weights).matmul(x).float()
        with self._source.acquire(EMBEDDING_GROUP) as weights:
            return self._embedding.of(weights).matmul(x).float()

    def _vector(self, weight: _Weight, weights: GroupWeights) -> Tensor:
        return weight.of(weights).dense(self.activations)

    def _optional(self, weight: _Weight | None, weights: GroupWeights) -> Tensor | None:
        return None if weight is None else self._vector(weight, weights)


def _layer(program: DecoderProgram, index: int) -> _Layer:
    group = layer_group(index)
    hidden, inner, head_dim = program.hidden_size, program.intermediate_size, program.head_dim
    attended = program.num_heads * head_dim
    qkv = attended + 2 * program.num_kv_heads * head_dim

    def weight(name: str, *shape: int) -> _Weight:
        return _Weight(f"{group}.{name}", shape)

    return _Layer(
        index=index,
        group=group,
        window=program.window(index),
        attention_norm=weight("attention_norm", hidden),
        qkv=weight("qkv", qkv, hidden),
        qkv_bias=weight("qkv_bias", qkv) if program.qkv_bias else None,
        q_norm=weight("q_norm", head_dim) if program.qk_norm else None,
        k_norm=weight("k_norm", head_dim) if program.qk_norm else None,
        o=weight("o", hidden, attended),
        o_bias=weight("o_bias", hidden) if program.o_bias else None,
        mlp_norm=weight("mlp_norm", hidden),
        gate_up=weight("gate_up", 2 * inner, hidden),
        gate_up_bias=weight("gate_up_bias", 2 * inner) if program.mlp_bias else None,
        down=weight("down", hidden, inner),
        down_bias=weight("down_bias", hidden) if program.mlp_bias else None,
    )


def _check(program: DecoderProgram) -> None:
    sizes = (
        program.vocab_size, program.hidden_size, program.intermediate_size, program.num_layers,
        program.num_heads, program.num_kv_heads, program.head_dim, program.max_context,
    )  # fmt: skip
    problems = []
    if min(sizes) < 1:
        problems.append(f"every size must be positive, got {sizes}")
    elif program.num_heads % program.num_kv_heads:
        problems.append(
            f"{program.num_heads} heads do not share {program.num_kv_heads} kv heads evenly"
        )
    if program.head_dim % 2:
        problems.append(f"head_dim must be even to be rotated, got {program.head_dim}")
    if program.windows and len(program.windows) != program.num_layers:
        problems.append(f"{len(program.windows)} windows for {program.num_layers} layers")
    if any(window is not None and window < 1 for window in program.windows):
        problems.append(f"a window must be at least 1 token, got {program.windows}")
    if program.activation not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        problems.append(f"activation {program.activation!r} is none of {known}")
    if problems:
        raise UnsupportedProgramError(f"decoder program: {'; '.join(problems)}")
