"""Claim: on one CPU thread, int4 bundles decode several times faster than transformers in bf16.

One sequence, greedy, 0.4 B-parameter Llama shape with random weights (speed does not depend on
their values), and pico with real ones. transformers and the bundles run in the same process and
alternate, so that a noisy neighbour hurts all alike; the figure to compare is the ratio.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import record
import torch

from tersor.bundle.program import DecoderProgram
from tersor.bundle.reader import BundleReader
from tersor.converters.pipeline import convert
from tersor.converters.recipe import load_recipe
from tersor.models.activations import resolve_activations
from tersor.models.cache import GrowingCache
from tersor.models.decoder import DecoderModel
from tersor.models.weights import ResidentWeights

ROOT = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")
PROMPT_TOKENS = 4
NEW_TOKENS = 32
ROUNDS = 3
Generate = Callable[[], None]


def save_llama(folder: Path) -> Path:
    """A random 0.4 B-parameter Llama in bf16, with pico's tokenizer beside it."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=2048,
        intermediate_size=5632,
        num_hidden_layers=8,
        num_attention_heads=16,
        num_key_value_heads=4,
        vocab_size=4096,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(ROOT / "examples" / "pico" / name, folder / name)
    return folder


def transformers_generate(folder: Path, dtype: torch.dtype) -> Generate:
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    prompt = torch.arange(1, PROMPT_TOKENS + 1)[None]

    def run() -> None:
        model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=NEW_TOKENS,
            min_new_tokens=NEW_TOKENS,
            do_sample=False,
            pad_token_id=0,
        )

    return run


def bundle_generate(bundle: Path) -> Generate:
    reader = BundleReader.open(bundle)
    program = reader.manifest.program
    assert isinstance(program, DecoderProgram)
    model = DecoderModel(
        program,
        ResidentWeights.from_bundle(reader, CPU),
        device=CPU,
        activations=resolve_activations("auto", CPU),
    )

    def run() -> None:
        cache = GrowingCache()
        tokens = torch.arange(1, PROMPT_TOKENS + 1)
        position = 0
        for _ in range(NEW_TOKENS):
            positions = torch.arange(position, position + len(tokens))
            position += len(tokens)
            logits = model.forward(tokens, positions, cache, rows=torch.tensor([len(tokens) - 1]))
            tokens = logits.argmax(dim=-1)

    return run


def measure(name: str, runs: dict[str, Generate]) -> list[dict[str, object]]:
    """Alternates the contestants; median tokens/s, and the ratio to transformers in bf16."""
    for run in runs.values():
        run()
    samples: dict[str, list[float]] = {form: [] for form in runs}
    for _ in range(ROUNDS):
        for form, run in runs.items():
            start = time.perf_counter()
            run()
            samples[form].append(NEW_TOKENS / (time.perf_counter() - start))
    speeds = {form: statistics.median(values) for form, values in samples.items()}
    base = speeds["transformers bf16"]
    rows = []
    for form, speed in speeds.items():
        print(f"  {name:<10} {form:<20} {speed:8.1f} tokens/s  {speed / base:5.2f} x")
        rows.append(
            {
                "model": name,
                "form": form,
                "tokens_per_second": round(speed, 2),
                "ratio_to_transformers_bf16": round(speed / base, 3),
                "threads": torch.get_num_threads(),
            }
        )
    return rows


@torch.inference_mode()
def main() -> None:
    torch.set_num_threads(1)
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        sources = {"pico": ROOT / "examples" / "pico", "llama-0.4b": save_llama(work / "llama")}
        for name, source in sources.items():
            runs = {
                "transformers bf16": transformers_generate(source, torch.bfloat16),
                "transformers fp32": transformers_generate(source, torch.float32),
            }
            for recipe in ("lossless", "int8", "int4"):
                bundle = work / f"{name}-{recipe}.tersor"
                convert(source, bundle, recipe=load_recipe(recipe))
                runs[f"tersor {recipe}"] = bundle_generate(bundle)
            rows += measure(name, runs)
    print(f"wrote {record.write('decode_cpu', rows)}")


if __name__ == "__main__":
    main()
