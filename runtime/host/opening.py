"""From a bundle's path or URL to a served model."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import torch

from tersor.bundle.location import Location
from tersor.bundle.manifest import Manifest
from tersor.bundle.phases import PhaseTimes
from tersor.bundle.program import DecoderProgram, GraphProgram
from tersor.bundle.reader import BundleReader
from tersor.models.decoder import DecoderModel, decoder_weights
from tersor.models.graph import GraphModel
from tersor.models.text import TextEncoder
from tersor.models.tokenizer import Tokenizer
from tersor.models.weights import check_weights
from tersor.runtime.config import ServerConfig
from tersor.runtime.engine.engine import DecoderEngine
from tersor.runtime.errors import ModelLoadError
from tersor.runtime.graph import GraphEngine
from tersor.runtime.host.defaults import GENERATION_CONFIG, sampling_defaults
from tersor.runtime.host.served import VERSION, ServedDecoder, ServedGraph, ServedModel
from tersor.runtime.metrics import Metrics, ModelFacts
from tersor.runtime.residency import BundleGroups, Residency

TOKENIZER: Final = "tokenizer.json"
_MAX_MEASURES: Final = 32  # label values that a bundle may make


@dataclass(frozen=True, slots=True, kw_only=True)
class Opener:
    """Opens bundles for one process."""

    config: ServerConfig
    metrics: Metrics
    residency: Residency
    device: torch.device
    activations: torch.dtype  # of decoders; a graph computes in the dtypes it was exported with
    clock: Callable[[], float]  # deadlines are on it

    def open(self, name: str, place: Location) -> ServedModel:
        """Opens a bundle and starts its engine; reads no weights.

        Raises:
            BundleError: not a bundle, or a damaged one.
            ModelError: a program this build cannot run.
            ModelLoadError: a part is missing.
        """
        start = time.perf_counter()
        times = PhaseTimes()
        reader = BundleReader.open(place, times=times)
        try:
            served = self._served(name, reader)
        except BaseException:
            self.residency.remove(name)
            reader.close()
            raise
        self.metrics.add_model(name, _facts(reader))
        seconds = time.perf_counter() - start
        self.metrics.weight_observer(name).loaded("open", seconds, times.seconds)
        return served

    def _served(self, name: str, reader: BundleReader) -> ServedModel:
        program = reader.manifest.program
        if isinstance(program, DecoderProgram):
            return self._decoder(name, reader, program)
        return self._graph(name, reader, program)

    def _decoder(self, name: str, reader: BundleReader, program: DecoderProgram) -> ServedDecoder:
        check_weights(reader.manifest, decoder_weights(program))
        tokenizer = Tokenizer.from_bytes(_required_asset(reader, TOKENIZER))
        defaults = sampling_defaults(
            _asset(reader, GENERATION_CONFIG), model=name, vocab_size=program.vocab_size
        )
        weights = self.residency.add(
            name,
            BundleGroups(reader, activations=self.activations),
            self.metrics.weight_observer(name),
        )
        model = DecoderModel(program, weights, device=self.device, activations=self.activations)
        engine = DecoderEngine(
            name=name,
            program=program,
            model=model,
            tokenizer=tokenizer,
            defaults=defaults,
            config=self.config.engine,
            metrics=self.metrics,
            device=self.device,
            activations=self.activations,
            clock=self.clock,
            load_seconds=lambda: weights.waited_seconds,
        )
        return ServedDecoder(
            name=name,
            reader=reader,
            weights=weights,
            program=program,
            tokenizer=tokenizer,
            engine=engine,
        )

    def _graph(self, name: str, reader: BundleReader, program: GraphProgram) -> ServedGraph:
        weights = self.residency.add(
            name,
            BundleGroups(reader, activations=None),
            self.metrics.weight_observer(name),
        )
        model = GraphModel(
            program, _required_asset(reader, program.graph_asset), weights, device=self.device
        )
        check_weights(reader.manifest, model.expected_weights)
        tokenizer = text = None
        if program.text is not None:
            tokenizer = Tokenizer.from_bytes(_required_asset(reader, TOKENIZER))
            text = TextEncoder(program, program.text, tokenizer)
        engine = GraphEngine(
            name=name,
            program=program,
            model=model,
            config=self.config.engine,
            observer=self.metrics.graph_observer(name),
            device=self.device,
            clock=self.clock,
            load_seconds=lambda: weights.waited_seconds,
        )
        return ServedGraph(
            name=name,
            reader=reader,
            weights=weights,
            program=program,
            tokenizer=tokenizer,
            text=text,
            engine=engine,
        )


def _asset(reader: BundleReader, name: str) -> bytes | None:
    if all(asset.name != name for asset in reader.manifest.assets):
        return None
    return reader.read_asset(name)


def _required_asset(reader: BundleReader, name: str) -> bytes:
    data = _asset(reader, name)
    if data is None:
        raise ModelLoadError(
            f"{reader.name}: the bundle has no {name}, which serving needs; convert the model again"
        )
    return data


def _facts(reader: BundleReader) -> ModelFacts:
    manifest = reader.manifest
    decoder = isinstance(manifest.program, DecoderProgram)
    return ModelFacts(
        version=VERSION,
        program="decoder" if decoder else "graph",
        recipe=str(manifest.recipe.get("name", "")),
        layouts=tuple(sorted({entry.layout for entry in manifest.tensors})),
        digest=manifest.digest,
        producer=manifest.producer,
        bundle_bytes=reader.file_bytes,
        certificate=_measures(manifest),
    )


def _measures(manifest: Manifest) -> Mapping[str, float] | None:
    """The numbers at the top of the certificate; what it says of single tensors is too much."""
    if manifest.certificate is None:
        return None
    numbers = (
        (key, float(value))
        for key, value in manifest.certificate.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    )
    return dict(itertools.islice(numbers, _MAX_MEASURES))
