"""Engines over tiny models, with everything recorded and the clock in the test's hand."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from tiny_tokenizer import EOS, VOCAB_SIZE, byte_tokenizer
from torch import Tensor

from tersor.bundle.program import DecoderProgram
from tersor.kernels.dense import DenseLayout
from tersor.models.contracts import AttentionState
from tersor.models.decoder import DecoderModel, decoder_weights
from tersor.models.tokenizer import Tokenizer
from tersor.models.weights import ResidentWeights
from tersor.runtime.config import EngineConfig
from tersor.runtime.engine import (
    Event,
    Failed,
    Finished,
    FinishReason,
    GenerationRequest,
    SamplingParams,
    TextDelta,
    TokenLogprobs,
    Usage,
)
from tersor.runtime.engine.engine import DecoderEngine, RequestHandle
from tersor.runtime.engine.runner import Model

CPU = torch.device("cpu")
SMALL = EngineConfig(
    max_batch_size=4,
    max_queue_size=8,
    prefill_chunk_tokens=8,
    kv_page_tokens=4,
    kv_cache_bytes=1 << 20,
)


def tiny_program(**changes: Any) -> DecoderProgram:
    """Two layers of odd sizes with grouped heads; `changes` are fields of the program."""
    fields: dict[str, Any] = {
        "family": "llama",
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 32,
        "intermediate_size": 56,
        "num_layers": 2,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 16,
        "max_context": 96,
        "norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "eos_token_ids": (EOS,),
    }
    return DecoderProgram(**{**fields, **changes})


def tiny_model(program: DecoderProgram, *, seed: int = 0) -> DecoderModel:
    """Random float32 weights, spread so that no choice of a token is a near tie."""
    generator = torch.Generator().manual_seed(seed)
    groups = {
        group: {name: _weight(shape, generator) for name, shape in tensors.items()}
        for group, tensors in decoder_weights(program).items()
    }
    return DecoderModel(program, ResidentWeights(groups), device=CPU, activations=torch.float32)


def _weight(shape: tuple[int, ...], generator: torch.Generator) -> DenseLayout:
    vector = len(shape) == 1
    values = torch.randn(shape, generator=generator) * (0.3 if vector else 0.35) + vector
    return DenseLayout.from_planes({"values": values}, shape, torch.float32, {}, CPU)


class FakeClock:
    """Moves when told to, and by `tick` on every reading."""

    def __init__(self, tick: float = 0.0) -> None:
        self.now = 100.0
        self.tick = tick

    def __call__(self) -> float:
        self.now += self.tick
        return self.now


class ScriptedModel:
    """Answers with the token that `script` has at the position of the next token.

    `fail` is raised by passes over any of the `poisoned` tokens, or by every pass without any.
    """

    def __init__(
        self, script: Mapping[int, int] | Sequence[int], *, vocab: int = VOCAB_SIZE
    ) -> None:
        self._script = dict(enumerate(script)) if isinstance(script, Sequence) else dict(script)
        self._vocab = vocab
        self.passes: list[list[int]] = []  # tokens of every pass
        self.fail: Exception | None = None
        self.poisoned: frozenset[int] = frozenset()
        self.nan_tokens: frozenset[int] = frozenset()  # rows of these have NaN logits
        self.on_pass: Callable[[], None] = lambda: None

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        attention: AttentionState,
        *,
        rows: Tensor | None = None,
    ) -> Tensor:
        ids: list[int] = tokens.tolist()
        self.passes.append(ids)
        self.on_pass()
        if self.fail is not None and (not self.poisoned or self.poisoned & set(ids)):
            raise self.fail
        logits = torch.zeros(len(ids), self._vocab)
        for row, position in enumerate(positions.tolist()):
            logits[row, self._script.get(position + 1, 1)] = 10.0
            if ids[row] in self.nan_tokens:
                logits[row] = float("nan")
        return logits if rows is None else logits[rows]


@dataclass
class Recorder:
    """An observer and the metrics that give it."""

    queued_seconds: list[float] = field(default_factory=list)
    first_tokens: list[tuple[float, bool]] = field(default_factory=list)
    inter_tokens: list[float] = field(default_factory=list)
    prefills: list[tuple[float, int]] = field(default_factory=list)
    decode_steps: list[tuple[float, int]] = field(default_factory=list)
    finishes: list[tuple[FinishReason, Usage]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    preemptions: int = 0
    kv: list[tuple[int, int]] = field(default_factory=list)
    depths: list[tuple[int, int]] = field(default_factory=list)

    def engine_observer(self, model: str) -> Recorder:
        assert model
        return self

    def queued(self, seconds: float) -> None:
        self.queued_seconds.append(seconds)

    def first_token(self, seconds: float, *, cold: bool = False) -> None:
        self.first_tokens.append((seconds, cold))

    def inter_token(self, seconds: float) -> None:
        self.inter_tokens.append(seconds)

    def prefill(self, seconds: float, tokens: int) -> None:
        self.prefills.append((seconds, tokens))

    def decode_step(self, seconds: float, batch: int) -> None:
        self.decode_steps.append((seconds, batch))

    def finished(self, reason: FinishReason, usage: Usage) -> None:
        self.finishes.append((reason, usage))

    def failed(self, reason: str) -> None:
        self.failures.append(reason)

    def preempted(self) -> None:
        self.preemptions += 1

    def kv_usage(self, used: int, total: int) -> None:
        self.kv.append((used, total))

    def queue_depth(self, waiting: int, running: int) -> None:
        self.depths.append((waiting, running))


class Sink:
    """Keeps the events of one request."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.on_event: Callable[[Event], None] = lambda _: None

    def __call__(self, event: Event) -> None:
        assert not self.ended, "an event after the last one"
        self.events.append(event)
        self.on_event(event)

    @property
    def ended(self) -> bool:
        return bool(self.events) and isinstance(self.events[-1], Finished | Failed)

    @property
    def deltas(self) -> list[TextDelta]:
        return [event for event in self.events if isinstance(event, TextDelta)]

    @property
    def text(self) -> str:
        return "".join(delta.text for delta in self.deltas)

    @property
    def token_ids(self) -> list[int]:
        return [token for delta in self.deltas for token in delta.token_ids]

    @property
    def logprobs(self) -> list[TokenLogprobs]:
        return [entry for delta in self.deltas for entry in delta.logprobs]

    @property
    def finished(self) -> Finished:
        assert self.events
        assert isinstance(self.events[-1], Finished), self.events[-1]
        return self.events[-1]

    @property
    def error(self) -> Exception:
        assert self.events
        assert isinstance(self.events[-1], Failed), self.events[-1]
        return self.events[-1].error


