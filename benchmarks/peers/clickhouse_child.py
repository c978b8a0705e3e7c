"""ClickHouse's own aggregation (chDB) as a materialized view, or an INSERT SELECT, into an AggregatingMergeTree.

`engine`: its Kafka table engine feeds the view. It needs nothing but chDB in its Python. `insert`: a consumer in Python
writes the messages of a million samples into a file in memory, from which ClickHouse reads and aggregates them.
Partial states are what is written; merging them into the quantiles is not measured.
"""

import json
import time
from pathlib import Path
from typing import Any

from chdb.session import Session

from benchmarks.clock import Clock
from benchmarks.peers.child import Job, job, values

BATCH = 1_000
BLOCK_ROWS = 1_000_000
FORMATS = {"native": "Native", "json_batch": "JSONEachRow"}
LEVELS = "0.5, 0.95, 0.99, 0.999"
SKETCHES = {
    "tdigest": ("quantilesTDigest", LEVELS),
    "dd": ("quantilesDD", f"0.005, {LEVELS}"),
}
COLUMNS = "series UInt32, time_us Int64, value Float64"


class ClickHouse:
    """A database of its own in this process, on one thread."""

    def __init__(self, this: Job) -> None:
        self._session = Session(this.options["directory"] + "/clickhouse")
        name, parameters = SKETCHES[this.options["sketch"]]
        self.aggregate = (
            "SELECT series, intDiv(time_us, 10000000) AS window, count() AS count, sum(value) AS sum, "
            f"{name}State({parameters})(value) AS sketch"
        )
        self.answers = (
            "SELECT series, window, sum(count), sum(sum), q[1], q[2], q[3], q[4] FROM ("
            f"SELECT series, window, count, sum, {name}Merge({parameters})(sketch) AS q FROM ("
            "SELECT series, window, sum(count) AS count, sum(sum) AS sum, "
            f"{name}MergeState({parameters})(sketch) AS sketch FROM peer.windows GROUP BY series, window) "
            "GROUP BY series, window, count, sum) GROUP BY series, window, q"
        )
        self.query("CREATE DATABASE peer ENGINE = Atomic")
        self.query("SET max_threads = 1")
        self.query(
            "CREATE TABLE peer.windows (series UInt32, window Int64, count SimpleAggregateFunction(sum, UInt64),"
            " sum SimpleAggregateFunction(sum, Float64),"
            f" sketch AggregateFunction({name}({parameters}), Float64))"
            " ENGINE = AggregatingMergeTree ORDER BY (series, window)"
        )

    def query(self, sql: str) -> str:
        return str(self._session.query(sql, "CSV").data())


def insert(this: Job, clickhouse: ClickHouse, clock: Clock) -> None:
    path = Path("/dev/shm") / f"tailrace-peer-{Path(this.options['directory']).name}"
    source = f"file('{path}', '{FORMATS[this.options['encoding']]}', '{COLUMNS}')"
    waiting: list[bytes] = []
    try:
        for found in values(this, this.samples // BATCH):
            clock.count(len(found) * BATCH)
            waiting += found
            if len(waiting) * BATCH >= BLOCK_ROWS or clock.samples == this.samples:
                path.write_bytes(b"".join(waiting))
                waiting.clear()
                clickhouse.query(
                    f"INSERT INTO peer.windows {clickhouse.aggregate} FROM {source} GROUP BY series, window"
                )
    finally:
        path.unlink(missing_ok=True)


def engine(this: Job, clickhouse: ClickHouse, clock: Clock) -> None:
    clickhouse.query(
        f"CREATE TABLE peer.queue ({COLUMNS}) ENGINE = Kafka SETTINGS"
        f" kafka_broker_list = '{this.bootstrap_servers}', kafka_topic_list = '{this.topic}',"
        f" kafka_group_name = 'peer-{this.options['sketch']}', kafka_format = '{FORMATS[this.options['encoding']]}',"
        f" kafka_num_consumers = 1, kafka_thread_per_consumer = 1, kafka_max_block_size = {BLOCK_ROWS},"
        f" kafka_poll_max_batch_size = {BLOCK_ROWS // BATCH}, kafka_poll_timeout_ms = 20"
    )
    clickhouse.query(
        f"CREATE MATERIALIZED VIEW peer.view TO peer.windows AS {clickhouse.aggregate} FROM peer.queue"
        " GROUP BY series, window"
    )
    progress = "SELECT num_messages_read, num_commits, length(exceptions.text), exceptions.text[-1]"
    while True:
        state = json.loads(f"[{clickhouse.query(f'{progress} FROM system.kafka_consumers').strip()}]")
        read, commits, failures, failure = state
        if failures:
            raise RuntimeError(failure)
        if read:
            clock.count(0)
        if read * BATCH >= this.samples and commits:
            written = int(clickhouse.query("SELECT sum(count) FROM peer.windows") or 0)
            if written >= this.samples:
                clock.count(written)
                return
        time.sleep(0.2 if read else 0.01)


def main() -> None:
    this, clock = job(), Clock()
    clickhouse = ClickHouse(this)
    {"insert": insert, "engine": engine}[this.options["how"]](this, clickhouse, clock)
    measured: dict[str, Any] = clock.result()
    Path(this.out).write_text(clickhouse.query(clickhouse.answers))
    print(json.dumps(measured | {"clickhouse": clickhouse.query("SELECT version()").strip().strip('"')}), flush=True)


if __name__ == "__main__":
    main()
