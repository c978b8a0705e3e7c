"""The embedded broker: what it can do, its limits, and its life as a process."""

import json
import os
import signal
import subprocess
import sys

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic
from tailrace_infra import broker
from tailrace_infra.child import start_child

from tests.infra.waiting import eventually, gone

MODULE = "tailrace_infra.broker"


def produce(bootstrap_servers: str, topic: str, values: list[bytes], **config: object) -> None:
    """Produce to partition 0 and wait for every delivery."""
    errors: list[KafkaError] = []
    producer = Producer({"bootstrap.servers": bootstrap_servers, "log_level": 0, **config})
    for value in values:
        producer.produce(
            topic, value, partition=0, on_delivery=lambda error, _message: errors.append(error) if error else None
        )
    assert producer.flush(20) == 0
    assert errors == []


def consumer(bootstrap_servers: str, **config: object) -> Consumer:
    return Consumer({"bootstrap.servers": bootstrap_servers, "group.id": "test", "log_level": 0, **config})


def consume(client: Consumer, count: int) -> list[Message]:
    messages: list[Message] = []
    eventually(lambda: messages.extend(client.consume(count - len(messages), 0.05)) or len(messages) == count)
    return messages


def test_produce_consume_and_commit(embedded_broker: str) -> None:
    produce(embedded_broker, "t", [b"a", b"b", b"c"])
    reader = consumer(embedded_broker, **{"auto.offset.reset": "earliest", "enable.auto.commit": False})
    reader.assign([TopicPartition("t", 0)])
    messages = consume(reader, 3)
    assert [(m.error(), m.value(), m.offset()) for m in messages] == [(None, b"a", 0), (None, b"b", 1), (None, b"c", 2)]
    reader.commit(messages[1], asynchronous=False)
    assert [p.offset for p in reader.committed([TopicPartition("t", 0)], timeout=5)] == [2]
    assert reader.get_watermark_offsets(TopicPartition("t", 0), timeout=5) == (0, 3)
    reader.close()


def test_a_topic_appears_with_four_partitions_when_an_admin_asks_for_it(embedded_broker: str) -> None:
    admin = AdminClient({"bootstrap.servers": embedded_broker, "log_level": 0})
    assert admin.list_topics(timeout=5).topics == {}
    assert len(admin.list_topics("t", timeout=5).topics["t"].partitions) == 4
    assert list(admin.list_topics(timeout=5).topics) == ["t"]


def test_a_consumer_that_comes_before_the_topic_sees_an_error(embedded_broker: str) -> None:
    reader = consumer(embedded_broker)
    assert reader.list_topics("t", timeout=5).topics["t"].error.code() == KafkaError.UNKNOWN_TOPIC_OR_PART
    reader.close()


def test_create_topics_is_not_supported(embedded_broker: str) -> None:
    admin = AdminClient({"bootstrap.servers": embedded_broker, "log_level": 0})
    future = admin.create_topics([NewTopic("t", 1, 1)], request_timeout=0.5)["t"]
    with pytest.raises(KafkaException) as raised:
        future.result()
    assert raised.value.args[0].code() == KafkaError._TIMED_OUT


def test_unread_data_beyond_five_mebibytes_is_evicted_and_noticed(embedded_broker: str) -> None:
    produce(embedded_broker, "t", [bytes(900_000)] * 12, **{"batch.num.messages": 1})
    reader = consumer(embedded_broker, **{"auto.offset.reset": "error"})
    assert reader.get_watermark_offsets(TopicPartition("t", 0), timeout=5) == (7, 12)
    reader.assign([TopicPartition("t", 0, 0)])
    assert consume(reader, 1)[0].error().code() == KafkaError._AUTO_OFFSET_RESET
    reader.close()


def test_a_large_batch_is_lost_when_all_else_must_be_evicted_for_it(embedded_broker: str) -> None:
    """A limit that our documentation states: this test fails when librdkafka lifts it."""
    large = {"message.max.bytes": 8_000_000, "batch.num.messages": 1}
    produce(embedded_broker, "fits", [bytes(2_500_000)] * 2, **large)
    produce(embedded_broker, "lost", [bytes(2_700_000)] * 2, **large)
    reader = consumer(embedded_broker)
    assert reader.get_watermark_offsets(TopicPartition("fits", 0), timeout=5) == (0, 2)
    assert reader.get_watermark_offsets(TopicPartition("lost", 0), timeout=5) == (2, 2)
    reader.close()


def test_its_cluster_id_tells_it_apart(embedded_broker: str) -> None:
    admin = AdminClient({"bootstrap.servers": embedded_broker, "log_level": 0})
    assert broker.is_embedded(admin.list_topics(timeout=5).cluster_id)
    assert not broker.is_embedded("cuoVjTBnSP2S8nCXzFmt_g")
    assert not broker.is_embedded(None)


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
def test_as_a_process_it_serves_until_a_signal(signal_number: int) -> None:
    child = start_child(MODULE)
    try:
        host, _, port = child.ready["bootstrap_servers"].partition(":")
        assert host == "127.0.0.1"
        assert int(port) > 0
        produce(child.ready["bootstrap_servers"], "t", [b"a"])
        child.process.send_signal(signal_number)
        assert child.process.wait(60) == 0
    finally:
        child.stop()


def test_as_a_process_it_says_nothing_but_its_ready_line(tmp_path) -> None:
    log = tmp_path / "broker.log"
    child = start_child(MODULE, log=log)
    produce(child.ready["bootstrap_servers"], "t", [b"a"])
    assert child.process.stdout is not None
    child.process.terminate()
    assert child.process.stdout.read() == b""
    assert child.stop() == 0
    assert log.read_text() == ""


def test_it_ends_when_its_parent_is_killed() -> None:
    code = (
        "import signal; from tailrace_infra.child import start_child\n"
        f"print(start_child({MODULE!r}).process.pid, flush=True)\nsignal.pause()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert not gone(pid)
        parent.kill()
    eventually(lambda: gone(pid))


def test_it_ends_when_its_parent_died_before_it_could_look() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as dead:
        dead.wait()
    environment = {**os.environ, "TAILRACE_PARENT_PID": str(dead.pid)}
    done = subprocess.run([sys.executable, "-m", MODULE], env=environment, stdout=subprocess.PIPE, timeout=20)
    assert done.returncode == 0
    assert json.loads(done.stdout)["ready"] is True
