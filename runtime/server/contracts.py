"""What the server asks of the models it serves; `runtime.host.ModelHost` gives it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Protocol

from torch import Tensor

from tersor.bundle.manifest import Manifest
from tersor.bundle.program import DecoderProgram, GraphProgram
from tersor.runtime.engine.types import EventSink, GenerationRequest, SamplingParams


class Reader(Protocol):
    """The open bundle."""

    @property
    def file_bytes(self) -> int: ...


class Tokenizer(Protocol):
    """The bundle's tokenizer."""

    def encode(self, text: str, *, special_tokens: bool) -> list[int]: ...
    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str: ...  # noqa: FBT001, FBT002


class Handle(Protocol):
    """One running generation."""

    @property
    def request_id(self) -> str: ...
    def cancel(self) -> None: ...


class Generator(Protocol):
    """A decoder's engine."""

    @property
    def defaults(self) -> SamplingParams: ...
    def submit(self, request: GenerationRequest, sink: EventSink) -> Handle: ...


class Runner(Protocol):
    """A graph's engine."""

    def submit(
        self, inputs: Mapping[str, Tensor], *, deadline: float | None = None
    ) -> Future[dict[str, Tensor]]: ...


class ServedModel(Protocol):
    """One bundle, whatever its program."""

    @property
    def name(self) -> str: ...
    @property
    def version(self) -> str: ...
    @property
    def manifest(self) -> Manifest: ...
    @property
    def reader(self) -> Reader: ...
    @property
    def ready(self) -> bool: ...


class ServedDecoder(ServedModel, Protocol):
    """A language model."""

    @property
    def program(self) -> DecoderProgram: ...
    @property
    def tokenizer(self) -> Tokenizer: ...
    @property
    def engine(self) -> Generator: ...


class ServedGraph(ServedModel, Protocol):
    """An exported program."""

    @property
    def program(self) -> GraphProgram: ...
    @property
    def engine(self) -> Runner: ...
    def encode_text(self, texts: list[str]) -> dict[str, Tensor]: ...


class Host(Protocol):
    """Every model of the process."""

    @property
    def models(self) -> Mapping[str, ServedDecoder | ServedGraph]: ...
    def get(self, name: str, version: str = "") -> ServedDecoder | ServedGraph: ...
    def close(self, drain_seconds: float = 0.0) -> None: ...
