"""Which weights to measure: those of a model that everybody knows, or those that somebody has."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tersor.kernels.bench.samples import Sample, samples
from tersor.kernels.layout import Params

MAX_SHAPES = 16  # of somebody's: the largest
# Parameters that count what one weight holds. A sample asks for them as a share of its n * k, so
# that weights which differ in the count alone are of one kind.
COUNTS = ("nonzeros", "outliers")


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """A shape, and the kinds of weights to measure in it."""

    shape: str
    size: tuple[int, int]  # n, k
    kinds: tuple[Sample, ...]


def in_every_layout(shapes: Mapping[str, tuple[int, int]]) -> tuple[Weights, ...]:
    """Every kind of weight in each of `shapes`."""
    return tuple(Weights(shape=shape, size=size, kinds=samples()) for shape, size in shapes.items())


def as_they_are(
    matrices: Iterable[tuple[str, Params, tuple[int, int]]],
) -> tuple[Weights, ...]:
    """The kinds of `matrices` (layout, parameters, size) in each size, the largest sizes first."""
    by_size: dict[tuple[int, int], dict[str, Sample]] = {}
    for layout, params, size in matrices:
        kind = kind_of(layout, params, size)
        by_size.setdefault(size, {}).setdefault(kind.label, kind)
    largest = sorted(by_size, key=lambda size: size[0] * size[1], reverse=True)[:MAX_SHAPES]
    return tuple(
        Weights(shape=f"{size[0]} x {size[1]}", size=size, kinds=tuple(by_size[size].values()))
        for size in largest
    )


def kind_of(layout: str, params: Params, size: tuple[int, int]) -> Sample:
    """A sample like a weight with these parameters, named after them."""
    asked = dict(params)
    for name in asked.keys() & COUNTS:
        count = asked[name]
        assert isinstance(count, int), "counts are numbers in every layout that has them"
        asked[name] = _rounded(count / (size[0] * size[1]))
    text = ", ".join(f"{name} {value}" for name, value in sorted(asked.items()))
    return Sample(label=f"{layout} ({text})" if text else layout, layout=layout, params=asked)


def _rounded(share: float) -> float:
    """Coarse enough that the layers of a model fall together: 0.25, 0.5, 0.005."""
    return float(f"{share:.2g}" if share >= 0.1 else f"{share:.1g}")
