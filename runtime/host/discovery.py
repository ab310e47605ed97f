"""Which bundles the configuration's paths and URLs mean, and the name each is served under."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tersor.bundle.location import BUNDLE_SUFFIX, BundleUrl, Location, file_name
from tersor.runtime.errors import ModelLoadError


def find_bundles(places: Sequence[Location]) -> dict[str, Location]:
    """Name -> bundle, in the order given; a folder stands for the bundles in it, by name.

    Raises:
        ModelLoadError: no such path, one that cannot be read, a folder without a bundle, a name
            that is empty or cannot be printed, or two bundles of one name.
    """
    if not places:
        raise ModelLoadError(
            "no model was given, expected at least one bundle or folder of bundles"
        )
    found: dict[str, Location] = {}
    for place in places:
        for bundle in _bundles(place):
            name = Path(file_name(bundle)).stem
            if not name:
                raise ModelLoadError(
                    f"{bundle}: a model is called as its file, and this URL names none; expected "
                    f"one that ends in /name{BUNDLE_SUFFIX}"
                )
            if not name.isprintable():
                raise ModelLoadError(
                    f"{str(bundle)!r}: a model is called as its file, and this name has characters "
                    "that cannot be printed; rename it"
                )
            if name in found:
                raise ModelLoadError(
                    f"two bundles are called {name}: {found[name]} and {bundle}; rename one"
                )
            found[name] = bundle
    return found


def _bundles(place: Location) -> Sequence[Location]:
    if isinstance(place, BundleUrl):
        return [place]
    try:
        return _files(place)
    except OSError as error:
        raise ModelLoadError(f"{place}: {error.strerror or error}") from error


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
