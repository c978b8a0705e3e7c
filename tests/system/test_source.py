"""The Kafka source against a real consumer and the embedded broker."""

import threading
from array import array

from confluent_kafka import Producer
from tailrace_flows.core.chunk import Chunk, Mark
from tailrace_flows.core.config import WindowConfig
from tailrace_flows.source import SampleSource
from tailrace_schemas.clock import now_us
from tailrace_schemas.samples import Series, encode_batch, encode_series_table

from tests.infra.waiting import eventually


def test_a_partition_read_to_its_end_by_one_poll_is_known_to_be_at_its_end(embedded_broker: str) -> None:
    client = {"bootstrap.servers": embedded_broker, "log_level": 0}
    producer = Producer(client)
    batch = encode_batch(
        service="svc", producer_id="p", sequence=0, base_time_us=now_us(),
        series_table=encode_series_table([Series("latency", "distribution", "s", ())]),
        series_index=bytes(4), time_offset_us=bytes(4), value=array("d", [1.0]).tobytes(),
    )  # fmt: skip
    producer.produce("samples", batch, partition=0)
    assert producer.flush(10) == 0
    config = WindowConfig(idle_s=0.1)
    source = SampleSource(client, "samples", "group", config, hold=False, stop=threading.Event())
    reader = source.build_part("samples", "00000", None)
    try:
        threading.Event().wait(0.5)  # the record and the end of the partition are fetched, and taken by one poll
        taken = [item for item in reader.next_batch() if isinstance(item, tuple)]
        assert [type(item) for _, item in taken if isinstance(item, Chunk | Mark)] == [Chunk]
        eventually(lambda: [item for item in reader.next_batch() if isinstance(item[-1], Mark)])
    finally:
        reader.close()
