"""The short form of the suite: `python -m tests.reliability` without a name.

The worlds of its simulators are tests of their own (test_windows.py, test_alerts.py), which run side by side.
"""

from pathlib import Path

import pytest

from tests.reliability.attack import SHORT, Run, attacks, perform
from tests.reliability.traffic import Traffic

WORLDS = {"alerts", "host_clock", "windows"}
KAFKA = {"broker_topic", "kills"}


def check(name: str, directory: Path) -> None:
    one = attacks()[name]
    result = perform(one, Run(name, one.short, 1, directory, print))
    assert not result.failures, result.failures[0].what
    assert not result.skipped
    assert result.runs >= one.short


@pytest.mark.parametrize("name", sorted(set(SHORT) - WORLDS - KAFKA))
def test_it_holds(tmp_path: Path, name: str) -> None:
    check(name, tmp_path)


@pytest.mark.kafka
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", sorted(KAFKA))
def test_it_holds_on_kafka(kafka_jars: None, tmp_path: Path, name: str) -> None:
    check(name, tmp_path)


def test_a_sender_that_goes_on_sends_what_it_would_have_sent() -> None:
    traffic = Traffic(seed=3, start_us=0, seconds=60)
    assert list(traffic.messages(20)) == [message for message in traffic.messages() if message[0] >= 20]
