"""The engine over a real, trained model from a real bundle."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_rig import CPU, FakeClock, Recorder, Rig, Sink

from tersor.bundle.program import DecoderProgram
from tersor.bundle.reader import BundleReader
from tersor.converters.pipeline import convert
from tersor.converters.recipe import load_recipe
from tersor.models.cache import GrowingCache
from tersor.models.decoder import DecoderModel
from tersor.models.tokenizer import Tokenizer
from tersor.models.weights import ResidentWeights
from tersor.runtime.config import EngineConfig
from tersor.runtime.engine import SamplingParams
from tersor.runtime.engine.engine import DecoderEngine
from tersor.runtime.errors import CancelledRequestError

PROMPT = "def fibonacci(n):\n    "


class Pico:
    """The model, its tokenizer, and engines over it."""

    def __init__(self, bundle: Path) -> None:
        with BundleReader.open(bundle) as reader:
            assert isinstance(reader.manifest.program, DecoderProgram)
            self.program = reader.manifest.program
            self.tokenizer = Tokenizer.from_bytes(reader.read_asset("tokenizer.json"))
            weights = ResidentWeights.from_bundle(reader, CPU)
        self.model = DecoderModel(self.program, weights, device=CPU, activations=torch.float32)

    def rig(self, config: EngineConfig) -> Rig:
        metrics, clock = Recorder(), FakeClock()
        engine = DecoderEngine(
            name="pico",
            program=self.program,
            model=self.model,
            tokenizer=self.tokenizer,
            defaults=SamplingParams(),
            config=config,
            metrics=metrics,
            device=CPU,
            activations=torch.float32,
            clock=clock,
            threaded=False,
        )
        return Rig(engine=engine, metrics=metrics, clock=clock)


@pytest.fixture(scope="module")
def pico(pico_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Pico:
    bundle = tmp_path_factory.mktemp("pico") / "pico.tersor"
    convert(pico_dir, bundle, recipe=load_recipe("int8"), codec="raw")
    return Pico(bundle)


def test_greedy_text_is_the_models(pico: Pico) -> None:
    sink = pico.rig(EngineConfig(prefill_chunk_tokens=4)).answer(PROMPT, max_tokens=40)
    assert pico.program.bos_token_id is not None
    pending = [pico.program.bos_token_id, *pico.tokenizer.encode(PROMPT, special_tokens=False)]
    cache, start, expected = GrowingCache(), 0, list[int]()
    while len(expected) < len(sink.token_ids):
        positions = torch.arange(start, start + len(pending))
        logits = pico.model.forward(torch.tensor(pending), positions, cache)
        start += len(pending)
        pending = [int(logits[-1].argmax())]
        expected += pending
    assert len(expected) > 10  # it did answer
    assert sink.token_ids == expected
    assert sink.text == pico.tokenizer.decode(expected)


def test_32_streams(pico: Pico, heldout_text: str) -> None:
    """Different lengths, a third cancelled midway, half of them sampled."""
    rng = random.Random(0)
    requests: list[dict[str, Any]] = []
    for index in range(32):
        start = rng.randrange(len(heldout_text) - 400)
        requests.append(
            {
                "prompt": heldout_text[start : start + rng.randint(1, 250)],
                "max_tokens": rng.randint(2, 14),
                "temperature": 0.9 * (index % 2),
                "seed": index,
                "top_p": 0.95 if index % 4 == 1 else 1.0,
                "stop": ("\n\n",) if index % 5 == 0 else (),
            }
        )
    config = EngineConfig(max_batch_size=32, prefill_chunk_tokens=32)
    alone = pico.rig(config)
    expected = [alone.answer(**request) for request in requests]
    assert all(want.token_ids for want in expected)

    rig = pico.rig(config)
    sinks: list[Sink] = []
    for index, request in enumerate(requests):
        handle, sink = rig.submit(**request)
        sinks.append(sink)
        if index % 3 == 0:
            sink.on_event = lambda _, handle=handle: handle.cancel()  # type: ignore[misc]
    rig.run()
    assert rig.engine.kv_pages_in_use == 0
    whole = 0
    for index, (sink, want) in enumerate(zip(sinks, expected, strict=True)):
        if index % 3 and sink.ended:
            assert sink.text == want.text
            assert sink.token_ids == want.token_ids
            whole += 1
        elif not isinstance(sink.events[-1], type(want.events[-1])):
            assert isinstance(sink.error, CancelledRequestError)
            assert want.text.startswith(sink.text)
    assert whole == 21
