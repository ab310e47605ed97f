"""`tersor generate`: one continuation, computed here or by a running server."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import Annotated

import typer

from tersor.bundle.location import BUNDLE_SUFFIX, file_name, parse_location
from tersor.cli.console import decoded
from tersor.cli.options import ActivationsOption, DeviceOption, KVCacheDtypeOption
from tersor.runtime.engine.types import SamplingParams


def generate(
    bundle: Annotated[
        str,
        typer.Argument(
            metavar="BUNDLE", help="A bundle or its URL; with --server, a model's name."
        ),
    ],
    *,
    prompt: Annotated[str, typer.Option(help="The text to continue; - reads it from stdin.")],
    max_tokens: Annotated[int, typer.Option(help="Most tokens to generate.")] = 128,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    top_k: Annotated[int, typer.Option(help="Only the k most likely tokens; 0: all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Only the likeliest with this much mass.")] = 1.0,
    min_p: Annotated[float, typer.Option(help="Only tokens this likely beside the best.")] = 0.0,
    repetition_penalty: Annotated[float, typer.Option(help="Above 1 discourages repeats.")] = 1.0,
    presence_penalty: Annotated[float, typer.Option(help="Once per token used.")] = 0.0,
    frequency_penalty: Annotated[float, typer.Option(help="Per use of a token.")] = 0.0,
    seed: Annotated[int | None, typer.Option(help="Makes sampling repeatable.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="Stop before this text.")] = None,
    server: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Ask this server instead.")
    ] = None,
    device: DeviceOption = "cpu",
    activations: ActivationsOption = "auto",
    kv_cache_dtype: KVCacheDtypeOption = "auto",
) -> None:
    """Continue a prompt.

    Only the continuation is written to stdout, as it is computed; greedily unless asked otherwise.
    """
    text = decoded(sys.stdin.buffer.read() if prompt == "-" else os.fsencode(prompt), "the prompt")
    stops = tuple(decoded(os.fsencode(end), "the stop text") for end in stop or ())
    sampling = SamplingParams(
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty,
        seed=seed,
        stop=stops,
    )
    if server is None:
        from tersor.cli.local import Computing
        from tersor.cli.local import stream as local_stream

        computing = Computing(device, activations, kv_cache_dtype)
        pieces = local_stream(parse_location(bundle), text, sampling, computing)
    else:
        from tersor.cli.remote import stream as remote_stream

        name = file_name(parse_location(bundle)).removesuffix(BUNDLE_SUFFIX)
        pieces = remote_stream(server, name, text, sampling)
    _write(pieces)


def _write(pieces: Iterator[str]) -> None:
    for piece in pieces:
        sys.stdout.write(piece)
        sys.stdout.flush()
    if sys.stdout.isatty():
        sys.stdout.write("\n")
