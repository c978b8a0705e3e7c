"""Which clock a flow begins by, where its host's is wrong: asked of a real Kafka."""

from uuid import uuid4

import pytest
from confluent_kafka.admin import AdminClient, NewTopic
from tailrace_flows import broker_clock, host_clock
from tailrace_infra.ports import free_port
from tailrace_infra.topics import ensure_topics
from tailrace_schemas import clock
from tailrace_schemas.topics import Topics

from tests.infra.waiting import logged

S = 1_000_000


@pytest.mark.kafka
@pytest.mark.parametrize(
    ("error_s", "wrong_s", "told"),
    [(0, 0, ""), (3, 3, ""), (7200, 0, "s ahead of"), (-7200, -7200, "s behind")],
    ids=["right", "hardly ahead", "ahead", "behind"],
)
def test_a_flow_begins_by_the_broker_s_clock_where_its_host_s_is_ahead(
    kafka: str, monkeypatch: pytest.MonkeyPatch, error_s: int, wrong_s: int, told: str
) -> None:
    client, topics, true_us = {"bootstrap.servers": kafka}, Topics(f"test-{uuid4().hex[:8]}"), clock.now_us
    ensure_topics(client, topics, partitions=1)
    said = logged(monkeypatch, broker_clock)
    with monkeypatch.context() as host:
        host.setattr(clock, "now_us", lambda: true_us() + error_s * S)
        host_clock.begin(broker_clock.offset_us(client, topics.clock))
        assert host_clock.now_us() - true_us() == pytest.approx(wrong_s * S, abs=S)
        assert host_clock.set_by_us() == 0
    host_clock.begin()
    assert [told in text for text in said] == [True] * bool(told)


@pytest.mark.kafka
def test_a_broker_that_cannot_tell_leaves_the_host_s_clock_and_it_says_so(
    kafka: str, embedded_broker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_sender = f"test-{uuid4().hex[:8]}"
    admin = AdminClient({"bootstrap.servers": kafka})
    admin.create_topics([NewTopic(by_sender, 1, 1)])[by_sender].result()
    monkeypatch.setattr(broker_clock, "TIMEOUT_S", 1.0)
    said = logged(monkeypatch, broker_clock)
    for servers, topic, told in (
        (embedded_broker, "any", ""),
        (kafka, "not-there", "it does not exist"),
        (kafka, by_sender, "set message.timestamp.type=LogAppendTime"),
        (f"127.0.0.1:{free_port()}", "any", "Failed to get metadata"),
    ):
        assert broker_clock.offset_us({"bootstrap.servers": servers, "log_level": 0}, topic) is None
        assert [told in text for text in said] == [True] * bool(told), said
        said.clear()
    assert "not-there" not in admin.list_topics(timeout=10).topics
