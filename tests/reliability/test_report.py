"""What an attack found comes out on both pages, whatever it says."""

import json
from collections import Counter
from pathlib import Path

import pytest

from tests.reliability import __main__ as command
from tests.reliability import report
from tests.reliability.attack import Attack, Failure, Plot, Result, Run, attacks, perform

HOSTILE = "a|b <script>alert(1)</script> {{ 7 * 7 }}"


def _fails(run: Run) -> Result:
    raise ValueError(f"{HOSTILE} {run.size}")


def _holds(run: Run) -> Result:
    plot = Plot("memory", "h", "MB", [0, 1, 2], [5, 5, 5])
    return Result(run.size, list(range(20)), {"lost": 0, "rate": 12345.6, "name": HOSTILE}, plots=[plot])


def _counts(run: Run) -> Result:
    return Result(run.size, [1], Counter(kills=3))


def test_both_pages_say_what_held_and_what_did_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "RESULTS", tmp_path / "results.json")
    known = {
        name: Attack(name, f"nothing is lost by {name}", "everything", "kills", 2, 200, does)
        for name, does in (("fails", _fails), ("counts", _counts), ("holds", _holds), ("waits", _holds))
    }
    for name in ("fails", "counts", "holds"):
        run = Run(name, 7, 3, tmp_path, lambda _: None)
        report.keep(known[name], run.size, perform(known[name], run), 1.5, 1.0)
    report.write(tmp_path / "page", known)
    markdown, html = (tmp_path / "page.md").read_text(), (tmp_path / "page.html").read_text()
    kept = json.loads((tmp_path / "results.json").read_text())
    assert kept["holds"]["passed"]
    assert not kept["fails"]["passed"]
    assert kept["counts"]["figures"] == {"kills": 3}
    for page in (markdown, html):
        assert "python -m tests.reliability fails --seed 3 --size 7" in page
        assert "did not hold" in page
        assert "20, from 0 to 19" in page
        assert "12,346" in page
        assert "not run" in page
        assert "7 of 200" in page
        assert "49" not in page.split("holds")[-1].split("time")[0]
    assert "<script>" not in html
    assert "<polyline" in html
    rows = [line for line in markdown.splitlines() if line.startswith("| name")]
    assert rows == [f"| name | {HOSTILE.replace('|', chr(92) + '|')} |"]


@pytest.mark.parametrize(
    ("kept", "form"),
    [
        ({"size": 200, "runs": 201}, "long"),
        ({"size": 2, "runs": 3}, "short"),
        ({"size": 1200, "runs": 1201}, "1,200 of 2,000"),
        ({"runs": 3}, "3 of 2,000"),
    ],
)
def test_a_page_tells_a_short_run_from_a_long_one(kept: dict[str, int], form: str) -> None:
    long = 200 if form == "long" else 2000
    assert report.form(Attack("", "", "", "kills", 2, long, _holds), kept) == form


@pytest.mark.parametrize(("options", "code"), [([], 0), (["--no-skips"], 1)])
def test_what_was_skipped_is_said_in_the_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], options: list[str], code: int
) -> None:
    known = {
        name: Attack(name, "", "", "kills", 2, 200, does)
        for name, does in (("first", lambda _: Result(skipped="no Java here")), ("last", _holds))
    }
    monkeypatch.setattr(command, "attacks", lambda: known)
    assert command.main([*known, *options]) == code
    assert capsys.readouterr().err.splitlines()[-1] == "1 of 2 attacks skipped: first (no Java here)"


def test_what_failed_did_not_hold_though_something_was_skipped_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    both = Result(1, failures=[Failure("lost", 1, "again")], skipped="half of it")
    monkeypatch.setattr(command, "attacks", lambda: {"both": Attack("both", "", "", "kills", 2, 200, lambda _: both)})
    assert command.main(["--long"]) == 1
    assert "both: did not hold" in capsys.readouterr().out


def test_every_attack_says_what_it_attacks_and_how_much_of_it() -> None:
    for name, one in attacks().items():
        assert name == one.name
        assert one.promise
        assert one.what
        assert 0 < one.short <= one.long
