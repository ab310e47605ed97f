"""What a bundle's compression cost, measured by running the bundle itself."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from tersor.bundle.location import BundleUrl, Location
from tersor.bundle.program import UNUSED_GROUP, DecoderProgram
from tersor.bundle.reader import BundleReader
from tersor.converters.certify_decoder import score_decoder
from tersor.converters.certify_graph import score_graph
from tersor.converters.errors import EvaluationError
from tersor.converters.measured import EvalReport, LoadedBundle
from tersor.converters.pipeline import convert
from tersor.converters.progress import Progress
from tersor.converters.recipe import load_recipe
from tersor.converters.tensors import tensor_bytes
from tersor.models.activations import ActivationChoice, resolve_activations
from tersor.models.weights import ResidentWeights, load_group

__all__ = ["EvalReport", "evaluate"]

_LOSSLESS = "lossless"


def evaluate(
    bundle: Location,
    text: str,
    *,
    reference: Location | None = None,
    device: str | torch.device = "cpu",
    activations: ActivationChoice = "auto",
    max_tokens: int | None = None,
    progress: Progress | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> EvalReport:
    """Runs `bundle` over `text` and compares it with `reference`.

    A decoder scores the text in windows of 512 tokens; a graph with a text frontend embeds its
    non-empty lines.

    Args:
        bundle: what to measure.
        text: UTF-8 text that the model was not calibrated on.
        reference: another bundle, or the folder it came from (converted losslessly into a temporary
            file first); None leaves out KL divergence, top-1 agreement and cosines.
        device: where to run.
        activations: as in serving.
        max_tokens: stop after this many tokens of the text (graph: of its sentences together).
        progress: told of the reference's conversion, if one is needed.
        clock: seconds.

    Raises:
        EvaluationError: the text is too short, the two models cannot be compared, or there is no
            such device or activation dtype.
        BundleError: a bundle cannot be read.
        ConvertError: `reference` is a folder that cannot be converted.
    """
    if max_tokens is not None and max_tokens < 2:
        raise EvaluationError(f"max_tokens is {max_tokens}; expected at least 2.")
    target = _usable(device)
    try:
        dtype = resolve_activations(activations, target)
    except ValueError as error:
        raise EvaluationError(f"{error}.") from error
    with (
        _loaded(bundle, target, dtype, clock) as subject,
        _reference(reference, target, dtype, progress, clock) as baseline,
    ):
        program = type(subject.manifest.program)
        if baseline is not None and type(baseline.manifest.program) is not program:
            raise EvaluationError(
                f"{bundle} and {reference} hold different kinds of program; "
                "compare a bundle with its own source."
            )
        score = score_decoder if program is DecoderProgram else score_graph
        return score(subject, baseline, text, max_tokens, _base_report(subject), clock)


def _usable(device: str | torch.device) -> torch.device:
    """A device that this machine has."""
    try:
        target = torch.device(device)
    except RuntimeError:
        target = torch.device("meta")
    if target.type not in {"cpu", "cuda"}:
        raise EvaluationError(f"the device is {str(device)!r}; expected cpu, cuda or cuda:INDEX.")
    if target.type == "cuda" and (target.index or 0) >= (count := torch.cuda.device_count()):
        raise EvaluationError(f"the device is {device}, but torch sees {count} CUDA devices here.")
    return target


def _base_report(subject: LoadedBundle) -> EvalReport:
    manifest = subject.manifest
    source_bytes = sum(
        tensor_bytes(source.dtype, source.shape)
        for entry in manifest.tensors
        for source in entry.sources
    )
    return EvalReport(
        kind="decoder" if isinstance(manifest.program, DecoderProgram) else "graph",
        recipe=str(manifest.recipe.get("name", "")),
        bundle_bytes=subject.reader.file_bytes,
        source_bytes=source_bytes,
        ratio=subject.reader.file_bytes / max(1, source_bytes),
        resident_bytes=subject.weights.resident_bytes,
        load_seconds=subject.load_seconds,
    )


@contextmanager
def _loaded(
    place: Location, device: torch.device, activations: torch.dtype, clock: Callable[[], float]
) -> Iterator[LoadedBundle]:
    start = clock()
    with BundleReader.open(place) as reader:
        groups = [g.name for g in reader.manifest.groups if g.name != UNUSED_GROUP]
        weights = ResidentWeights({name: load_group(reader, name, device) for name in groups})
        yield LoadedBundle(reader, weights, clock() - start, device, activations)


@contextmanager
def _reference(
    place: Location | None,
    device: torch.device,
    activations: torch.dtype,
    progress: Progress | None,
    clock: Callable[[], float],
) -> Iterator[LoadedBundle | None]:
    if place is None:
        yield None
    elif isinstance(place, BundleUrl) or (place.is_file() and place.suffix != ".pt2"):
        with _loaded(place, device, activations, clock) as loaded:
            yield loaded
    else:
        with tempfile.TemporaryDirectory(prefix="tersor-") as folder:
            out = Path(folder) / "reference.tersor"
            # The file lives for seconds: decoding speed matters, its size does not.
            convert(place, out, recipe=load_recipe(_LOSSLESS), codec="raw", progress=progress)
            with _loaded(out, device, activations, clock) as loaded:
                yield loaded
