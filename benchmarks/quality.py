"""Claim: what each recipe costs in quality, as `docs/recipes.md` tells it.

Decoder: pico on held-out Python source, against its lossless bundle. Encoder: MiniLM's sentence
vectors in float32 against its lossless bundle. The bundles themselves are run.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import record
from real_weights import ROOT, minilm

from tersor.converters.certify import evaluate
from tersor.converters.pipeline import convert
from tersor.converters.recipe import load_recipe

TOKENS = 16384
DECODER_RECIPES: tuple[tuple[str, str | None], ...] = (
    ("lossless", None),
    ("int8", None),
    ("w8a8", None),
    ("fp8", None),
    ("int6", None),
    ("int4", None),
    ("nf4", None),
    ("mxfp4", None),
    ("pow2", None),
    ("int8", "magnitude:0.5"),
    ("int8", "2:4"),
    ("int4", "magnitude:0.5"),
)
ENCODER_RECIPES: tuple[tuple[str, str | None], ...] = (
    ("lossless", None),
    ("int8", None),
    ("int4", None),
)


def measure(
    model: str, source: Path, text: str, recipes: tuple[tuple[str, str | None], ...], work: Path
) -> list[dict[str, object]]:
    """One row a recipe; the first one is the reference of all."""
    rows: list[dict[str, object]] = []
    reference: Path | None = None
    for recipe, prune in recipes:
        name = recipe if prune is None else f"{recipe} + {prune}"
        bundle = work / f"{model}-{len(rows)}.tersor"
        convert(source, bundle, recipe=load_recipe(recipe, prune=prune))
        reference = reference or bundle
        report = evaluate(bundle, text, reference=reference, max_tokens=TOKENS)
        row: dict[str, object] = {
            "model": model,
            "recipe": name,
            "bundle_bytes": report.bundle_bytes,
            "ratio": round(report.ratio, 4),
            "bits_per_byte": report.bits_per_byte and round(report.bits_per_byte, 4),
            "kl_mean": None if report.kl_mean is None else float(f"{report.kl_mean:.3g}"),
            "kl_p99": None if report.kl_p99 is None else float(f"{report.kl_p99:.3g}"),
            "top1_agreement": report.top1_agreement and round(report.top1_agreement, 4),
            "cosine_mean": report.cosine_mean and round(report.cosine_mean, 6),
        }
        print("  " + "  ".join(f"{value}" for value in row.values() if value is not None))
        rows.append(row)
    return rows


def main() -> None:
    examples = ROOT / "examples"
    heldout = (examples / "pico-heldout.txt").read_text(encoding="utf-8")
    sentences = (examples / "sentences.txt").read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        rows = measure("pico", examples / "pico", heldout, DECODER_RECIPES, work)
        rows += measure("minilm", minilm(), sentences, ENCODER_RECIPES, work)
    print(f"wrote {record.write('quality', rows)}")


if __name__ == "__main__":
    main()
