"""A bounded slice of the fuzzer of `tests/fuzz`, and that the fuzzer sees what goes wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import dying_worker
import fuzz_parity
import pytest
from fuzz_cases import TARGET_NAMES, Cases, Share, Tally, target_of
from fuzz_codecs import Codecs
from fuzz_entropy import EntropyChunk
from fuzz_report import rows, save, summary
from fuzz_run import run_all
from fuzz_seeds import Seeds

from tersor.bundle import encoded_plane, repair, validate, verify
from tersor.bundle.codecs import Lz4Codec
from tersor.bundle.decoding import BlockDecoder
from tersor.bundle.dtypes import AnyArray, ByteArray
from tersor.bundle.filters import FILTERS, Filter

# All targets in about three seconds; `make fuzz` runs a million.
_CASES = 3000


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Cases:
    return Cases(tmp_path_factory.mktemp("fuzz"))


def run(cases: Cases, numbers: Sequence[int], only: str | None = None) -> Tally:
    tally = Tally()
    for case in numbers:
        cases.run(0, case, tally, only=only)
    return tally


def test_nothing_is_found(cases: Cases) -> None:
    tally = run(cases, range(_CASES))
    assert not tally.failures, summary(tally, seed=0, workers=1, seconds=1.0)
    assert tally.cases == _CASES
    for target in TARGET_NAMES:
        outcomes = {outcome for name, outcome in tally.outcomes if name == target}
        assert "accepted" in outcomes, f"no case of {target} gets past the checks"
        assert len(outcomes) > 1, f"no case of {target} is refused"


def test_a_case_is_the_same_alone_and_in_any_order(cases: Cases) -> None:
    together = run(cases, range(300))
    assert run(cases, range(299, -1, -1)).outcomes == together.outcomes
    for case in (0, 17, 299):
        target, _ = target_of(0, case)
        alone = run(cases, [case])
        assert run(cases, [case], only=target).outcomes == alone.outcomes


def _no_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify._Verification, "_check_padding", lambda *_: None)


def _no_extent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validate, "_check_extent", lambda *_: None)


def _no_digests(monkeypatch: pytest.MonkeyPatch) -> None:
    def check_plane(self: Any, plane: Any, tensors: Any) -> None:
        for block in range(len(plane.streams[0].chunks)):
            decoder = BlockDecoder(plane, self._codecs, self._check_tables(plane, ()) or ())
            self._check_block(decoder, block, tensors, decodable=True)

    monkeypatch.setattr(verify._Verification, "_check_plane", check_plane)


def _long_write(monkeypatch: pytest.MonkeyPatch) -> None:
    def decode_into(
        self: Lz4Codec, stored: ByteArray, out: ByteArray, table: ByteArray | None = None
    ) -> None:
        out[:] = self.decode(stored, out.size, table)
        assert isinstance(out.base, type(out))
        out.base[-1] = 0

    monkeypatch.setattr(Lz4Codec, "decode_into", decode_into)


def _lenient_filter(monkeypatch: pytest.MonkeyPatch) -> None:
    nibbles: type[Filter] = type(FILTERS["nibbles"])
    join = nibbles.join

    def lenient(self: Filter, dtype: str, streams: Sequence[ByteArray], out: AnyArray) -> None:
        (stream,) = streams
        if out.size % 2:
            stream = stream.copy()
            stream[-1] &= 15
        join(self, dtype, [stream], out)

    monkeypatch.setattr(nibbles, "join", lenient)


def _other_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    cut = encoded_plane.RowSelection.cut

    def shifted(self: encoded_plane.RowSelection, array: AnyArray) -> AnyArray:
        part = cut(self, array)
        return part if self.rows[0] == 0 else part[::-1]

    monkeypatch.setattr(encoded_plane.RowSelection, "cut", shifted)


def _careless_repair(monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(path: Path) -> repair.RepairReport:
        report = repair.repair(path)
        if report.output is not None:
            data = bytearray(path.read_bytes())
            data[4096] ^= 1
            path.write_bytes(data)
        return report

    monkeypatch.setattr(fuzz_parity, "repair", careless)


@pytest.mark.parametrize(
    ("target", "count", "plant", "message"),
    [
        ("raw bytes", 300, _no_padding, "the file is not what was written"),
        ("manifest structure", 2000, _no_extent, "ValueError: "),
        ("chunks", 300, _no_digests, "a plane has another digest"),
        ("codecs", 300, _long_write, "lz4 wrote outside of its output"),
        ("filters", 300, _lenient_filter, "streams that it does not split into"),
        ("rows, sources", 100, _other_rows, "differ from those of the whole plane"),
        ("parity", 30, _careless_repair, "a repaired file has damaged blocks"),
    ],
)
def test_a_planted_fault_is_found(
    cases: Cases,
    monkeypatch: pytest.MonkeyPatch,
    target: str,
    count: int,
    plant: Callable[[pytest.MonkeyPatch], None],
    message: str,
) -> None:
    plant(monkeypatch)
    found = {failure.what.rstrip() for failure in run(cases, range(count), only=target).failures}
    assert any(message in what.rpartition("\n")[2] for what in found), found


def test_entropy_coded_chunks_are_put_together_as_they_were(tmp_path: Path) -> None:
    samples = Codecs(Seeds.load(tmp_path), tmp_path).samples
    rows_of_classes = 0
    for name in ("huffman", "rans"):
        for sample in samples[name]:
            chunk = EntropyChunk.take_apart(
                sample.stored, sample.raw_bytes, sample.table, rans=name == "rans"
            )
            assert chunk.put_together() == sample.stored
            rows_of_classes += chunk.width > 0
    assert rows_of_classes >= 2


def test_a_worker_that_dies_is_a_finding_and_the_rest_goes_on(tmp_path: Path) -> None:
    tally = run_all(Share(seed=0, first=0, end=12), 2, work=dying_worker.work)
    (failure,) = tally.failures
    assert failure.case == dying_worker.DEADLY_CASE
    assert failure.target == target_of(0, failure.case)[0]
    assert failure.what == "the process ends by SIGSEGV"
    assert tally.lost == 1  # case 5: it went well, but nobody was told
    assert tally.cases + tally.lost == 12

    text = summary(tally, seed=0, workers=2, seconds=2.0)
    assert "6 cases/s" in text
    assert f"--seed 0 --first 7 --cases 1 --target '{failure.target}'" in text
    table = rows(tally, seed=0, workers=2, seconds=2.0)
    assert table[-1] | {"target": "all", "cases": 11, "accepted": 10, "findings": 1} == table[-1]
    save(tally, tmp_path / "found")
    (note,) = (tmp_path / "found").iterdir()
    assert note.read_text(encoding="utf-8") == failure.what
