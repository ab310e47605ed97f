"""Models without weights for the server: a decoder that counts and a graph that doubles."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

import torch

from tersor.bundle.manifest import Manifest
from tersor.bundle.program import DecoderProgram, GraphProgram, TensorSpec, TextFrontend
from tersor.runtime.config import ServerConfig
from tersor.runtime.engine.types import (
    Event,
    EventSink,
    Failed,
    Finished,
    FinishReason,
    GenerationRequest,
    SamplingParams,
    TextDelta,
    TokenLogprobs,
    Usage,
)
from tersor.runtime.errors import DeadlineError, ServingError, UnknownModelError
from tersor.runtime.metrics import Metrics
from tersor.runtime.server.contracts import ServedDecoder, ServedGraph

DECODER = DecoderProgram(
    family="llama", vocab_size=512, hidden_size=8, intermediate_size=16, num_layers=1, num_heads=2,
    num_kv_heads=1, head_dim=4, max_context=64, norm_eps=1e-5, rope_theta=1e4, bos_token_id=1,
    eos_token_ids=(2, 3),
)  # fmt: skip
GRAPH = GraphProgram(
    graph_asset="graph.json",
    schema_version=(8, 14),
    torch_version="2.13.0",
    inputs=(
        TensorSpec(name="x", dtype="f32", shape=(-1, 3)),
        TensorSpec(name="mask", dtype="i8", shape=(-1, 3)),
    ),
    outputs=(
        TensorSpec(name="doubled", dtype="f32", shape=(-1, 3)),
        TensorSpec(name="kept", dtype="bool", shape=(-1, 3)),
        TensorSpec(name="rounded", dtype="bf16", shape=(-1, 3)),
    ),
    batch_dim_dynamic=True,
    max_batch_size=4,
    text=TextFrontend(input_ids="x", attention_mask="mask"),
)


class FakeTokenizer:
    """One token a character."""

    vocab_size = 512

    def encode(self, text: str, *, special_tokens: bool) -> list[int]:
        assert not special_tokens  # which ones a prompt has is the program's business
        return [ord(char) for char in text]

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        return "".join(chr(i) for i in ids)


@dataclass
class FakeHandle:
    request_id: str
    cancelled: threading.Event = field(default_factory=threading.Event)

    def cancel(self) -> None:
        self.cancelled.set()


class FakeDecoderEngine:
    """Answers "0 1 2 …", one number a step; the last text and Finished come together."""

    defaults = SamplingParams(max_tokens=4)

    def __init__(self) -> None:
        self.step_seconds = 0.0
        self.refusal: Exception | None = None
        self.failure: ServingError | None = None
        self.requests: list[GenerationRequest] = []
        self.handles: list[FakeHandle] = []
        self.submitted = threading.Event()  # once there is a handle
        self._threads: list[threading.Thread] = []

    def submit(self, request: GenerationRequest, sink: EventSink) -> FakeHandle:
        if self.refusal is not None:
            raise self.refusal
        handle = FakeHandle(request_id=str(len(self.handles)))
        self.requests.append(request)
        self.handles.append(handle)
        self.submitted.set()
        thread = threading.Thread(target=self._generate, args=(request, sink, handle))
        self._threads.append(thread)
        thread.start()
        return handle

    def close(self) -> None:
        for thread in self._threads:
            thread.join()

    def _generate(self, request: GenerationRequest, sink: EventSink, handle: FakeHandle) -> None:
        count = request.sampling.max_tokens
        for index in range(count):
            if handle.cancelled.wait(self.step_seconds):
                return None
            if request.deadline is not None and time.monotonic() >= request.deadline:
                return sink(Failed(error=DeadlineError("The deadline passed.")))
            if self.failure is not None and index == 1:
                return sink(Failed(error=self.failure))
            sink(self._delta(request, index))
        return sink(self._finished(request, count))

    def _delta(self, request: GenerationRequest, index: int) -> Event:
        wanted = request.sampling.logprobs is not None
        logprob = TokenLogprobs(token_id=48 + index, logprob=-0.5, rank=1, top={48 + index: -0.5})
        return TextDelta(
            text=f"{index} ",
            token_ids=(48 + index,),
            logprobs=(logprob,) if wanted else (),
            last=index + 1 == request.sampling.max_tokens,
        )

    def _finished(self, request: GenerationRequest, count: int) -> Event:
        usage = Usage(
            prompt_tokens=len(request.prompt) + isinstance(request.prompt, str),
            completion_tokens=count,
            queue_seconds=0.25,
            load_seconds=0.5,
            prefill_seconds=0.125,
            decode_seconds=1.0,
            time_to_first_token_seconds=0.875,
        )
        cumulative = None if request.sampling.logprobs is None else -0.5 * count
        return Finished(
            reason=FinishReason.LENGTH, stop_match=None, cumulative_logprob=cumulative, usage=usage
        )


class FakeGraphEngine:
    """doubled = 2x, kept = mask != 0, rounded = x in bf16."""

    def __init__(self) -> None:
        self.refusal: Exception | None = None
        self.hold = threading.Event()  # cleared: requests wait
        self.hold.set()
        self.calls: list[tuple[dict[str, torch.Tensor], float | None]] = []
        self.futures: list[Future[dict[str, torch.Tensor]]] = []

    def submit(
        self, inputs: Mapping[str, torch.Tensor], *, deadline: float | None = None
    ) -> Future[dict[str, torch.Tensor]]:
        if self.refusal is not None:
            raise self.refusal
        future: Future[dict[str, torch.Tensor]] = Future()
        self.calls.append((dict(inputs), deadline))
        self.futures.append(future)
        if self.hold.is_set():
            x, mask = inputs["x"], inputs["mask"]
            future.set_result({"doubled": x * 2, "kept": mask != 0, "rounded": x.bfloat16()})
        return future


@dataclass
class FakeReader:
    path: Path = Path("fake.tersor")
    file_bytes: int = 1234


@dataclass
class FakeDecoder:
    name: str = "counter"
    version: str = "1"
    ready: bool = True
    program: DecoderProgram = DECODER
    tokenizer: FakeTokenizer = field(default_factory=FakeTokenizer)
    engine: FakeDecoderEngine = field(default_factory=FakeDecoderEngine)
    reader: FakeReader = field(default_factory=FakeReader)

    @property
    def manifest(self) -> Manifest:
        return _manifest(self.program)


@dataclass
class FakeGraph:
    name: str = "doubler"
    version: str = "1"
    ready: bool = True
    program: GraphProgram = GRAPH
    engine: FakeGraphEngine = field(default_factory=FakeGraphEngine)
    reader: FakeReader = field(default_factory=FakeReader)

    @property
    def manifest(self) -> Manifest:
        return _manifest(self.program)

    def encode_text(self, texts: list[str]) -> dict[str, torch.Tensor]:
        x = torch.tensor([[float(len(text))] * 3 for text in texts])
        return {"x": x, "mask": torch.ones(len(texts), 3, dtype=torch.int8)}


def _manifest(program: DecoderProgram | GraphProgram) -> Manifest:
    return Manifest(
        program=program,
        tensors=(),
        groups=(),
        assets=(),
        recipe={"name": "lossless"},
        source={},
        certificate={"kl_divergence": 0.5, "note": "text"},
        producer="tersor 0.1.0",
        digest="ab" * 32,
    )


class FakeHost:
    """Serves one decoder and one graph."""

    def __init__(self) -> None:
        self.decoder = FakeDecoder()
        self.graph = FakeGraph()
        self.closed_with: float | None = None

    @property
    def models(self) -> Mapping[str, ServedDecoder | ServedGraph]:
        return {"counter": self.decoder, "doubler": self.graph}

    def get(self, name: str, version: str = "") -> ServedDecoder | ServedGraph:
        model = self.models.get(name)
        if model is None or version not in {"", "1"}:
            raise UnknownModelError(f"No model {name!r} in version {version!r}.")
        return model

    def close(self, drain_seconds: float = 0.0) -> None:
        self.closed_with = drain_seconds
        self.decoder.engine.close()

    def factory(
        self, _config: ServerConfig, metrics: Metrics, _clock: Callable[[], float]
    ) -> FakeHost:
        for name in self.models:
            metrics.rpc(name, "ModelInfer")
        return self
