"""The configuration on its way: files, the config topic, what is in force, the next start."""

import json
from pathlib import Path
from typing import Any

import pytest
import tailrace_infra
from confluent_kafka import Producer
from tailrace_flows.config_topic import read_config
from tailrace_flows.settings import KafkaSettings
from tailrace_infra.config_command import CONFIG_FILE, changes_of, default_config, publish_config, stored_config
from tailrace_infra.topics import ensure_topics
from tailrace_schemas.config import Record, load, model_of, record_of

from tests.infra.command import tailrace

RULE = {"alert": "Busy", "metric": "cpu", "aggregate": "mean", "op": "gt", "threshold": 0.9}


def group(name: str, **changes: Any) -> str:
    return json.dumps({"groups": [{"name": name, "rules": [RULE | changes]}]})  # JSON is YAML


def records(*texts: str) -> list[Record]:
    return [record_of(item) for number, text in enumerate(texts) for item in load([(f"{number}.yaml", text)]).items]


def test_what_applying_changes() -> None:
    in_force = {
        record.key: model_of(record.key, record.value)
        for record in records(group("same"), group("other"), group("old"))
        if record.value is not None
    }
    files = load([("a.yaml", group("same")), ("b.yaml", group("other", threshold=0.8)), ("c.yaml", group("new"))])
    expected = {"rule_group/new": "added", "rule_group/other": "changed", "rule_group/same": "unchanged"}
    for prune, old in ((False, "kept"), (True, "removed")):
        found = {one.record.key: one.state for one in changes_of(files, in_force, prune=prune)}
        assert found == {**expected, "rule_group/old": old}


def test_the_last_record_of_each_key_is_in_force_and_what_cannot_be_read_changes_nothing(embedded_broker: str) -> None:
    kafka = KafkaSettings(bootstrap_servers=embedded_broker)
    topic = kafka.topics.config
    ensure_topics(kafka.client(), kafka.topics)
    assert read_config(kafka.client(), topic) == {}
    first, second, gone = records(group("a"), group("a", threshold=0.5), group("b"))
    publish_config(kafka, [first, gone, second, Record(gone.key, None)])
    producer = Producer({**kafka.client(), "log_level": 0})
    for key, value in ((b"rule_group/a", b"{"), (b"unknown/a", b"{}"), (None, b"{}"), (b"rule_group/b", b"\xff")):
        producer.produce(topic, value, key)
    assert producer.flush(10) == 0
    assert second.value is not None
    assert read_config(kafka.client(), topic) == {"rule_group/a": model_of(second.key, second.value)}


def test_apply_diff_list_and_history(embedded_broker: str, tmp_path: Path) -> None:
    environment = {"TAILRACE_KAFKA__BOOTSTRAP_SERVERS": embedded_broker}

    def run(*arguments: str) -> tuple[int, list[dict[str, Any]]]:
        done = tailrace(*arguments, "--format", "json", environment=environment, cwd=tmp_path)
        assert done.returncode in (0, 1), done.stderr
        return done.returncode, json.loads(done.stdout or "[]")

    (tmp_path / "a.yaml").write_text(group("a"))
    (tmp_path / "b.yaml").write_text(group("b"))
    added = [{"state": "added", "kind": "rule_group", "name": name} for name in "ab"]
    done = tailrace("config", "diff", "a.yaml", environment=environment, cwd=tmp_path)
    assert done.returncode == 1
    assert "`tailrace topics` creates the topics" in done.stderr
    assert run("topics")[0] == 0
    assert run("config", "diff", "a.yaml", "b.yaml") == (1, added)
    assert run("apply", "a.yaml", "b.yaml") == (0, added)
    assert run("config", "diff", "a.yaml", "b.yaml")[0] == 0
    (tmp_path / "a.yaml").write_text(group("a", threshold=0.5))
    states = [one["state"] for one in run("apply", "--prune", "a.yaml")[1]]
    assert states == ["changed", "removed"]
    publish_config(KafkaSettings(bootstrap_servers=embedded_broker), default_config())
    shipped = {record.key for record in default_config()}
    for command in (("config", "diff"), ("apply",)):  # both before anything is removed
        done = tailrace(*command, "--prune", "a.yaml", environment=environment, cwd=tmp_path)
        assert f"--prune removes {len(shipped)} of Tailrace's defaults: " in done.stderr
        assert all(key in done.stderr for key in shipped)
    files = [str(path) for path in sorted((Path(tailrace_infra.__file__).parent / "defaults").glob("*.yaml"))]
    assert {one["state"] for one in run("apply", "--prune", "a.yaml", *files)[1]} == {"added", "unchanged"}
    assert "defaults" not in tailrace("apply", "a.yaml", environment=environment, cwd=tmp_path).stderr
    run("apply", "--prune", "a.yaml")
    (shown,) = run("config", "list")[1]
    assert (shown["kind"], shown["name"]) == ("rule_group", "a")
    assert "greater than 0.5" in shown["meaning"] or "above 0.5" in shown["meaning"]
    changes = [(one["key"], one["change"]) for one in run("config", "history", "rule_group/b")[1]]
    assert changes == [("rule_group/b", "set"), ("rule_group/b", "removed")]
    (tmp_path / "a.yaml").write_text(group("a", threshhold=0.5))
    done = tailrace("apply", "a.yaml", environment=environment, cwd=tmp_path)
    assert done.returncode == 1
    assert "a.yaml:1: groups[0].rules[0]" in done.stderr
    assert "threshhold" in done.stderr


def test_a_damaged_file_of_the_last_configuration_is_named(tmp_path: Path) -> None:
    assert stored_config(tmp_path) is None
    (record,) = records(group("a"))
    (tmp_path / CONFIG_FILE).write_text(json.dumps({record.key: record.value}))
    assert stored_config(tmp_path) == [record]
    (tmp_path / CONFIG_FILE).write_text(json.dumps({record.key: record.value})[:-9])
    with pytest.raises(ValueError, match=r"config\.json: .* remove it"):
        stored_config(tmp_path)
