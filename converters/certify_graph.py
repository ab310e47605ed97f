"""Compares the sentence vectors of a graph with a reference's: cosine over the lines of a text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from tersor.bundle.program import GraphProgram, TextFrontend
from tersor.converters.errors import EvaluationError
from tersor.converters.measured import EvalReport, LoadedBundle
from tersor.models.graph import GraphModel
from tersor.models.text import TextEncoder
from tersor.models.tokenizer import Tokenizer

_SENTENCE_OUTPUT = "sentence_embedding"


def score_graph(
    subject: LoadedBundle,
    baseline: LoadedBundle | None,
    text: str,
    max_tokens: int | None,
    report: EvalReport,
    clock: Callable[[], float],
) -> EvalReport:
    """The report completed with a graph's measures; arguments as `certify.evaluate`.

    Each non-empty line is one sentence, run by itself. A graph without `sentence_embedding` is
    compared by the states of its first output, flattened.

    Raises:
        EvaluationError: no text frontend, no lines, or outputs that do not match the reference's.
    """
    program = _program(subject)
    if program.text is None:
        raise EvaluationError(
            f"{subject.reader.name} takes no text, so there is nothing to measure it on."
        )
    model = _model(subject)
    other = None if baseline is None else _model(baseline)
    output = _output(program)
    sentences = _sentences(subject, program.text, text, max_tokens)
    seconds, cosines = 0.0, []
    model.run(sentences[0])  # the first run prepares kernels
    for inputs in sentences:
        start = clock()
        vector = model.run(inputs)[output]
        seconds += clock() - start
        if other is not None:
            cosines.append(_cosine(vector, other.run(inputs), output))
    report = replace(
        report,
        sentences=len(sentences),
        sentences_per_second=len(sentences) / seconds if seconds else None,
    )
    if not cosines:
        return report
    stacked = torch.stack(cosines)
    return replace(report, cosine_mean=float(stacked.mean()), cosine_min=float(stacked.min()))


def _program(loaded: LoadedBundle) -> GraphProgram:
    program = loaded.manifest.program
    assert isinstance(program, GraphProgram)
    return program


def _model(loaded: LoadedBundle) -> GraphModel:
    program = _program(loaded)
    graph_json = loaded.reader.read_asset(program.graph_asset)
    return GraphModel(program, graph_json, loaded.weights, device=loaded.device)


def _output(program: GraphProgram) -> str:
    names = [output.name for output in program.outputs]
    return _SENTENCE_OUTPUT if _SENTENCE_OUTPUT in names else names[0]


def _sentences(
    subject: LoadedBundle, frontend: TextFrontend, text: str, max_tokens: int | None
) -> list[Mapping[str, Tensor]]:
    """Inputs of a batch of one per line; at most `max_tokens` in all, but one line at least."""
    tokenizer = Tokenizer.from_bytes(subject.tokenizer_json())
    encoder = TextEncoder(_program(subject), frontend, tokenizer)
    sentences: list[Mapping[str, Tensor]] = []
    tokens = 0
    for line in text.splitlines():
        if not line.strip():
            continue
        inputs = encoder.encode([line])  # [1, length] each
        tokens += inputs[frontend.input_ids].numel()
        if sentences and max_tokens is not None and tokens > max_tokens:
            break
        sentences.append({name: value.to(subject.device) for name, value in inputs.items()})
    if not sentences:
        raise EvaluationError("the text has no non-empty lines; expected one sentence a line.")
    return sentences


def _cosine(vector: Tensor, theirs: Mapping[str, Tensor], output: str) -> Tensor:
    if output not in theirs or theirs[output].shape != vector.shape:
        raise EvaluationError(
            f"the reference has no output {output!r} of shape {list(vector.shape)}; "
            "compare a bundle with its own source."
        )
    left, right = vector.flatten().double(), theirs[output].flatten().double()
    return F.cosine_similarity(left, right, dim=0)
