"""Brokers for tests: an embedded one each, and one real Kafka for the whole session."""

import os
from collections.abc import Iterator

import pytest
from tailrace_infra import broker
from tailrace_infra import kafka as kafka_server

FETCH = os.environ.get("TAILRACE_FETCH_KAFKA") == "1" or os.environ.get("CI") == "true"


@pytest.fixture
def embedded_broker() -> Iterator[str]:
    """The bootstrap address of an embedded broker of this test's own."""
    with broker.embedded_broker() as bootstrap_servers:
        yield bootstrap_servers


@pytest.fixture(scope="session")
def kafka_jars() -> None:
    """Skips, saying why, where a real Kafka cannot be had. Jars are fetched only when the environment allows it."""
    try:
        kafka_server.find_java()
        missing = kafka_server.find_jars() is None
        if missing and FETCH:
            kafka_server.fetch_jars()
    except kafka_server.KafkaServerError as error:
        pytest.skip(str(error))
    if missing and not FETCH:
        pytest.skip("Kafka's jars were not fetched yet: TAILRACE_FETCH_KAFKA=1 does it (44 MB, needs Maven)")


@pytest.fixture(scope="session")
def kafka(kafka_jars: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The bootstrap address of a real Kafka, shared: tests use topics of their own. Skips where there is none."""
    with kafka_server.running_kafka(tmp_path_factory.mktemp("kafka")) as running:
        yield running.bootstrap_servers
