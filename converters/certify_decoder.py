"""Scores a decoder on text: bits per byte, divergence from a reference, speed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import ceil, log

import torch
import torch.nn.functional as F
from torch import Tensor

from tersor.bundle.program import DecoderProgram
from tersor.converters.errors import EvaluationError
from tersor.converters.measured import EvalReport, LoadedBundle
from tersor.models.cache import FullAttention, GrowingCache
from tersor.models.decoder import DecoderModel
from tersor.models.tokenizer import Tokenizer

_WINDOW_TOKENS = 512
_GENERATED_TOKENS = 32
_MIN_TEXT_TOKENS = 2
# Characters tokenized per asked token: no tokenizer averages more over real text.
_MAX_TOKEN_CHARACTERS = 24


@dataclass(frozen=True, slots=True)
class _Text:
    """Token ids of a text and the bytes that those with a predecessor stand for."""

    ids: Tensor  # int64 [T], with the begin token first if the model has one
    scored_bytes: int  # of ids[1:]


@dataclass(slots=True)
class _Sums:
    """What adds up over the windows."""

    nats: float = 0.0
    reference_nats: float = 0.0
    agreements: int = 0
    tokens: int = 0


def score_decoder(
    subject: LoadedBundle,
    baseline: LoadedBundle | None,
    text: str,
    max_tokens: int | None,
    report: EvalReport,
    clock: Callable[[], float],
) -> EvalReport:
    """The report completed with a decoder's measures; arguments as `certify.evaluate`.

    Each window begins with the begin token where the model has one, else with the last token of the
    window before; every other token of the text is predicted exactly once.
    """
    program = _program(subject)
    tokens = _encode(subject, text, max_tokens)
    window = min(_WINDOW_TOKENS, program.max_context)
    model = _model(subject)
    other = None if baseline is None else _comparable(subject, baseline)
    sums, divergences, seconds = _Sums(), [], 0.0
    for inputs, targets in _windows(tokens.ids, window, program.bos_token_id):
        start = clock()
        logits = _score(model, inputs)
        seconds += clock() - start
        nats, best = _losses(logits, targets)
        sums.nats += float(nats.sum())
        sums.tokens += targets.numel()
        if other is not None:
            theirs = _score(other, inputs)
            their_nats, their_best = _losses(theirs, targets)
            sums.reference_nats += float(their_nats.sum())
            sums.agreements += int((best == their_best).sum())
            divergences.append(_divergence(theirs, logits))
    per_byte = 1 / (log(2) * tokens.scored_bytes)
    report = replace(
        report,
        tokens=sums.tokens,
        bits_per_byte=sums.nats * per_byte,
        scored_tokens_per_second=sums.tokens / seconds if seconds else None,
        tokens_per_second=_generation_speed(model, tokens.ids, clock),
    )
    if other is None:
        return report
    divergence = torch.cat(divergences)
    return replace(
        report,
        reference_bits_per_byte=sums.reference_nats * per_byte,
        kl_mean=float(divergence.mean()),
        kl_p99=float(divergence.kthvalue(ceil(0.99 * divergence.numel())).values),
        top1_agreement=sums.agreements / sums.tokens,
    )


def _program(loaded: LoadedBundle) -> DecoderProgram:
    program = loaded.manifest.program
    assert isinstance(program, DecoderProgram)
    return program


def _model(loaded: LoadedBundle) -> DecoderModel:
    return DecoderModel(
        _program(loaded), loaded.weights, device=loaded.device, activations=loaded.activations
    )


def _comparable(subject: LoadedBundle, baseline: LoadedBundle) -> DecoderModel:
    """The baseline's model, once its predictions are of the same tokens."""
    ours, theirs = _program(subject).vocab_size, _program(baseline).vocab_size
    if ours != theirs or subject.tokenizer_json() != baseline.tokenizer_json():
        raise EvaluationError(
            f"{subject.reader.name} and {baseline.reader.name} have different tokenizers "
            f"(vocabularies of {ours} and {theirs}), so their predictions cannot be compared."
        )
    return _model(baseline)


def _encode(subject: LoadedBundle, text: str, max_tokens: int | None) -> _Text:
    tokenizer = Tokenizer.from_bytes(subject.tokenizer_json())
    if max_tokens is not None:
        text = text[: max_tokens * _MAX_TOKEN_CHARACTERS]
    ids, spans = tokenizer.encode_spans(text)
    ids, spans = ids[:max_tokens], spans[:max_tokens]
    if len(ids) < _MIN_TEXT_TOKENS:
        raise EvaluationError(
            f"the text has {len(ids)} tokens; expected at least {_MIN_TEXT_TOKENS} to measure on."
        )
    bos = _program(subject).bos_token_id
    # Without a begin token the first token has no predecessor, and its bytes are not predicted.
    first = 0 if bos is not None else spans[0][1]
    scored = text[first : spans[-1][1]]
    prefix = [] if bos is None else [bos]
    return _Text(torch.tensor(prefix + ids), max(1, len(scored.encode())))


def _windows(ids: Tensor, window: int, bos: int | None) -> list[tuple[Tensor, Tensor]]:
    """Inputs and targets [n] each, n <= window; the targets together are ids[1:]."""
    windows = []
    for start in range(1, len(ids), window):
        targets = ids[start : start + window]
        inputs = ids[start - 1 : start - 1 + len(targets)].clone()
        if bos is not None:
            inputs[0] = bos
        windows.append((inputs, targets))
    return windows


def _score(model: DecoderModel, inputs: Tensor) -> Tensor:
    """Logits float32 [n, vocab]."""
    length = len(inputs)
    positions = torch.arange(length, device=model.device)
    return model.forward(inputs.to(model.device), positions, FullAttention(1, length))


def _losses(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Nats [n] in float64, and the most likely token [n]."""
    nats = F.cross_entropy(logits, targets.to(logits.device), reduction="none")
    return nats.to(torch.float64), logits.argmax(-1)


def _divergence(reference: Tensor, logits: Tensor) -> Tensor:
    """KL(reference || logits) in nats, float32 [n]; never below zero."""
    log_p, log_q = F.log_softmax(reference, -1), F.log_softmax(logits, -1)
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1).clamp_(min=0)


def _generation_speed(model: DecoderModel, ids: Tensor, clock: Callable[[], float]) -> float | None:
    """Tokens per second of greedy generation, one sequence, after a short prompt."""
    prompt = ids[: min(16, model.program.max_context - 1)].to(model.device)
    steps = min(_GENERATED_TOKENS, model.program.max_context - len(prompt))
    cache = GrowingCache()
    positions = torch.arange(len(prompt), device=model.device)
    last = torch.tensor([len(prompt) - 1], device=model.device)
    token = model.forward(prompt, positions, cache, rows=last).argmax(-1)
    start = clock()
    for step in range(steps):
        position = torch.tensor([len(prompt) + step], device=model.device)
        token = model.forward(token, position, cache).argmax(-1)
        token.item()  # waits for the device, as a server does to send the token
    seconds = clock() - start
    return steps / seconds if seconds else None
