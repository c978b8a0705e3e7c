"""A producer whose clock is wrong, on real processes: the shipped rules tell of it within 30 s."""

import struct
import threading
from pathlib import Path

import pytest
from tailrace_flows.config_topic import publish
from tailrace_infra.config_command import default_config
from tailrace_schemas.clock import monotonic_s, now_us
from tailrace_schemas.samples import Series, encode_batch, encode_series_table
from tailrace_sinks.kafka import KafkaWriter

from tests.system.harness import bench
from tests.system.test_alerts import events

S = 1_000_000
TABLE = encode_series_table([Series("cpu", "gauge", "1", ())])


@pytest.mark.parametrize(("error_s", "how"), [(3600, "future"), (-3600, "late")])
def test_an_alert_is_on_the_topic_within_half_a_minute(
    error_s: int, how: str, embedded_broker: str, clickhouse_url: str, tmp_path: Path
) -> None:
    with bench(embedded_broker, clickhouse_url, tmp_path, f"clock_{how}", "snapshot") as b:
        kafka = b.settings.kafka
        publish(KafkaWriter(kafka.client()), kafka.topics.config, default_config())
        producer, pause = b.producer(), threading.Event()
        sequence = 0

        def send(error_s: int) -> None:
            nonlocal sequence
            for service, off_s in (("shop", error_s), ("right", 0)):
                message = encode_batch(
                    service=service, producer_id=service, sequence=sequence, base_time_us=now_us() + off_s * S,
                    series_table=TABLE, series_index=bytes(4), time_offset_us=bytes(4), value=struct.pack("<d", 0.5),
                )  # fmt: skip
                b.send(producer, [(service, message)])
            sequence += 1
            pause.wait(0.5)

        def told() -> list[tuple[str, str]]:
            alerts = [one.alert for one in events(b) if one.alert and one.alert.name == "ProducerClockWrong"]
            return [(one.labels["service"], one.labels["tailrace.samples.time"]) for one in alerts]

        flow = b.start_flow("all")
        try:
            until_s = monotonic_s() + 90
            while not any(one.alert and one.alert.name == "Watchdog" for one in events(b)):  # rules are judged
                assert monotonic_s() < until_s, b.log()
                send(0)
            assert not told()
            wrong_s = monotonic_s()
            while not told() and monotonic_s() - wrong_s < 30:
                send(error_s)
            assert told() == [("shop", how)], b.log()
        finally:
            assert flow.stop() == 0, b.log()
