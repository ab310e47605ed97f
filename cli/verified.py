"""What `tersor verify` says of one bundle: intact or not, and whether it can be repaired."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import typer

from tersor.bundle.location import BundleUrl, Location, parse_location
from tersor.cli.console import error_line, to_json
from tersor.runtime.config import format_bytes

if TYPE_CHECKING:
    from tersor.bundle.parity_survey import ParityReport
    from tersor.bundle.verify import VerifyReport


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """A report, or why there is none; and the parity in either case, if any was found."""

    report: VerifyReport | None
    error: str | None
    parity: ParityReport | None

    @property
    def ok(self) -> bool:
        """Whether every byte is what it was when the bundle was written."""
        return self.report is not None and self.report.ok

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        parity = to_json(self.parity)
        if self.report is None:
            return {"ok": False, "error": self.error, "parity": parity}
        return {"ok": self.ok, **to_json(self.report), "parity": parity}

    def print(self, path: str) -> None:
        """One line on stdout if all is well; otherwise one on stderr for each damage."""
        if self.report is None:
            error_line(f"{self.error}{_hint(path, self.parity, unreadable=True)}")
            return
        report = self.report
        if report.ok:
            typer.echo(
                f"{path}: ok ({report.planes} planes, {report.chunks} chunks, {report.assets} "
                f"assets, {format_bytes(report.file_bytes)}, {_parity_text(self.parity)})"
            )
            return
        error_line(f"{path}: {len(report.damages)} damaged{_hint(path, self.parity)}")
        for damage in report.damages:
            error_line(f"{path}: {damage.described()}")
        for lost in self.parity.lost_stripes[:20] if self.parity else ():
            error_line(
                f"{path}: stripe {lost.stripe} has {lost.damaged_blocks} damaged blocks for "
                f"{lost.whole_packets} whole packets, {lost.excess} too many"
            )


def check(bundle: Location) -> Verified:
    """Verifies a bundle; where it cannot even be opened, looks for parity all the same."""
    from tersor.bundle.errors import BundleError, BundleNotFoundError, BundleReadError
    from tersor.bundle.parity_survey import find_parity
    from tersor.bundle.verify import verify

    try:
        report = verify(bundle)
    except BundleError as error:
        # An object that a server does not give has no parity that it would give.
        gone = isinstance(bundle, BundleUrl) and isinstance(
            error, BundleNotFoundError | BundleReadError
        )
        parity = None if gone else find_parity(bundle)
        return Verified(report=None, error=str(error), parity=parity)
    return Verified(report=report, error=None, parity=report.parity)


def _parity_text(parity: ParityReport | None) -> str:
    if parity is None:
        return "no parity"
    share = 100 * parity.parity_blocks / parity.data_blocks
    return f"parity {share:.1f} % in {parity.stripes} stripes"


def _hint(path: str, parity: ParityReport | None, *, unreadable: bool = False) -> str:
    """What repair would do."""
    if parity is None:
        return "" if unreadable else "; there is no parity to repair it by"
    state = (
        f"{parity.damaged_blocks} of {parity.blocks} blocks and {parity.damaged_packets} of "
        f"{parity.packets} parity packets are damaged"
    )
    remote = isinstance(parse_location(path), BundleUrl)
    repair = "download it, and `tersor repair`" if remote else f"`tersor repair {path}`"
    if parity.repairable:
        return f"; it has parity, {state}: {repair} restores it"
    if parity.repairable is None:
        return (
            f"; it has parity, {state}, and {parity.bare_stripes} stripes have no packet left: "
            f"{repair} tells whether their data is whole"
        )
    return f"; it has parity, {state}: too many to restore it by `tersor repair`"
