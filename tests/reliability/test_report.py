"""What an attack found comes out on both pages, whatever it says."""

import json
from pathlib import Path

import pytest

from tests.reliability import report
from tests.reliability.attack import Attack, Plot, Result, Run, attacks, perform

HOSTILE = "a|b <script>alert(1)</script> {{ 7 * 7 }}"


def _fails(run: Run) -> Result:
    raise ValueError(f"{HOSTILE} {run.size}")


def _holds(run: Run) -> Result:
    plot = Plot("memory", "h", "MB", [0, 1, 2], [5, 5, 5])
    return Result(run.size, list(range(20)), {"lost": 0, "rate": 12345.6, "name": HOSTILE}, plots=[plot])


def test_both_pages_say_what_held_and_what_did_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "RESULTS", tmp_path / "results.json")
    known = {
        name: Attack(name, f"nothing is lost by {name}", "everything", "kills", 2, 200, does)
        for name, does in (("fails", _fails), ("holds", _holds), ("waits", _holds))
    }
    for name in ("fails", "holds"):
        run = Run(name, 7, 3, tmp_path, lambda _: None)
        report.keep(known[name], perform(known[name], run), 1.5, 1.0)
    report.write(tmp_path / "page", known)
    markdown, html = (tmp_path / "page.md").read_text(), (tmp_path / "page.html").read_text()
    kept = json.loads((tmp_path / "results.json").read_text())
    assert kept["holds"]["passed"]
    assert not kept["fails"]["passed"]
    for page in (markdown, html):
        assert "python -m tests.reliability fails --seed 3 --size 7" in page
        assert "did not hold" in page
        assert "20, from 0 to 19" in page
        assert "12,346" in page
        assert "not run" in page
        assert "49" not in page.split("holds")[-1].split("time")[0]
    assert "<script>" not in html
    assert "<polyline" in html
    rows = [line for line in markdown.splitlines() if line.startswith("| name")]
    assert rows == [f"| name | {HOSTILE.replace('|', chr(92) + '|')} |"]


def test_every_attack_says_what_it_attacks_and_how_much_of_it() -> None:
    for name, one in attacks().items():
        assert name == one.name
        assert one.promise
        assert one.what
        assert 0 < one.short <= one.long
