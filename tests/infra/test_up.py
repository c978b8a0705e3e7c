"""`tailrace up`: it stores what it collects, and however it ends, nothing of it is left running."""

import os
import re
import signal
import socket
import subprocess
from pathlib import Path

import psutil
import pytest
from tailrace_flows.private_files import open_private
from tailrace_infra.live import problems
from tailrace_infra.stack import LOG_BYTES_MAX, running_endpoints, trim_logs

from tests.infra.command import embedded, tailrace, up
from tests.infra.waiting import eventually, gone

pytest.importorskip("chdb")

HOST = """
SELECT metric, attributes['system.filesystem.mountpoint'] AS mount, argMax(last, window_start) AS last,
       min(min) AS least, max(max) AS most
FROM windows WHERE kind = 'gauge' AND service = 'host' GROUP BY metric, mount
"""


def test_what_the_agent_collects_is_stored_and_is_what_psutil_reads(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    cpu, memory = [], []
    with up(data_dir, "--duration", "12") as running:
        running.endpoints()
        with (data_dir / "logs" / "broker.log").open("a") as said:  # by the broker, again and again
            said.write("refused\n" * LOG_BYTES_MAX)
        psutil.cpu_percent()
        while running.process.poll() is None:
            try:
                running.process.wait(0.5)
            except subprocess.TimeoutExpired:
                cpu.append(psutil.cpu_percent() / 100)
                memory.append(psutil.virtual_memory().percent / 100)
        disk = psutil.disk_usage("/").percent / 100
        assert running.wait() == 0, running.output()
        assert len(re.findall(r"samples=\d+ rate=", running.output())) in (1, 2), "a line every 10 s"
    sizes = {path.name: path.stat().st_size for path in (data_dir / "logs").iterdir()}
    assert sizes["broker.log.1"] == LOG_BYTES_MAX
    assert max(sizes.values()) == LOG_BYTES_MAX
    log = (data_dir / "logs" / "agent.log").read_text()
    recorded, dropped = re.search(r"recorded=(\d+), .*dropped=(\{.*?\})", log).groups()  # type: ignore[union-attr]
    assert dropped == "{}"
    with embedded(data_dir) as client:
        counters = dict(client.query("SELECT name, sum(value) FROM counters GROUP BY name").result_rows)
        assert counters["samples"] == int(recorded)
        assert problems(counters) == {}
        assert client.query("SELECT sum(count) FROM windows").result_rows == [(int(recorded),)]
        found = {(row["metric"], row["mount"]): row for row in client.query(HOST).named_results()}
    stored = found["system.memory.utilization", ""]
    assert min(memory) - 0.02 <= stored["last"] <= max(memory) + 0.02
    assert found["system.filesystem.utilization", "/"]["last"] == pytest.approx(disk, abs=0.02)
    busiest = found["system.cpu.utilization", ""]
    # Not the same half seconds, but the same load.
    assert busiest["least"] - 0.35 <= sum(cpu) / len(cpu) <= busiest["most"] + 0.35


def test_a_log_keeps_its_end_and_who_writes_it_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "flow.log"
    lines = 0
    with open_private(path, "ab") as log:
        for _ in range(3):
            for _ in range(LOG_BYTES_MAX // 100):
                lines += 1
                log.write(b"%-109d\n" % lines)
            log.flush()
            trim_logs(tmp_path)
            assert path.stat().st_size == 0
        log.write(b"the last\n")
    trim_logs(tmp_path)
    assert path.read_bytes() == b"the last\n"
    older = tmp_path / "flow.log.1"
    assert older.stat().st_size == LOG_BYTES_MAX
    assert older.stat().st_mode & 0o077 == 0
    kept = older.read_bytes().splitlines()[1:]
    assert [int(line) for line in kept] == list(range(lines - len(kept) + 1, lines + 1))
    assert {one.name for one in tmp_path.iterdir()} == {"flow.log", "flow.log.1"}


@pytest.mark.parametrize(
    ("marker", "number", "group"),
    [
        # While modules are loaded: Python's own answer to the signal is as good.
        ("", signal.SIGINT, True),
        ("ClickHouse", signal.SIGINT, True),
        ("ClickHouse", signal.SIGTERM, False),
        ("flow is starting", signal.SIGINT, True),
        ("try:", signal.SIGTERM, False),
        # And SIGINT to the group when everything runs: in the next test.
    ],
)
def test_ctrl_c_and_sigterm_at_any_moment_leave_nothing_running(
    tmp_path: Path, marker: str, number: int, group: bool
) -> None:
    data_dir = tmp_path / "data"
    with up(data_dir) as running:
        if marker:
            eventually(lambda: marker in running.output(), 60)
        else:
            process = psutil.Process(running.process.pid)
            eventually(lambda: process.cpu_times().user > 0.2)
        running.signal(number, group=group)
        code = running.wait()
        assert "Traceback" not in running.output()
        assert code in ((0, 130, 1, -signal.SIGINT) if not marker else (0,)), running.output()
    assert not (data_dir / "run.json").exists()


def test_a_second_one_is_told_of_the_first_and_a_second_ctrl_c_hurries(tmp_path: Path) -> None:
    with up(tmp_path / "data") as running:
        eventually(lambda: "try:" in running.output(), 60)
        second = tailrace("up", "--data-dir", str(tmp_path / "data"), "--clickhouse-port", "0")
        assert second.returncode == 1
        assert f"is in use by process {running.process.pid}" in second.stderr
        assert len(second.stderr.splitlines()) == 1
        running.signal(signal.SIGINT, group=True)
        eventually(lambda: "stopping" in running.output(), 60)
        for _ in range(3):
            running.signal(signal.SIGINT, group=True)
        assert running.wait() == 0
        assert "Traceback" not in running.output()


def test_a_kill_of_the_parent_ends_the_parts_and_the_next_start_works_at_once(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    with up(data_dir) as running:
        running.endpoints()
        parts = running.all_parts()
        running.signal(signal.SIGKILL)
        running.wait()
        # Its pid in what is left may be anybody's by now.
        left = (data_dir / "run.json").read_text()
        (data_dir / "run.json").write_text(left.replace(str(running.process.pid), str(os.getpid())))
        assert running_endpoints(data_dir) is None
        with up(data_dir, "--duration", "1") as again:
            assert again.wait(60) == 0, again.output()
        assert all(gone(part.pid) for part in parts.values())


@pytest.mark.parametrize("part", ["flow", "alerts", "clickhouse", "broker"])
def test_a_part_that_dies_ends_it_with_its_name_and_log(tmp_path: Path, part: str) -> None:
    with up(tmp_path / "data") as running:
        running.all_parts()
        eventually(lambda: "try:" in running.output(), 60)
        running.parts()[part].kill()
        assert running.wait() == 1
        assert f"{part} has ended by itself" in running.output()
        assert f"{part}.log" in running.output()
        assert "Traceback" not in running.output()


def test_a_clickhouse_that_hangs_does_not_keep_it_from_hearing_signals(tmp_path: Path) -> None:
    with up(tmp_path / "data") as running:
        clickhouse = running.all_parts()["clickhouse"]
        eventually(lambda: "samples=" in running.output(), 60)  # it is connected
        clickhouse.suspend()
        eventually(lambda: "no figures: ClickHouse does not answer" in running.output(), 60)
        clickhouse.resume()
        running.signal(signal.SIGTERM)
        assert running.wait() == 0, running.output()


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = tailrace("up", "--data-dir", str(tmp_path / "data"), "--clickhouse-port", port)
    assert done.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}" in done.stderr
    assert len(done.stderr.splitlines()) == 2, "where it was, and what was wrong"


@pytest.mark.parametrize("command", [["up"], ["replay", __file__, "--embedded"]])
def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path, command: list[str]) -> None:
    (tmp_path / "file").touch()
    done = tailrace(*command, "--data-dir", str(tmp_path / "file" / "data"))
    assert done.returncode == 1
    assert str(tmp_path / "file") in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_full_disk_is_said(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("only root may mount a small disk")
    try:
        done = tailrace("up", "--data-dir", str(disk / "data"), "--clickhouse-port", "0")
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    assert done.returncode == 1
    assert "free some space" in done.stderr
    assert "Traceback" not in done.stderr
