"""Draws what the offline journey reports: tensor, bytes, speed and the time that is left."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)


class ProgressBar:
    """A bar on stderr while it is a terminal; silent otherwise, so that logs stay readable.

    Calls follow the `Progress` protocol of the converters.
    """

    def __init__(self, *, visible: bool = True) -> None:
        self._bar = Progress(
            TextColumn("{task.description}", table_column=None),
            BarColumn(),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=Console(file=sys.stderr),
            disable=not (visible and sys.stderr.isatty()),
            transient=True,
        )
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def update(self, *, item: str, done_bytes: int, total_bytes: int) -> None:
        """`item` is being worked on; `done_bytes` of `total_bytes` lie behind."""
        if self._task is None:
            self._task = self._bar.add_task(item, total=total_bytes)
        self._bar.update(
            self._task, description=f"{item:<28.28}", completed=done_bytes, total=total_bytes
        )