@dataclass(kw_only=True)
class Rig:
    """An engine and what the tests look at."""

    engine: DecoderEngine
    metrics: Recorder
    clock: FakeClock

    def submit(
        self, prompt: str | tuple[int, ...], *, deadline: float | None = None, **sampling: Any
    ) -> tuple[RequestHandle, Sink]:
        sink = Sink()
        request = GenerationRequest(
            prompt=prompt, sampling=SamplingParams(**sampling), deadline=deadline
        )
        return self.engine.submit(request, sink), sink

    def run(self, *, limit: int = 5000) -> None:
        """Steps until there is nothing to do, checking the books after every step."""
        for _ in range(limit):
            more = self.engine.step()
            self.engine.check_integrity()
            if not more:
                return
        raise AssertionError(f"the engine is still busy after {limit} steps")

    def answer(self, prompt: str | tuple[int, ...], **sampling: Any) -> Sink:
        """One request on an idle engine."""
        _, sink = self.submit(prompt, **sampling)
        self.run()
        assert self.engine.kv_pages_in_use == 0
        return sink


def make_rig(
    model: Model | None = None,
    program: DecoderProgram | None = None,
    *,
    config: EngineConfig = SMALL,
    threaded: bool = False,
    clock: FakeClock | None = None,
    load_seconds: Callable[[], float] = lambda: 0.0,
    tokenizer: Tokenizer | None = None,
) -> Rig:
    """An engine over `model` (random by default), stepped by the test unless `threaded`."""
    program = program or tiny_program()
    metrics, clock = Recorder(), clock or FakeClock()
    seeds = itertools.count(1000)
    engine = DecoderEngine(
        name="tiny",
        program=program,
        model=model or tiny_model(program),
        tokenizer=tokenizer or byte_tokenizer(),
        defaults=SamplingParams(),
        config=config,
        metrics=metrics,
        device=CPU,
        activations=torch.float32,
        clock=clock,
        load_seconds=load_seconds,
        seeds=lambda: next(seeds),
        threaded=threaded,
    )
    return Rig(engine=engine, metrics=metrics, clock=clock)
