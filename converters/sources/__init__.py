"""Sources: what can be converted, and how its tensors become a bundle's."""

from __future__ import annotations

from pathlib import Path

from tersor.converters.errors import SourceError
from tersor.converters.sources.base import Source
from tersor.converters.sources.config import JsonObject

__all__ = ["open_source"]


def open_source(path: Path) -> Source:
    """Opens a model folder or a `.pt2` file, whichever `path` is.

    Raises:
        SourceError: there is no complete, consistent model at `path`.
        UnsupportedSourceError: it is a model of a kind this build cannot convert.
    """
    if path.is_file():
        if path.suffix != ".pt2":
            raise SourceError(
                f"{path} is a file; expected a Hugging Face folder or a .pt2 file written by "
                "torch.export.save."
            )
        from tersor.converters.sources.exported import ExportedSource

        return ExportedSource(path)
    if not path.is_dir():
        raise SourceError(f"{path} does not exist.")
    if not (path / "config.json").is_file():
        raise SourceError(f"{path} is not a model folder: it has no config.json.")
    config = JsonObject.load(path / "config.json")
    if config.string("model_type") == "bert":
        from tersor.converters.sources.encoder import EncoderSource

        return EncoderSource(path, config)
    from tersor.converters.sources.decoder import DecoderSource

    return DecoderSource(path, config)
