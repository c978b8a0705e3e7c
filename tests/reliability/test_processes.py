"""The attacks on real processes that matter most, in a form that is short enough for every change."""

from pathlib import Path

import pytest

from tests.reliability.attack import Run, attacks, perform


@pytest.mark.kafka
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("name", "size"), [("broker_topic", 2), ("kills", 4)])
def test_it_holds(kafka_jars: None, tmp_path: Path, name: str, size: int) -> None:
    result = perform(attacks()[name], Run(name, size, 1, tmp_path, print))
    assert not result.failures, result.failures[0].what
    assert result.runs == size
