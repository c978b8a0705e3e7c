"""A few damaged messages for each reader: `python -m tests.reliability inputs --long` has a million."""

from itertools import islice
from pathlib import Path
from random import Random

import pytest

from tests.reliability.inputs import TARGETS, batches


@pytest.mark.parametrize("name", TARGETS)
def test_nothing_crashes_and_dead_letters_are_what_is_bad(name: str, tmp_path: Path) -> None:
    target = TARGETS[name]
    for messages in islice(batches(target, Random(1)), 3):
        target.take(messages, tmp_path)
