"""A few damaged messages for each reader: `python -m tests.reliability inputs --long` has a million."""

from itertools import islice
from pathlib import Path
from random import Random

import pytest

from tests.reliability.inputs import TARGETS, batches, found_before


@pytest.mark.parametrize("name", TARGETS)
def test_nothing_crashes_and_dead_letters_are_what_is_bad(name: str, tmp_path: Path) -> None:
    target = TARGETS[name]
    for messages in islice(batches(target, Random(1)), 3):
        target.take(messages, tmp_path)


def test_what_was_found_before_stays_fixed(tmp_path: Path) -> None:
    for name, message in found_before():
        target = TARGETS[name]
        target.take([target.good[0], message, target.good[0]], tmp_path)
