"""One bundle as the server sees it."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from tersor.bundle.manifest import Manifest
from tersor.bundle.program import DecoderProgram, GraphProgram
from tersor.bundle.reader import BundleReader
from tersor.models.errors import InvalidInputError, TokenizerError
from tersor.models.text import TextEncoder
from tersor.models.tokenizer import Tokenizer
from tersor.runtime.engine.engine import DecoderEngine
from tersor.runtime.errors import InvalidRequestError, UnsupportedError
from tersor.runtime.graph import GraphEngine
from tersor.runtime.residency import ModelWeights

VERSION = "1"  # a bundle is one version of one model; clients want a number


class _Served:
    """What every served bundle has. `ready` turns true once, when requests are welcome."""

    def __init__(self, *, name: str, reader: BundleReader, weights: ModelWeights) -> None:
        self.name = name
        self.version = VERSION
        self.reader = reader
        self.manifest: Manifest = reader.manifest
        self.weights = weights
        self.ready = False


class ServedDecoder(_Served):
    """A language model: bundle, weights, tokenizer and engine."""

    def __init__(
        self,
        *,
        name: str,
        reader: BundleReader,
        weights: ModelWeights,
        program: DecoderProgram,
        tokenizer: Tokenizer,
        engine: DecoderEngine,
    ) -> None:
        super().__init__(name=name, reader=reader, weights=weights)
        self.program = program
        self.tokenizer = tokenizer
        self.engine = engine


class ServedGraph(_Served):
    """An exported program: bundle, weights and engine, and a tokenizer if it takes text."""

    def __init__(
        self,
        *,
        name: str,
        reader: BundleReader,
        weights: ModelWeights,
        program: GraphProgram,
        tokenizer: Tokenizer | None,
        text: TextEncoder | None,
        engine: GraphEngine,
    ) -> None:
        super().__init__(name=name, reader=reader, weights=weights)
        self.program = program
        self.tokenizer = tokenizer
        self.engine = engine
        self._text = text

    def encode_text(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """The program's inputs for a batch of texts, padded to the longest.

        Raises:
            UnsupportedError: the program takes tensors only.
            InvalidRequestError: no text, only empty ones, or one the tokenizer fails on.
        """
        if self._text is None:
            raise UnsupportedError(f"model {self.name} takes no text; send its tensors")
        try:
            return self._text.encode(texts)
        except (InvalidInputError, TokenizerError) as error:
            raise InvalidRequestError(f"model {self.name}: {error}") from error


ServedModel = ServedDecoder | ServedGraph
