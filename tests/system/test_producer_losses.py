"""From a service through an outage to SQL: what arrived, and what was reported as dropped, is what was recorded."""

from pathlib import Path

import pytest
from tailrace_producers import Telemetry, sender
from tailrace_producers.buffer import CHUNK_SAMPLES

from tests.infra.waiting import eventually
from tests.system.harness import bench
from tests.system.proxy import Mode, proxy_to_kafka

DOCUMENT = Path(__file__).parents[2] / "docs" / "producers.md"
QUERY = DOCUMENT.read_text().split("```sql\n")[1].split("```")[0]
"""As the docs have it."""
METRIC = "http.server.request.duration"


def test_sql_accounts_for_every_sample_of_an_outage(
    embedded_broker: str, clickhouse_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender, "REPORT_EVERY_S", 0.1)
    monkeypatch.setattr(sender, "SEND_INTERVAL_S", 3600.0)  # full chunks only, so that they can be counted
    quick = {"reconnect.backoff.ms": 10, "reconnect.backoff.max.ms": 50}
    with (
        bench(embedded_broker, clickhouse_url, tmp_path, "losses", "replay") as b,
        proxy_to_kafka(embedded_broker) as proxy,
        Telemetry(
            "shop", bootstrap_servers=proxy.address, properties=quick, topics=b.settings.kafka.topics,
            max_samples=3 * CHUNK_SAMPLES,
        ) as shop,
    ):  # fmt: skip
        record = shop.timer(METRIC).bind({"http.route": "/"}).record
        for _ in range(1_000):
            record(0.25)
        assert shop.flush(20)
        for mode in (Mode.HANG, Mode.REFUSE):
            proxy.mode = mode
            for _ in range(12 * CHUNK_SAMPLES):
                record(0.5)
            proxy.mode = Mode.PASS
            assert shop.flush(30)
        record(float("inf"))
        shop.close()
        stats = shop.stats
        assert set(stats.dropped) == {"queue_full", "invalid"}

        flow = b.start_flow()
        try:
            eventually(lambda: b.counters().get("samples", 0) >= stats.delivered + 2, 60)
        finally:
            assert flow.stop() == 0, b.log()[-2000:]
        stored = b.clickhouse.query(f"SELECT sum(count) FROM windows WHERE metric = '{METRIC}'").first_row[0]
        rows = b.clickhouse.query(QUERY).result_rows
        assert {service for service, _, _ in rows} == {"shop"}
        dropped = {reason: samples for _, reason, samples in rows}
        assert dropped == stats.dropped
        assert stored == stats.delivered
        assert stored + sum(dropped.values()) == stats.recorded == 1_000 + 24 * CHUNK_SAMPLES + 1
        # A chunk has more than CHUNK_SAMPLES where the sender was just looking.
        assert 0 < b.counters()["missing_batches"] <= stats.dropped["queue_full"] // CHUNK_SAMPLES
