from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from prometheus_client import CollectorRegistry
from rewrite_bundle import flip_a_byte
from tiny_encoder import CLS, MAX_TOKENS, SEP, WIDTH, WORDS, encoder, write_encoder

from tersor.runtime.config import ServerConfig
from tersor.runtime.errors import InvalidRequestError, ModelLoadError, UnsupportedError
from tersor.runtime.host import ModelHost, ServedGraph
from tersor.runtime.metrics import Metrics


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("graphs") / "encoder.tersor")


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def served(bundle: Path, registry: CollectorRegistry) -> Iterator[ServedGraph]:
    host = ModelHost(ServerConfig(models=(bundle,), preload=True), Metrics(registry))
    served = host.get("encoder")
    assert isinstance(served, ServedGraph)
    yield served
    host.close()


def words(*numbers: int) -> str:
    return " ".join(WORDS[number] for number in numbers)


def test_texts_become_padded_inputs(served: ServedGraph) -> None:
    inputs = served.encode_text([words(0, 1, 2), words(5)])
    first = len(WORDS) and served.tokenizer is not None and served.tokenizer.token_id("w0")
    assert first == 4
    assert inputs["ids"].tolist() == [[CLS, 4, 5, 6, SEP], [CLS, 9, SEP, 0, 0]]
    assert inputs["mask"].tolist() == [[1] * 5, [1, 1, 1, 0, 0]]
    assert inputs["types"].tolist() == [[0] * 5] * 2
    assert all(tensor.dtype == torch.int64 for tensor in inputs.values())


def test_long_texts_are_cut_inside_their_frame(served: ServedGraph) -> None:
    ids = served.encode_text([words(*range(30)), words(1)])["ids"]
    assert ids.shape == (2, MAX_TOKENS)
    assert ids[0].tolist() == [CLS, *range(4, 4 + MAX_TOKENS - 2), SEP]


def test_no_text_is_refused(served: ServedGraph) -> None:
    with pytest.raises(InvalidRequestError, match="got no text"):
        served.encode_text([])


def test_a_graph_without_a_frontend_takes_no_text(tmp_path: Path) -> None:
    path = write_encoder(tmp_path / "plain.tersor", text=False)
    host = ModelHost(ServerConfig(models=(path,)), Metrics(CollectorRegistry()))
    try:
        served = host.get("plain")
        assert isinstance(served, ServedGraph)
        assert served.tokenizer is None
        with pytest.raises(UnsupportedError, match="plain takes no text; send its tensors"):
            served.encode_text(["w1"])
    finally:
        host.close()


def test_results_equal_the_module_and_do_not_depend_on_neighbours(
    served: ServedGraph, registry: CollectorRegistry
) -> None:
    texts = [words(*range(start, start + 3)) for start in range(24)]
    module = encoder()

    def embed(text: str) -> torch.Tensor:
        return served.engine.submit(served.encode_text([text])).result(60)["vector"]

    with ThreadPoolExecutor(8) as threads:
        vectors = list(threads.map(embed, texts))
    with torch.no_grad():
        for text, vector in zip(texts, vectors, strict=True):
            expected = module(**served.encode_text([text]))["vector"]
            assert vector.shape == (1, WIDTH)
            torch.testing.assert_close(vector, expected, rtol=1e-5, atol=1e-6)
    rows = registry.get_sample_value("tersor_graph_batch_rows_sum", {"model": "encoder"})
    assert rows == 24 + 1  # and the warm-up
    warm = {"model": "encoder", "step": "warmup"}
    assert registry.get_sample_value("tersor_load_seconds_count", warm) == 1


def test_what_only_the_program_knows_is_an_invalid_request_too(served: ServedGraph) -> None:
    good = served.encode_text([words(1, 2)])
    unequal = {**good, "mask": torch.ones(1, 3, dtype=torch.int64)}
    outside = {**good, "ids": good["ids"] + 1000}
    for inputs in (unequal, outside):
        with pytest.raises(InvalidRequestError, match=r"^model encoder: "):
            served.engine.submit(inputs).result(60)
    assert served.engine.submit(good).result(60)["vector"].shape == (1, WIDTH)


def test_a_damaged_weight_fails_requests_until_it_is_repaired(tmp_path: Path) -> None:
    path = write_encoder(tmp_path / "damaged.tersor")
    flip_a_byte(path, "project.weight")
    host = ModelHost(ServerConfig(models=(path,)), Metrics(CollectorRegistry()))
    try:
        served = host.get("damaged")
        assert isinstance(served, ServedGraph)
        inputs = served.encode_text([words(1)])
        with pytest.raises(ModelLoadError, match=r"'project\.weight'"):
            served.engine.submit(inputs).result(60)
        flip_a_byte(path, "project.weight")
        assert served.engine.submit(inputs).result(60)["vector"].shape == (1, WIDTH)
    finally:
        host.close()
