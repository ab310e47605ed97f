"""Begin and end of a text: which token ids a decoder folder means by them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tersor.converters.errors import SourceError
from tersor.converters.sources.config import JsonObject
from tersor.models.errors import TokenizerError
from tersor.models.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class SpecialTokens:
    """What the decoder puts before every prompt, and what ends a generation."""

    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer at `path`. Raises SourceError if it is missing or damaged."""
    if not path.is_file():
        raise SourceError(
            f"{path} is missing; save the fast tokenizer next to the weights with save_pretrained."
        )
    try:
        return Tokenizer.from_bytes(path.read_bytes())
    except TokenizerError as error:
        raise SourceError(f"{path} is not a tokenizer: {error}.") from error


def special_tokens(folder: Path, config: JsonObject) -> SpecialTokens:
    """Reads tokenizer, tokenizer_config, generation_config and config, in that order of trust.

    `add_bos_token` decides when it is there; else a tokenizer that adds its begin token by itself,
    or that names one, means a text to begin with it.
    """
    tokenizer = load_tokenizer(folder / "tokenizer.json")
    eos = config.token_ids("eos_token_id")
    if (folder / "generation_config.json").is_file():
        eos = JsonObject.load(folder / "generation_config.json").token_ids("eos_token_id") or eos
    return SpecialTokens(bos_token_id=_bos(folder, config, tokenizer, eos), eos_token_ids=eos)


def _bos(
    folder: Path, config: JsonObject, tokenizer: Tokenizer, eos: tuple[int, ...]
) -> int | None:
    first = tokenizer.encode("", special_tokens=True)[:1]
    added = first[0] if first and first[0] not in eos else None
    path = folder / "tokenizer_config.json"
    if not path.is_file():
        return added
    settings = JsonObject.load(path)
    token = settings.get("bos_token")
    text = token.get("content") if isinstance(token, dict) else token
    named = tokenizer.token_id(text) if isinstance(text, str) else None
    if "add_bos_token" in settings:
        return named if settings.boolean("add_bos_token", False) else None
    # Qwen was trained without a begin token, yet some of its derivatives name one for templates.
    return added if named is None or "qwen" in config.string("model_type") else named
