"""The JSON messages of the alerts, commands and notifications topics: published schemas, examples, identity.

`python -m tests.schemas.test_alerts` writes the schemas anew, after a model was changed on purpose.
"""

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator, ValidationError
from pydantic import BaseModel
from tailrace_schemas import alerts, notifications
from tailrace_schemas.alerts import Transition, alert_id, event_id, time_of, us_of

from tests.schemas.examples import DIRECTORY, example

JSON = DIRECTORY.parent / "json"
PUBLISHED: dict[str, type[BaseModel]] = {**alerts.PUBLISHED, "Notification": notifications.Notification}


def json_schema(name: str) -> dict[str, Any]:
    return notifications.json_schema() if name == "Notification" else alerts.json_schema(name)


def published(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((JSON / f"{name}.schema.json").read_text())
    return found


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_schema_is_that_of_the_model(name: str) -> None:
    """Subscribers in other languages read it. A new field needs a default; nothing may be taken away or renamed."""
    assert published(name) == json_schema(name), "python -m tests.schemas.test_alerts writes it anew"


def test_every_published_schema_has_a_model() -> None:
    assert {path.name for path in JSON.iterdir()} == {f"{name}.schema.json" for name in PUBLISHED}


@pytest.mark.parametrize("name", PUBLISHED)
def test_example_is_valid_and_reads_as_it_is_written(name: str) -> None:
    datum = example(name)["datum"]
    Draft202012Validator(published(name)).validate(datum)
    read = PUBLISHED[name].model_validate(datum)
    again = json.loads(read.model_dump_json())
    Draft202012Validator(published(name)).validate(again)
    assert {key: again[key] for key in datum} == datum


def test_a_field_that_a_later_version_adds_does_not_stop_a_subscriber_but_a_command_is_strict() -> None:
    event = example("AlertEvent")["datum"] | {"added_later": 1}
    Draft202012Validator(published("AlertEvent")).validate(event)
    PUBLISHED["AlertEvent"].model_validate(event)
    command = example("Command")["datum"] | {"mesage": "a slip"}
    with pytest.raises(ValidationError):
        Draft202012Validator(published("Command")).validate(command)
    with pytest.raises(ValueError, match="mesage"):
        PUBLISHED["Command"].model_validate(command)


def test_example_s_ids_are_those_of_its_contents() -> None:
    datum = example("AlertEvent")["datum"]
    alert = datum["alert"]
    began_us = round(datetime.fromisoformat(alert["timestamp"]).timestamp() * 1e6)
    assert alert["id"] == alert_id(alert["source"], tuple(sorted(alert["labels"].items())), began_us)
    assert datum["id"] == event_id(alert["id"], Transition(datum["transition"]), datum["cause"])
    assert datum["cause"] == f"command:{example('Command')['datum']['id']}"


@given(st.integers(0, 4_102_444_800_000_000))
def test_microseconds_become_times_and_come_back(t_us: int) -> None:
    time = time_of(t_us)
    assert time.tzinfo is UTC
    delta = time - datetime(1970, 1, 1, tzinfo=UTC)
    assert (delta.days * 86400 + delta.seconds) * 1_000_000 + delta.microseconds == t_us
    assert us_of(time) == t_us


def test_ids_of_different_things_differ() -> None:
    ids = {
        alert_id("g/r", (("a", "b"),), 0),
        alert_id("g/r", (("a", "b"),), 1),
        alert_id("g/r", (("a", "c"),), 0),
        alert_id("g/r", (), 0),
        alert_id("g", (("r", "a"),), 0),
        alert_id("g/r", (("a", "b0"),), 0),
    }
    assert len(ids) == 6
    assert all(len(one) == 16 for one in ids)


def main() -> None:
    """Write the published schemas."""
    for name in PUBLISHED:
        (JSON / f"{name}.schema.json").write_text(json.dumps(json_schema(name), indent=2) + "\n")


if __name__ == "__main__":
    main()
