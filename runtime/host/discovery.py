"""Which files the configuration's paths mean, and the name each is served under."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tersor.runtime.errors import ModelLoadError

BUNDLE_SUFFIX: Final = ".tersor"


def find_bundles(paths: Sequence[Path]) -> dict[str, Path]:
    """Name -> bundle, in the order given; a folder stands for the bundles in it, by name.

    Raises:
        ModelLoadError: no such path, one that cannot be read, a folder without a bundle, a name
            that cannot be printed, or two bundles of one name.
    """
    if not paths:
        raise ModelLoadError(
            "no model was given, expected at least one bundle or folder of bundles"
        )
    found: dict[str, Path] = {}
    for path in paths:
        try:
            files = _files(path)
        except OSError as error:
            raise ModelLoadError(f"{path}: {error.strerror or error}") from error
        for file in files:
            name = file.stem
            if not name.isprintable():
                raise ModelLoadError(
                    f"{str(file)!r}: a model is called as its file, and this name has characters "
                    "that cannot be printed; rename it"
                )
            if name in found:
                raise ModelLoadError(
                    f"two bundles are called {name}: {found[name]} and {file}; rename one"
                )
            found[name] = file
    return found


def _files(path: Path) -> list[Path]:
    if not path.exists():
        raise ModelLoadError(f"{path}: there is no such file or folder")
    if not path.is_dir():
        return [path]
    files = sorted(file for file in path.iterdir() if file.suffix == BUNDLE_SUFFIX)
    if not files:
        raise ModelLoadError(
            f"{path}: the folder holds no bundle (*{BUNDLE_SUFFIX}); make one with `tersor convert`"
        )
    return files
