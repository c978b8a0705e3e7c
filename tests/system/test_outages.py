"""What the flow depends on goes away, comes back, or is another one: nothing is lost, doubled or silently left out."""

import os
import signal
import subprocess
from array import array
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from tailrace_infra import kafka as kafka_server
from tailrace_infra.child import Child
from tailrace_schemas.clock import monotonic_s
from tailrace_schemas.samples import Series, encode_batch, encode_series_table

from tests.infra.waiting import eventually
from tests.system.harness import Bench, bench, start_clickhouse
from tests.system.proxy import Mode, proxy_to
from tests.system.workload import (
    Workload,
    assert_same,
    expected_rows,
    make_workload,
    stored_rows,
)

DISTRIBUTION = encode_series_table([Series("http.server.request.duration", "distribution", "s", ())])


def batch_of(
    values: list[float], base_us: int, *, service: str = "svc", producer: str = "producer", sequence: int = -1
) -> bytes:
    """A message of a distribution's samples, a microsecond apart."""
    return encode_batch(
        service=service,
        producer_id=producer,
        sequence=sequence,
        base_time_us=base_us,
        series_table=DISTRIBUTION,
        series_index=array("I", [0] * len(values)).tobytes(),
        time_offset_us=array("i", range(len(values))).tobytes(),
        value=array("d", values).tobytes(),
    )


def assert_stored(b: Bench, made: Workload, **more: int) -> None:
    """Everything is counted once, and in the rows once; `more` counters than those of the workload."""
    expected = {**made.counters, **more}
    b.await_ended(made.counters["ended"], 90)
    eventually(lambda: b.counters() == expected, 20)
    assert_same(stored_rows(b.clickhouse, "windows"), expected_rows(made, 10))
    assert_same(stored_rows(b.clickhouse, "windows_1m"), expected_rows(made, 60))


@contextmanager
def flow_of(b: Bench, **environment: str) -> Iterator[Child]:
    """A flow that drains at the end; killed where the test fails."""
    flow = b.start_flow(**environment)
    try:
        yield flow
        assert flow.stop() == 0, b.log()[-2000:]
    finally:
        flow.process.kill()
        flow.stop()


def kill(flow: Child) -> None:
    flow.process.kill()
    flow.stop()


def stop(flow: Child, number: int = signal.SIGTERM) -> float:
    """Stops the flow by a signal; how long that took."""
    began_s = monotonic_s()
    flow.process.send_signal(number)
    with suppress(subprocess.TimeoutExpired):
        flow.process.wait(20)
    took_s = monotonic_s() - began_s
    assert flow.stop() == 0
    return took_s


STOP_S = 5.0 + 1.0
"""A stop takes 5 s at most, and the slack of a loaded machine."""


# -- ClickHouse -------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [Mode.REFUSE, Mode.HANG, Mode.CUT])
def test_rows_are_exact_when_clickhouse_fails_for_a_while(
    embedded_broker: str, clickhouse_url: str, tmp_path: Path, mode: Mode
) -> None:
    made = make_workload(seed=21, services=2, steps=160)
    with (
        proxy_to(clickhouse_url) as proxy,
        bench(embedded_broker, clickhouse_url, tmp_path, mode.value, "replay") as b,
        flow_of(b, TAILRACE_CLICKHOUSE__URL=proxy.url),
        b.sending(made.messages, 4),
    ):
        eventually(lambda: b.counters().get("samples"), 30)
        proxy.mode = mode
        if mode is Mode.REFUSE:
            eventually(lambda: b.log().count("not written, again") >= 4, 30)
        else:
            eventually(lambda: proxy.cuts >= 4 or proxy.held >= 1, 30)
        before = b.counters()["samples"]
        proxy.mode = Mode.PASS
        eventually(lambda: b.counters()["samples"] > before, 30)
        assert_stored(b, made)


def test_rows_are_exact_when_clickhouse_is_killed_and_started_again(embedded_broker: str, tmp_path: Path) -> None:
    made = make_workload(seed=22, services=2, steps=160)
    server = start_clickhouse(tmp_path / "clickhouse")
    port = server.ready["port"]
    try:
        with (
            bench(embedded_broker, f"http://127.0.0.1:{port}", tmp_path, "reborn", "replay") as b,
            flow_of(b),
            b.sending(made.messages, 3),
        ):
            eventually(lambda: b.counters().get("samples"), 30)
            kill(server)
            eventually(lambda: "not written, again" in b.log(), 30)
            server = start_clickhouse(tmp_path / "clickhouse", port)
            assert_stored(b, made)
    finally:
        server.stop()


@pytest.mark.parametrize("mode", [Mode.REFUSE, Mode.HANG])
def test_a_stop_while_clickhouse_is_away_is_quick_and_loses_nothing(
    embedded_broker: str, clickhouse_url: str, tmp_path: Path, mode: Mode
) -> None:
    made = make_workload(seed=23, services=2, steps=120)
    half, prefix = len(made.messages) // 2, f"away_{mode.value}"
    with proxy_to(clickhouse_url) as proxy, bench(embedded_broker, clickhouse_url, tmp_path, prefix, "snapshot") as b:
        producer = b.producer()
        proxy.mode = mode
        b.send(producer, made.messages[:half])
        flow = b.start_flow(TAILRACE_CLICKHOUSE__URL=proxy.url)
        eventually(lambda: "not written, again" in b.log() or proxy.held, 30)
        assert stop(flow) < STOP_S
        assert b.counters() == {}
        proxy.mode = Mode.PASS
        b.send(producer, made.messages[half:])
        with flow_of(b, TAILRACE_CLICKHOUSE__URL=proxy.url):
            assert_stored(b, made)


# -- Kafka ------------------------------------------------------------------------------------------


@pytest.mark.kafka
def test_rows_are_exact_when_kafka_is_killed_and_started_again(
    kafka_jars: None, clickhouse_url: str, tmp_path: Path
) -> None:
    made = make_workload(seed=24, services=2, steps=160)
    server = kafka_server.start(tmp_path / "kafka", 0)
    port = int(server.bootstrap_servers.rpartition(":")[2])
    try:
        with (
            bench(server.bootstrap_servers, clickhouse_url, tmp_path, "broker", "replay") as b,
            flow_of(b),
            b.sending(made.messages, 4),
        ):
            eventually(lambda: b.counters().get("samples"), 30)
            os.kill(server.pid, signal.SIGKILL)
            eventually(lambda: kafka_server.status(tmp_path / "kafka") is None)
            server = kafka_server.start(tmp_path / "kafka", port)
            assert_stored(b, made)
    finally:
        kafka_server.stop(tmp_path / "kafka")
