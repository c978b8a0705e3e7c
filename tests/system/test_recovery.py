"""Kills at random moments: the rows and the counts are those of an undisturbed run."""

import random
import threading
from pathlib import Path

import pytest

from tests.system.harness import Bench, bench
from tests.system.workload import Workload, assert_same, expected_rows, make_workload, stored_rows


def send_slowly(b: Bench, made: Workload, over_s: float) -> threading.Thread:
    """Sends in the background, spread over time; the broker is what the flow is killed in front of."""

    def send() -> None:
        producer, pause = b.producer(), threading.Event()
        step = max(1, len(made.messages) // 100)
        for at in range(0, len(made.messages), step):
            b.send(producer, made.messages[at : at + step])
            pause.wait(over_s / 100)

    thread = threading.Thread(target=send)
    thread.start()
    return thread


def kill_repeatedly(b: Bench, made: Workload, kills: int, seed: int) -> None:
    rng = random.Random(seed)
    sender = send_slowly(b, made, over_s=kills * 1.1)
    for _ in range(kills):
        flow = b.start_flow()
        # The time to start up is part of it: some kills come before the first record, most in the middle.
        threading.Event().wait(rng.uniform(0.5, 1.8))
        flow.process.kill()
        flow.stop()
    sender.join()
    flow = b.start_flow()
    try:
        b.await_ended(made.counters["ended"], 90)
        b.await_counters(dict(made.counters))
    finally:
        assert flow.stop() == 0
    assert_same(stored_rows(b.clickhouse, "windows"), expected_rows(made, 10))
    assert_same(stored_rows(b.clickhouse, "windows_1m"), expected_rows(made, 60))
    deploys = [sample for samples in made.samples.values() for sample in samples if sample[0].kind == "event"]
    assert b.clickhouse.query("SELECT count() FROM events").result_rows == [(len(deploys),)]


@pytest.mark.parametrize(("contents", "kills"), [("replay", 12), ("snapshot", 10)])
def test_rows_and_counts_survive_kills_on_the_embedded_broker(
    embedded_broker: str, clickhouse_url: str, tmp_path: Path, contents: str, kills: int
) -> None:
    with bench(embedded_broker, clickhouse_url, tmp_path, f"kill_{contents}", contents) as b:
        kill_repeatedly(b, make_workload(seed=kills), kills, seed=kills)


@pytest.mark.kafka
def test_rows_and_counts_survive_kills_on_kafka(kafka: str, clickhouse_url: str, tmp_path: Path) -> None:
    with bench(kafka, clickhouse_url, tmp_path, "kill_kafka", "replay") as b:
        kill_repeatedly(b, make_workload(seed=7), kills=5, seed=7)
