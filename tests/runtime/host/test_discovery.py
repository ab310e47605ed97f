"""What paths and URLs mean, and what their models are called."""

from __future__ import annotations

from pathlib import Path

import pytest

from tersor.bundle.location import BundleUrl, Location, parse_location
from tersor.runtime.errors import ModelLoadError
from tersor.runtime.host.discovery import find_bundles

STORE = "https://store.example/models"


def test_files_folders_and_urls_in_the_order_given(tmp_path: Path) -> None:
    for name in ("b.tersor", "a.tersor", "notes.txt", "other.bin"):
        (tmp_path / name).touch()
    url = parse_location(f"{STORE}/Llama%203.1.tersor?X-Signature=secret")
    found = find_bundles([url, tmp_path, tmp_path / "other.bin"])
    assert list(found) == ["Llama 3.1", "a", "b", "other"]
    assert found["Llama 3.1"] is url
    assert found["a"] == tmp_path / "a.tersor"


@pytest.mark.parametrize(
    ("places", "message"),
    [
        ([f"{STORE}/?s=secret"], "https://store.example/models/: .* this URL names none"),
        (["https://store.example"], "this URL names none; expected one that ends in /name.tersor"),
        ([f"{STORE}/%1b.tersor?s=secret"], "has characters that cannot be printed"),
        (
            [f"{STORE}/a.tersor?s=secret", "https://other.example/a.tersor?s=secret"],
            f"two bundles are called a: {STORE}/a.tersor and https://other.example/a.tersor; ",
        ),
    ],
)
def test_urls_that_name_no_model(places: list[str], message: str) -> None:
    locations: list[Location] = [BundleUrl.parse(place) for place in places]
    with pytest.raises(ModelLoadError, match=message) as caught:
        find_bundles(locations)
    assert "secret" not in str(caught.value)
    assert str(caught.value).isprintable()
