"""Messages that were once not read as they should be."""

from pathlib import Path

from tests.reliability.inputs import TARGETS, found_before


def test_what_was_found_before_stays_fixed(tmp_path: Path) -> None:
    for name, message in found_before():
        target = TARGETS[name]
        target.take([target.good[0], message, target.good[0]], tmp_path)
