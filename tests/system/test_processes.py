"""Stops, several processes, and one instance a directory."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from tailrace_infra.ports import free_port
from tailrace_schemas.clock import monotonic_s

from tests.infra.waiting import eventually
from tests.system.harness import Bench, bench
from tests.system.workload import Workload, assert_same, expected_rows, make_workload, stored_rows


def run_until_read(b: Bench, made: Workload, upto: int, processes: int) -> None:
    """Runs `tailrace run windows --processes N` until the first `upto` samples are counted, then SIGTERM."""
    command = [sys.executable, "-m", "tailrace_infra.cli", "run", "windows", "--processes", str(processes)]
    with (b.directory / "flow.log").open("ab") as log:
        flow = subprocess.Popen(command, env={**os.environ, **b.environment}, stderr=log)
    try:
        eventually(lambda: b.counters().get("samples", 0) >= upto or flow.poll() is not None, 60)
        assert flow.poll() is None, (b.directory / "flow.log").read_text()[-2000:]
    finally:
        began_s = monotonic_s()
        flow.send_signal(signal.SIGTERM)
        code = flow.wait(60)
    assert code == 0, (b.directory / "flow.log").read_text()[-2000:]
    assert monotonic_s() - began_s < 10, "a stop takes 5 s at most, and as long again on a loaded machine"


def test_changing_the_number_of_processes_keeps_the_rows_exact(
    embedded_broker: str, clickhouse_url: str, tmp_path: Path
) -> None:
    made = make_workload(seed=11, steps=240)
    thirds = [len(made.messages) // 3 * n for n in (1, 2)] + [len(made.messages)]
    with bench(embedded_broker, clickhouse_url, tmp_path, "rescale", "replay") as b:
        producer, at = b.producer(), 0
        for processes, end in zip((1, 3, 2), thirds, strict=True):
            before = b.counters().get("samples", 0)
            b.send(producer, made.messages[at:end])
            at = end
            run_until_read(b, made, made.counters["samples"] if end == len(made.messages) else before + 1, processes)
        b.await_counters(dict(made.counters))
        assert_same(stored_rows(b.clickhouse, "windows"), expected_rows(made, 10))
        assert_same(stored_rows(b.clickhouse, "windows_1m"), expected_rows(made, 60))


def test_hosts_may_share_the_files_of_the_state_out(embedded_broker: str, clickhouse_url: str, tmp_path: Path) -> None:
    """As docs/scaling.md says: made on one host, each file then moved to one of two."""
    made = make_workload(seed=13, services=8, steps=120)
    half = len(made.messages) // 2
    hosts = [tmp_path / "a", tmp_path / "b"]
    with bench(embedded_broker, clickhouse_url, tmp_path, "hosts", "replay") as b:
        producer = b.producer()
        b.send(producer, made.messages[:half])
        run_until_read(b, made, 1, processes=1)
        for number, path in enumerate(sorted((tmp_path / "recovery" / "windows").glob("part-*.sqlite3"))):
            there = hosts[number % 2] / "windows"
            there.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.rename(there / path.name)
        b.send(producer, made.messages[half:])
        addresses = [f"{host}:{free_port()}" for host in ("127.0.0.1", "127.0.0.2")]
        command = [sys.executable, "-m", "tailrace_infra.run", "windows", "--addresses", ",".join(addresses)]
        with (tmp_path / "flow.log").open("ab") as log:
            flows = [
                subprocess.Popen(
                    [*command, "--process", str(number)],
                    env={**os.environ, **b.environment, "TAILRACE_RECOVERY__DIRECTORY": str(host)},
                    stdout=subprocess.DEVNULL,
                    stderr=log,
                )
                for number, host in enumerate(hosts)
            ]
        try:
            eventually(lambda: b.counters() == dict(made.counters) or any(one.poll() is not None for one in flows), 60)
            assert [one.poll() for one in flows] == [None, None], (tmp_path / "flow.log").read_text()[-2000:]
        finally:
            for one in flows:
                one.terminate()
            codes = [one.wait(60) for one in flows]
        assert codes == [0, 0], (tmp_path / "flow.log").read_text()[-2000:]
        assert_same(stored_rows(b.clickhouse, "windows"), expected_rows(made, 10))


def test_a_drain_stores_open_windows_and_the_next_start_completes_them(
    embedded_broker: str, clickhouse_url: str, tmp_path: Path
) -> None:
    made = make_workload(seed=12, services=2, steps=90)
    half = len(made.messages) // 2
    with bench(embedded_broker, clickhouse_url, tmp_path, "drain", "replay") as b:
        producer = b.producer()
        b.send(producer, made.messages[:half])
        run_until_read(b, made, 1, processes=1)
        provisional = stored_rows(b.clickhouse, "windows")
        counted = b.counters()["samples"]
        assert sum(row["count"] for row in provisional.values()) == counted
        b.send(producer, made.messages[half:])
        run_until_read(b, made, made.counters["samples"], processes=1)
        b.await_counters(dict(made.counters))
        assert_same(stored_rows(b.clickhouse, "windows"), expected_rows(made, 10))


def test_two_instances_cannot_share_a_recovery_directory(
    embedded_broker: str, clickhouse_url: str, tmp_path: Path
) -> None:
    with bench(embedded_broker, clickhouse_url, tmp_path, "twice", "replay") as b:
        first = b.start_flow()
        try:
            eventually(
                lambda: (
                    (tmp_path / "recovery" / "windows" / "lock").exists()
                    and (tmp_path / "recovery" / "windows" / "lock").read_text()
                )
            )
            second = subprocess.run(
                [sys.executable, "-m", "tailrace_infra.cli", "run", "windows"],
                env={**os.environ, **b.environment}, capture_output=True, text=True, timeout=60, check=False,
            )  # fmt: skip
        finally:
            assert first.stop() == 0
        assert second.returncode == 1
        assert str(first.process.pid) in second.stderr
        assert "recovery directory" in second.stderr


def test_the_processes_of_a_killed_cluster_hold_its_directory_until_they_have_ended(
    embedded_broker: str, clickhouse_url: str, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "tailrace_infra.cli", "run", "windows"]
    with bench(embedded_broker, clickhouse_url, tmp_path, "orphans", "replay") as b:
        environment = {**os.environ, **b.environment}
        cluster = subprocess.Popen([*command, "--processes", "2"], env=environment)
        try:
            parts = eventually(lambda: (found := psutil.Process(cluster.pid).children()) and len(found) == 2 and found)
            for part in parts:
                eventually(lambda part=part: "tailrace_infra.run" in part.cmdline())
                part.suspend()  # they would end within seconds
        finally:
            cluster.kill()
            cluster.wait()
        try:
            second = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
        finally:
            for part in parts:
                part.kill()
        assert second.returncode == 1
        assert "is in use by process" in second.stderr


def test_a_topic_that_is_not_there_is_named_with_what_to_do(tmp_path: Path, clickhouse_url: str) -> None:
    environment = {
        **os.environ,
        "TAILRACE_KAFKA__BOOTSTRAP_SERVERS": "127.0.0.1:1",
        "TAILRACE_CLICKHOUSE__URL": clickhouse_url,
        "TAILRACE_RECOVERY__DIRECTORY": str(tmp_path / "recovery"),
    }
    done = subprocess.run(
        [sys.executable, "-m", "tailrace_infra.cli", "run", "windows"],
        env=environment, capture_output=True, text=True, timeout=90, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "127.0.0.1:1" in done.stderr


@pytest.mark.parametrize("junk", [1_200])
def test_a_topic_full_of_junk_stops_the_flow_with_a_clear_message(
    embedded_broker: str, clickhouse_url: str, tmp_path: Path, junk: int
) -> None:
    with bench(embedded_broker, clickhouse_url, tmp_path, "junk", "replay") as b:
        b.send(b.producer(), [("x", b"junk")] * junk)
        flow = b.start_flow()
        try:
            assert flow.process.wait(60) == 1
        finally:
            flow.stop()
        assert "junk.samples" in (tmp_path / "flow.log").read_text()
        assert "cannot be read" in (tmp_path / "flow.log").read_text()
