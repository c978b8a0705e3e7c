"""docs/notifications.md: its configuration loads, its templates render, its subscriber reads alerts."""

import re
import subprocess
import sys
import threading
from pathlib import Path

import yaml
from confluent_kafka import Producer
from tailrace_schemas.alerts import AlertEvent
from tailrace_schemas.cloudevents import event_message
from tailrace_schemas.config import load
from tailrace_schemas.config.receivers import Receiver
from tailrace_subscribers.notify.render import render

from tests.schemas.examples import example
from tests.subscribers.receiving import EXAMPLE, TOPICS

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "notifications.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.S | re.M)


def test_the_page_s_configuration_is_one_that_loads() -> None:
    sections: dict[str, object] = {}
    for block in blocks("yaml"):
        for key, value in yaml.safe_load(block).items():
            sections[key] = [*sections[key], *value] if key in sections else value  # type: ignore[misc]
    assert sections.keys() >= {
        "routing",
        "receivers",
        "teams",
        "escalations",
        "silences",
        "inhibitions",
        "time_intervals",
    }
    config = load([(f"block-{number}.yaml", block) for number, block in enumerate(blocks("yaml"))])
    for item in config.items:
        if isinstance(item.model, Receiver):
            render(item.model.templates, [EXAMPLE])


def test_the_page_s_subscriber_is_the_example_s_and_reads_alerts(embedded_broker: str) -> None:
    path = DOCS / "examples" / "subscriber.py"
    (block,) = blocks("python")
    assert path.read_text() == block
    event = AlertEvent.model_validate(example("AlertEvent")["datum"])
    message = event_message(event)
    producer = Producer({"bootstrap.servers": embedded_broker, "log_level": 0})
    producer.produce(TOPICS.alerts, message.value, message.key, headers=message.headers)
    assert producer.flush(10) == 0
    with subprocess.Popen(
        [sys.executable, str(path)], env={"KAFKA": embedded_broker, "PATH": ""}, stdout=subprocess.PIPE, text=True
    ) as process:
        deadline = threading.Timer(60, process.kill)
        deadline.start()
        assert process.stdout is not None
        line = process.stdout.readline()
        process.kill()
        deadline.cancel()
    assert line == f"{event.id} acknowledged HostHighCpu\n"
