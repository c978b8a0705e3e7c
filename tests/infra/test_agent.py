"""The agent as a process: what it becomes, takes on SIGHUP, and refuses; and its systemd unit."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.infra.waiting import eventually
from tests.producers.reading import read_topic, samples_of

UNIT = Path(__file__).parents[2] / "infra" / "systemd" / "tailrace-agent.service"
GROUP = '[[agent.groups]]\nname = "{name}"\ncommand_line = "{name}"\n'

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="process groups are found in Linux's /proc")


class Process:
    """`tailrace agent` and what it logs."""

    def __init__(self, broker: str, settings: Path, *arguments: str) -> None:
        environment = {**os.environ, "TAILRACE_CONFIG": str(settings)}
        if broker not in settings.read_text():
            environment["TAILRACE_KAFKA__BOOTSTRAP_SERVERS"] = broker
        command = [sys.executable, "-m", "tailrace_infra.cli", "agent", *arguments]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
        self.log = ""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log += line

    def says(self, pattern: str) -> None:
        eventually(lambda: re.search(pattern, self.log), 30)

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        code = self.process.wait(30)
        self._reader.join()
        assert self.process.stderr is not None
        self.process.stderr.close()
        return code


@pytest.fixture
def start(embedded_broker: str, tmp_path: Path) -> Iterator[Any]:
    running: list[Process] = []

    def started(text: str, *arguments: str) -> Process:
        (tmp_path / "tailrace.toml").write_text(text)
        running.append(Process(embedded_broker, tmp_path / "tailrace.toml", *arguments))
        return running[-1]

    yield started
    for one in running:
        if one.process.poll() is None:
            one.stop(signal.SIGKILL)


def groups_sent(broker: str) -> set[str]:
    samples = (sample for read in read_topic(broker) for sample in samples_of(read.batch))
    return {dict(sample.series.attributes).get("process.group.name", "") for sample in samples} - {""}


def test_settings_are_taken_anew_on_sighup_and_bad_ones_are_refused(
    start: Any, embedded_broker: str, tmp_path: Path
) -> None:
    agent = start("[agent]\ninterval_s = 0.1\n" + GROUP.format(name="first"))
    eventually(lambda: groups_sent(embedded_broker) == {"first"}, 30)
    resident = psutil.Process(agent.process.pid).memory_info().rss
    assert psutil.Process(agent.process.pid).cmdline()[1:3] == ["-m", "tailrace_infra.agent"]
    assert resident < 80e6, "the command's libraries are gone; docs/agent.md has what was measured"

    settings = tmp_path / "tailrace.toml"
    settings.write_text("[agent]\ninterval_s = 0.1\nnope = 1\n" + GROUP.format(name="second"))
    agent.process.send_signal(signal.SIGHUP)
    agent.says(r"SIGHUP: the settings stay as they were; .*tailrace\.toml:3: there is no setting 'agent\.nope'")
    assert groups_sent(embedded_broker) == {"first"}

    settings.write_text("[kafka]\nproperties = {acks = 1}\n[agent]\ninterval_s = 0.2\n" + GROUP.format(name="second"))
    agent.process.send_signal(signal.SIGHUP)
    agent.says(r"SIGHUP: 1 process groups, 0 probes, every 0\.2 s")
    agent.says(r"SIGHUP: kafka changed; that takes a restart")
    eventually(lambda: groups_sent(embedded_broker) == {"first", "second"}, 30)

    assert agent.stop() == 0
    assert "dropped={}" in agent.log


def test_other_brokers_in_the_file_are_told_to_take_a_restart(start: Any, embedded_broker: str, tmp_path: Path) -> None:
    agent = start(f'[kafka]\nbootstrap_servers = "{embedded_broker}"\n[agent]\ninterval_s = 0.1\n')
    eventually(lambda: read_topic(embedded_broker), 30)
    (tmp_path / "tailrace.toml").write_text('[kafka]\nbootstrap_servers = "elsewhere:9092"\n')
    agent.process.send_signal(signal.SIGHUP)
    agent.says(r"SIGHUP: kafka changed; that takes a restart")
    assert agent.stop() == 0


def test_options_win_over_the_file(start: Any, embedded_broker: str) -> None:
    agent = start(
        '[agent]\ninterval_s = 3600\nservice = "file"\n', "--interval", "0.2", "--service", "flag", "--duration", "1"
    )
    assert agent.wait() == 0
    reads = read_topic(embedded_broker)
    assert {read.batch.service for read in reads} == {"flag"}
    assert len({sample.time_us for read in reads for sample in samples_of(read.batch)}) >= 3


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        ("[agent]\nprobes = ['x']\n", 2, r"agent\.probes\.0: .*'x' is no target"),
        (
            "[kafka.properties]\nnope = 1\n",
            1,
            "librdkafka refuses its properties: No such configuration property: .*nope",
        ),
    ],
)
def test_wrong_settings_at_start_are_told(start: Any, text: str, code: int, message: str) -> None:
    agent = start(text)
    assert agent.wait() == code
    assert re.search(message, agent.log)
    assert "Traceback" not in agent.log


def test_once_shows_a_pass(tmp_path: Path) -> None:
    (tmp_path / "tailrace.toml").write_text(GROUP.format(name="pytest"))
    environment = {**os.environ, "TAILRACE_CONFIG": str(tmp_path / "tailrace.toml")}
    command = [sys.executable, "-m", "tailrace_infra.cli", "agent", "--once", "--format", "json"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    found = {(row["metric"], row["attributes"]): row for row in json.loads(done.stdout)}
    assert found["process.group.process.count", "process.group.name=pytest"]["value"] >= 1
    assert found["system.cpu.utilization", ""]["unit"] == "1"
    assert found["system.process.cpu.utilization", ""]["value"] > 1, "of a distribution, the number of values"


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze")
def test_the_systemd_unit_is_valid_and_hardened(tmp_path: Path) -> None:
    text = UNIT.read_text()
    command = re.search(r"^ExecStart=(\S+)", text, re.M)
    assert command is not None
    unit = tmp_path / UNIT.name
    unit.write_text(text.replace(command[1], shutil.which("true") or "/bin/true"))
    verify = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True)
    assert (verify.returncode, verify.stderr) == (0, "")
    security = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", "--threshold=20", str(unit)],
        capture_output=True, text=True,
    )  # fmt: skip
    assert security.returncode == 0, security.stdout
