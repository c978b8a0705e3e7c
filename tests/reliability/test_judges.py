"""The judges of the attacks can find something: each is given what it must not let pass."""

import sys
from pathlib import Path

import pytest
from confluent_kafka import KafkaError, KafkaException

from tests.reliability import disks, security
from tests.reliability.attack import Run, attacks, perform
from tests.system.harness import patiently

SKIPPED = """
import pytest

def test_holds(): pass

@pytest.mark.skip(reason="no Java here")
def test_waits(): pass
"""


def test_tests_of_security_that_were_skipped_did_not_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "test_some.py").write_text(SKIPPED)
    monkeypatch.setattr(security, "TESTS", (f"--rootdir={tmp_path}", str(tmp_path / "test_some.py"), "-n0", "--no-cov"))
    result = perform(attacks()["security"], Run("security", 1, 1, tmp_path, lambda _: None))
    assert result.skipped == "1 of 2 tests: no Java here"
    assert not result.failures
    assert not result.passed


def test_what_an_attack_in_a_process_of_its_own_says_comes_while_it_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disks, "TIMEOUT_S", 60.0)
    heard = tmp_path / "heard"
    program = f"""
import pathlib, sys, threading
print("disk 1 of 2", file=sys.stderr, flush=True)
while not pathlib.Path({str(heard)!r}).exists():
    threading.Event().wait(0.01)
print("figures")
sys.exit(3)
"""

    def keep(line: str) -> None:
        heard.write_text(line)

    found = disks.heard([sys.executable, "-c", program], keep)
    assert found == (3, "figures\n", "disk 1 of 2\n")
    assert heard.read_text() == "disk 1 of 2"


def test_a_broker_that_leads_nothing_yet_is_asked_again() -> None:
    left = [KafkaException(KafkaError(KafkaError.NOT_LEADER_FOR_PARTITION))] * 2

    def ask() -> int:
        if left:
            raise left.pop()
        return 7

    assert patiently(ask) == 7


def test_patience_with_a_broker_ends() -> None:
    def ask() -> None:
        raise KafkaException(KafkaError(KafkaError.NOT_LEADER_FOR_PARTITION))

    with pytest.raises(KafkaException):
        patiently(ask, 0.0)
