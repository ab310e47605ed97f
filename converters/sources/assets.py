"""Which small files of a model folder travel with the bundle."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tersor.converters.errors import SourceError
from tersor.converters.sources.base import SourceAsset

_MAX_ASSET_BYTES = 64 << 20  # the largest known tokenizer.json is 35 MB

_NAMES: Mapping[str, str] = {
    "config.json": "application/json",
    "generation_config.json": "application/json",
    "tokenizer.json": "application/json",
    "tokenizer_config.json": "application/json",
    "special_tokens_map.json": "application/json",
    "added_tokens.json": "application/json",
    "chat_template.jinja": "text/plain",
    "chat_template.json": "application/json",
    "vocab.json": "application/json",
    "merges.txt": "text/plain",
    "vocab.txt": "text/plain",
    "tokenizer.model": "application/octet-stream",
    "modules.json": "application/json",
    "sentence_bert_config.json": "application/json",
    "config_sentence_transformers.json": "application/json",
    "1_Pooling/config.json": "application/json",
    "README.md": "text/markdown",
    "LICENSE": "text/plain",
    "LICENSE.txt": "text/plain",
    "LICENSE.md": "text/markdown",
    "NOTICE": "text/plain",
}


def folder_assets(folder: Path) -> tuple[SourceAsset, ...]:
    """The known files of `folder` that exist and are not empty, in a fixed order.

    Raises:
        SourceError: one cannot be read or is larger than any real one.
    """
    return tuple(
        SourceAsset(name=name, media_type=media_type, data=_read(folder / name))
        for name, media_type in _NAMES.items()
        if (folder / name).is_file() and (folder / name).stat().st_size
    )


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > _MAX_ASSET_BYTES:
            raise SourceError(f"{path} is larger than {_MAX_ASSET_BYTES >> 20} MiB.")
        return path.read_bytes()
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}.") from error
