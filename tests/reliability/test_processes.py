"""The attacks on real processes that matter most, in a form that is short enough for every change."""

from pathlib import Path

import pytest

from tests.reliability.attack import Run, attacks, perform
from tests.reliability.traffic import Traffic


@pytest.mark.kafka
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("name", "size"), [("broker_topic", 2), ("kills", 4)])
def test_it_holds(kafka_jars: None, tmp_path: Path, name: str, size: int) -> None:
    result = perform(attacks()[name], Run(name, size, 1, tmp_path, print))
    assert not result.failures, result.failures[0].what
    assert result.runs == size


def test_a_sender_that_goes_on_sends_what_it_would_have_sent() -> None:
    traffic = Traffic(seed=3, start_us=0, seconds=60)
    assert list(traffic.messages(20)) == [message for message in traffic.messages() if message[0] >= 20]
