"""Hostile places: 24, things that are not files, and files that change while they are open."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_bundles import read_all, write_tiny

from tersor.bundle.errors import (
    BundleError,
    BundleFormatError,
    BundleNotFoundError,
    BundleReadError,
    BundleTruncatedError,
)
from tersor.bundle.reader import BundleReader
from tersor.bundle.verify import verify

USES: list[Callable[[Path], object]] = [read_all, verify]


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("use", USES)
def test_24_not_a_regular_file(tmp_path: Path, use: Callable[[Path], object]) -> None:
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        for path in (tmp_path, pipe, link, Path("/dev/zero"), tmp_path / "socket"):
            with pytest.raises(BundleFormatError, match="is not a regular file; expected a bundle"):
                use(path)


def test_24_a_file_that_becomes_a_pipe_before_it_is_opened(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    status = bundle.stat()
    bundle.unlink()
    os.mkfifo(bundle)
    monkeypatch.setattr(Path, "stat", lambda _: status)
    before = open_descriptors()
    with pytest.raises(BundleFormatError, match="is not a regular file"):
        BundleReader.open(bundle)
    assert open_descriptors() == before


@pytest.mark.parametrize("use", USES)
def test_24_nothing_there(tmp_path: Path, use: Callable[[Path], object]) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "empty").touch()
    cases: list[tuple[str, type[BundleError], str]] = [
        ("loop", BundleReadError, r"^cannot open .*/loop: Too many levels of symbolic links$"),
        ("dangling", BundleNotFoundError, r"^there is no file .*/dangling$"),
        ("empty/x", BundleNotFoundError, r"^there is no file .*/empty/x$"),
        ("empty", BundleFormatError, r"/empty: not a bundle: it starts with nothing"),
        ("x" * 300, BundleReadError, r"^cannot open .*: File name too long$"),
        ("x\0y", BundleReadError, r"^cannot open '.*x\\x00y': embedded null byte$"),
    ]
    for name, kind, message in cases:
        with pytest.raises(kind, match=message):
            use(tmp_path / name)


def test_24_no_permission(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle.chmod(0)
    if os.geteuid() == 0:  # whom no mode keeps out

        def denied(*_: object) -> int:
            raise PermissionError(13, "Permission denied", str(bundle))

        monkeypatch.setattr(os, "open", denied)
    with pytest.raises(BundleReadError, match=r"^cannot open .*/x.tersor: Permission denied$"):
        BundleReader.open(bundle)


def failure(work: Callable[[], object]) -> str:
    """The message of the BundleError that `work` ends in."""
    with pytest.raises(BundleError) as caught:
        work()
    return str(caught.value)


def test_24_names_of_any_printable_characters(tmp_path: Path) -> None:
    path = tmp_path / 'it\'s "x" - ü.tersor'
    path.write_bytes(b"no")
    assert failure(lambda: BundleReader.open(path)).startswith(f"{path}: not a bundle")


@pytest.mark.parametrize("name", ["a\nERROR b", "a\x1b[31m", "a\u202eb", "a\udcff"])
def test_24_names_that_break_lines_are_quoted(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    write_tiny(path)
    with BundleReader.open(path) as reader:
        messages = [failure(lambda: reader.read_asset("none"))]
    path.write_bytes(b"no")
    messages += [failure(lambda: BundleReader.open(path)), failure(lambda: verify(path))]
    path.unlink()
    messages.append(failure(lambda: BundleReader.open(path)))
    path.mkdir()
    messages += [failure(lambda: BundleReader.open(path)), failure(lambda: write_tiny(path))]
    for message in messages:
        assert message.isprintable()
        assert repr(str(path)) in message


def test_24_a_replaced_file_stays_the_one_that_was_opened(bundle: Path, tmp_path: Path) -> None:
    content = read_all(bundle)
    other = tmp_path / "other"
    other.write_bytes(b"another file")
    with BundleReader.open(bundle) as reader:
        other.replace(bundle)
        for entry in reader.manifest.tensors:
            for plane in entry.planes:
                array = reader.read_plane(plane)
                assert array.tobytes() == content[f"{entry.name}/{plane.name}"]
        assert reader.read_asset("tokenizer.json") == content["tokenizer.json"]


def test_24_a_truncated_file_is_an_error_everywhere(bundle: Path) -> None:
    with BundleReader.open(bundle) as reader:
        os.truncate(bundle, 0)
        plane = reader.manifest.tensors[0].planes[0]
        for read in (
            lambda: reader.read_plane(plane),
            lambda: reader.fetch_plane(plane),
            lambda: reader.read_asset("tokenizer.json"),
        ):
            with pytest.raises(BundleTruncatedError, match=r"ends at byte .* truncated while open"):
                read()
