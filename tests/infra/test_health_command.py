"""`tailrace health run` as a user runs it."""

import json
import re
import signal
import socket
import subprocess
from pathlib import Path

from tailrace_flows.settings import KafkaSettings
from tailrace_infra.health_command import checks_of
from tailrace_infra.ports import free_port
from tailrace_producers.health import run_check
from tailrace_schemas.config import load
from tailrace_schemas.config.health import HealthCheck

from tests.infra.command import COMMAND, tailrace
from tests.infra.waiting import eventually, gone
from tests.producers.reading import read_topic, samples_of
from tests.producers.servers import talking

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nup"


def answer(connection: socket.socket) -> None:
    connection.recv(1000)
    connection.sendall(OK)


def config(tmp_path: Path, up: int, down: int) -> Path:
    path = tmp_path / "health.yaml"
    path.write_text(
        f"""
health_checks:
- {{name: web, service: shop, http: {{url: "http://127.0.0.1:{up}/", contains: up}}, interval: 10s, timeout: 2s}}
- {{name: port, service: shop, tcp: {{host: 127.0.0.1, port: {up}}}, interval: 10s, timeout: 2s}}
- {{name: cache, service: redis, redis: {{host: 127.0.0.1, port: {down}}}, interval: 10s, timeout: 2s}}
- {{name: plugin, service: host, command: {{arguments: [sh, -c, "echo almost full; exit 1"]}}, interval: 10s}}
- {{name: nightly, service: batch, heartbeat: {{within: 1d}}}}
services:
- {{name: shop, depends_on: [redis]}}
"""
    )
    return path


def test_once_shows_what_each_check_finds(tmp_path: Path) -> None:
    with talking(answer) as up:
        done = tailrace("health", "run", str(config(tmp_path, up, free_port())), "--once", "--format", "json")
    assert done.returncode == 1, done.stderr
    rows = {row["check"]: row for row in json.loads(done.stdout)}
    assert {name: (row["service"], row["kind"], row["status"], row["reason"]) for name, row in rows.items()} == {
        "web": ("shop", "http", "healthy", ""),
        "port": ("shop", "tcp", "healthy", ""),
        "cache": ("redis", "redis", "unhealthy", "connection_refused"),
        "plugin": ("host", "command", "degraded", "exit_1"),
    }
    assert rows["plugin"]["detail"] == "almost full"
    assert 0 < rows["web"]["seconds"] < 2


def test_results_are_pushed_until_it_is_stopped(tmp_path: Path, embedded_broker: str) -> None:
    with talking(answer) as up:
        process = subprocess.Popen(
            [*COMMAND, "health", "run", str(config(tmp_path, up, free_port())), "--service", "probes"],
            env={"PATH": "/usr/bin:/bin", "TAILRACE_KAFKA__BOOTSTRAP_SERVERS": embedded_broker},
            cwd=tmp_path, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:

            def checked() -> set[str]:
                samples = [one for read in read_topic(embedded_broker) for one in samples_of(read.batch)]
                return {dict(one.series.attributes)["health.check.name"] for one in samples}

            eventually(lambda: checked() == {"web", "port", "cache", "plugin"}, 60)
        finally:
            process.send_signal(signal.SIGTERM)
            _, stderr = process.communicate(timeout=30)
    assert process.returncode == 0, stderr
    assert re.search("cache of redis is unhealthy: connection_refused", stderr)
    assert {read.batch.service for read in read_topic(embedded_broker)} == {"probes"}


def test_a_command_under_way_ends_with_the_runner(tmp_path: Path) -> None:
    path, pid = tmp_path / "health.yaml", tmp_path / "pid"
    hangs = f"echo $$ > {pid}.new; mv {pid}.new {pid}; exec sleep 600"
    check = f"{{name: a, service: b, interval: 60s, timeout: 60s, command: {{arguments: [sh, -c, '{hangs}']}}}}"
    path.write_text(f"health_checks: [{check}]")
    process = subprocess.Popen(
        [*COMMAND, "health", "run", str(path)],
        env={"PATH": "/usr/bin:/bin", "TAILRACE_KAFKA__BOOTSTRAP_SERVERS": f"127.0.0.1:{free_port()}"}, cwd=tmp_path,
    )  # fmt: skip
    try:
        eventually(pid.exists)
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    eventually(lambda: gone(int(pid.read_text())))


def test_each_kind_of_the_configuration_becomes_a_check_that_knows_its_address() -> None:
    """With nobody listening, each fails as its own kind does; a heartbeat is nothing to run."""
    text = """
health_checks:
- {name: http, service: a, http: {url: "http://127.0.0.1:PORT/"}}
- {name: tcp, service: a, tcp: {host: 127.0.0.1, port: PORT}}
- {name: kafka, service: a, kafka: {bootstrap_servers: "127.0.0.1:PORT"}, timeout: 500ms}
- {name: clickhouse, service: a, clickhouse: {url: "http://127.0.0.1:PORT"}}
- {name: postgresql, service: a, postgresql: {host: 127.0.0.1, port: PORT}}
- {name: redis, service: a, redis: {host: 127.0.0.1, port: PORT}}
- {name: command, service: a, command: {arguments: [sh, -c, exit 2]}}
- {name: heartbeat, service: a, heartbeat: {}}
"""
    items = load([("health.yaml", text.replace("PORT", str(free_port())))]).items
    models = [item.model for item in items if isinstance(item.model, HealthCheck)]
    checks = checks_of(models, KafkaSettings())
    refused = dict.fromkeys(("http", "tcp", "clickhouse", "postgresql", "redis"), "connection_refused")
    assert {one.kind: run_check(one).reason for one in checks} == refused | {
        "kafka": "kafka_unreachable",
        "command": "exit_2",
    }


def test_what_is_wrong_is_told_by_line(tmp_path: Path) -> None:
    path = tmp_path / "health.yaml"
    path.write_text("health_checks:\n- {name: web, service: shop, http: {url: 'ftp://a'}}\n")
    done = tailrace("health", "run", str(path), "--once")
    assert done.returncode == 1
    assert f"{path}:2: health_checks[0].http.url: must be an http:// or https:// URL" in done.stderr
    path.write_text("health_checks:\n- {name: nightly, service: batch, heartbeat: {}}\n")
    done = tailrace("health", "run", str(path), "--once")
    assert done.returncode == 1
    assert "no health checks to run" in done.stderr
