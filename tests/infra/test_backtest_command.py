"""`tailrace backtest` as a user runs it: files, stored rows, incidents, and what is wrong with them."""

import csv
import json
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pytest
from confluent_kafka.admin import AdminClient
from pydantic import AwareDatetime, TypeAdapter
from tailrace_flows.backtest import Samples, windows_of
from tailrace_flows.core.chunk import UNKNOWN_US
from tailrace_infra.backtest_command import _read, read_incidents
from tailrace_infra.cli import complete_app
from tailrace_infra.topic_windows import TopicWindows
from tailrace_infra.topics import ensure_topics
from tailrace_producers.replay import ReplayError, ReplayOptions
from tailrace_schemas import clock
from tailrace_schemas.alerts import us_of
from tailrace_schemas.rows import WINDOW_ROWS, WindowRows, encode_window_rows
from tailrace_schemas.topics import Topics
from tailrace_sinks.kafka import KafkaWriter
from typer.testing import CliRunner

from benchmarks.petshop import PERIOD_S, Scenario, convert, left_out, read
from tests.data import data_file
from tests.infra.command import tailrace

RULES = Path(__file__).parents[2] / "docs" / "examples" / "petshop-rules.yaml"
RULE = """
groups:
- name: web
  rules:
  - {alert: Slow, metric: duration, aggregate: p90, window: 30s, by: [service], op: gt, threshold: 0.5, for: 20s}
"""
START_S = 1_767_225_600  # 2026-01-01
S = 1_000_000


def lines(*arguments: str, cwd: Path) -> tuple[list[dict[str, Any]], str]:
    done = tailrace("backtest", *arguments, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()], done.stderr


def write_samples(path: Path) -> None:
    """A minute in which `a` is slow, and a quarter of an hour in which both are fast."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["time", "metric", "service", "value"])
        for service in "ab":
            for second in range(0, 900, 5):
                slow = service == "a" and 300 <= second < 360
                writer.writerow([START_S + second, "duration", service, 1.0 if slow else 0.1])


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "rules.yaml").write_text(RULE)
    write_samples(tmp_path / "samples.csv")
    return tmp_path


def test_each_change_of_an_alert_is_a_line_and_incidents_are_judged(directory: Path) -> None:
    (directory / "incidents.csv").write_text(
        f"start,end,name,service\n{START_S + 290},2026-01-01T00:06:00Z,slow disk,a\n{START_S},{START_S + 900},,b\n"
    )
    arguments = ("--rules", "rules.yaml", "samples.csv", "--incidents", "incidents.csv")
    found, said = lines(*arguments, cwd=directory)
    labels = {"service": "a"}
    active = {"time": "2026-01-01T00:05:30Z", "rule": "web/Slow", "labels": labels, "from": "pending", "to": "active"}
    resolved = active | {"time": "2026-01-01T00:06:30Z", "from": "active", "to": "resolved"}
    assert [{name: value for name, value in one.items() if name != "value"} for one in found] == [active, resolved]
    assert all(one["value"] == pytest.approx(1.0, rel=0.006) for one in found)
    assert "missed                    2026-01-01T00:00:00Z service=b" in said
    *again, last = lines(*arguments, "--format", "json", cwd=directory)[0]
    assert again == found
    assert last["summary"] == {
        "incidents": 2, "hits": 1, "misses": 1, "missed": ["2026-01-01T00:00:00Z service=b"], "alerts": 1,
        "false_alarms": 0, "detection_delay_median_s": 40.0, "detection_delay_max_s": 40.0, "still_active": 0,
        "until": "2026-01-01T00:15:00Z",
    }  # fmt: skip


def test_stored_rows_give_what_the_file_gives(directory: Path) -> None:
    replayed = tailrace("replay", "samples.csv", "--embedded", "--stream", "s", "--data-dir", "stack", cwd=directory)
    assert replayed.returncode == 0, replayed.stderr
    span = ("--from", "2026-01-01T00:00:00Z", "--to", str(START_S + 900), "--stream", "s", "--data-dir", "stack")
    stored = lines("--rules", "rules.yaml", *span, cwd=directory)[0]
    assert stored == lines("--rules", "rules.yaml", "samples.csv", cwd=directory)[0]
    assert len(stored) == 2
    done = tailrace("backtest", "--rules", "rules.yaml", *span[:4], "--data-dir", "stack", cwd=directory)
    assert (done.returncode, "no rows of duration are stored" in done.stderr) == (1, True)


def samples_of(directory: Path) -> Samples:
    return _read([directory / "samples.csv"], ReplayOptions(), {"duration"}, lambda _: None)


def publish(servers: str, topics: Topics, directory: Path) -> None:
    """The rows of the samples as a flow leaves them in the topic: some first incomplete, some twice, those of one
    partition before those of another; among rows of other streams and lengths, and records that are none."""
    ensure_topics({"bootstrap.servers": servers}, topics, 4)
    writer = KafkaWriter({"bootstrap.servers": servers})

    def write(rows: Any, stream: str = "s", seconds: int = 10) -> None:
        service = rows.column("service")[0].as_py()
        message = encode_window_rows(WindowRows(service, stream, seconds, UNKNOWN_US, rows))
        writer.write(topics.aggregates, service.encode(), message)

    for rows in windows_of(samples_of(directory)):
        for service in "ba":
            for one in (row for row in rows.to_pylist() if row["service"] == service):
                whole = pa.RecordBatch.from_pylist([one], WINDOW_ROWS)
                part = {**one, "version": one["version"] - 1, "bucket_index": [600], "bucket_count": [one["count"]]}
                write(pa.RecordBatch.from_pylist([part], WINDOW_ROWS))  # far too slow, were it believed
                write(whole)
                write(pa.RecordBatch.from_pylist([{**part, "version": 1 << 40}], WINDOW_ROWS), stream="other")
                write(pa.RecordBatch.from_pylist([{**part, "version": 1 << 40}], WINDOW_ROWS), seconds=60)
                if one["window_start"].minute % 2:
                    write(whole)
                    write(pa.RecordBatch.from_pylist([part], WINDOW_ROWS))
    writer.write(topics.aggregates, b"a", b"neither")
    writer.write(topics.aggregates, b"b", b"")
    writer.flush()


BROKERS = ["embedded_broker", pytest.param("kafka", marks=pytest.mark.kafka)]


@pytest.mark.parametrize("broker", BROKERS)
def test_a_topic_gives_what_the_file_gives(
    broker: str, directory: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    servers = request.getfixturevalue(broker)
    monkeypatch.chdir(directory)

    def run(*arguments: str, code: int = 0) -> tuple[list[dict[str, Any]], str]:
        done = CliRunner().invoke(complete_app(), ["backtest", *arguments])
        assert done.exit_code == code, done.output
        return [json.loads(line) for line in done.stdout.splitlines()], " ".join(done.stderr.split())

    topics = Topics(f"test-{uuid4().hex[:8]}")
    publish(servers, topics, directory)
    (directory / "tailrace.toml").write_text(f'[kafka]\nbootstrap_servers = "{servers}"\n')
    rules = ("--rules", "rules.yaml")
    topic = (*rules, "--topic", topics.aggregates, "--stream", "s")
    found, said = run(*topic, "--from", str(START_S), "--to", str(START_S + 900))
    whole = run(*rules, "samples.csv")[0]
    assert found == whole
    assert [one["to"] for one in found] == ["active", "resolved"]
    assert "2 of" in said
    assert "records left out" in said
    # The last version of each row, once, in the order of time.
    read = TopicWindows({"bootstrap.servers": servers}, topics.aggregates, ["duration"], 0, 1 << 40, stream="s")
    read.read(lambda _: None)
    rows = pa.Table.from_batches(list(read.batches()))
    assert rows.column("window_start").to_pylist() == sorted(rows.column("window_start").to_pylist())
    order = [("window_start", "ascending"), ("series_id", "ascending")]
    assert rows.sort_by(order) == pa.Table.from_batches(list(windows_of(samples_of(directory)))).sort_by(order)
    # Part of it: as of a file with only these samples.
    path = directory / "samples.csv"
    with path.open() as file:
        header, *rest = file.read().splitlines()
    chosen = [line for line in rest if START_S + 310 <= int(line.split(",")[0]) < START_S + 350]
    path.write_text("\n".join([header, *chosen]))
    part = run(*topic, "--from", str(START_S + 310), "--to", str(START_S + 350))[0]
    assert part == run(*rules, "samples.csv")[0]
    assert [one["to"] for one in part] == ["active"]
    # No group and no offset of ours is left behind.
    admin = AdminClient({"bootstrap.servers": servers})  # held until it answers: one that is let go never does
    groups = admin.list_consumer_groups(request_timeout=30).result().valid
    assert "tailrace-backtest" not in [one.group_id for one in groups]
    # Nothing of that time, nothing of that stream, another topic's records, and no such topic.
    for arguments, wanted in [
        ((*topic, "--from", "1", "--to", "2"), f"--topic {topics.aggregates}: no rows of duration"),
        ((*topic[:-1], "x", "--from", "1", "--to", "1800000000"), "stream 'x'"),
        ((*rules, "--topic", "none", "--from", "1", "--to", "2"), "--topic none: "),
    ]:
        nothing, said = run(*arguments, code=1)
        assert nothing == []
        assert wanted in said
    writer = KafkaWriter({"bootstrap.servers": servers})
    writer.write(topics.samples, b"a", b"neither")
    writer.flush()
    said = run(*rules, "--topic", topics.samples, "--from", "1", "--to", "2", code=1)[1]
    assert "1 of 1 records are no window rows" in said


@pytest.mark.kafka
def test_records_of_before_are_not_read(kafka: str, directory: Path) -> None:
    """By the broker's index of times; a row is written at most so early as a producer's clock may be ahead."""
    topics = Topics(f"test-{uuid4().hex[:8]}")
    publish(kafka, topics, directory)
    now_s = clock.now_us() // 1_000_000
    client = {"bootstrap.servers": kafka}
    assert TopicWindows(client, topics.aggregates, ["duration"], now_s + 3600, now_s + 7200).total == 0
    assert TopicWindows(client, topics.aggregates, ["duration"], now_s + 3600, now_s + 7200, early_s=7200).total > 700


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["samples.csv"], 2, "at least one --rules"),
        (["--rules", "rules.yaml", "samples.csv", "--topic", "t"], 2, "--topic: give files or a topic"),
        (["--rules", "rules.yaml", "--topic", "t", "--from", "1"], 2, "--topic: give --from and --to"),
        (
            ["--rules", "rules.yaml", "--topic", "t", "--from", "1", "--to", "2", "--data-dir", "none"],
            1,
            "no stack runs on none",
        ),
        (["--rules", "rules.yaml"], 2, "--from and --to"),
        (["--rules", "rules.yaml", "samples.csv", "--from", "1"], 2, "not both"),
        (["--rules", "none.yaml", "samples.csv"], 2, "none.yaml"),
        (["--rules", "rules.yaml", "--from", "yesterday", "--to", "2"], 1, "--from: 'yesterday' is no time"),
        (["--rules", "rules.yaml", "--from", "2", "--to", "2"], 1, "--to is not after --from"),
        (["--rules", "routes.yaml", "samples.csv"], 1, "nothing to judge"),
        (["--rules", "rules.yaml", "other.csv"], 1, "no samples of the metrics of the rules (duration); found: cpu"),
        (["--rules", "rules.yaml", "rules.yaml"], 1, "no column 'time'"),
        (["--rules", "samples.csv", "samples.csv"], 1, "the configuration is wrong"),
        (["--rules", "rules.yaml", "samples.csv", "--incidents", "samples.csv"], 1, "no column 'start'"),
    ],
)
def test_what_is_wrong_is_said(
    directory: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, said: str
) -> None:
    (directory / "other.csv").write_text("time,metric,value\n1767225600,cpu,1\n")
    (directory / "routes.yaml").write_text("receivers: []\n")
    monkeypatch.chdir(directory)
    done = CliRunner().invoke(complete_app(), ["backtest", *arguments])
    assert done.exit_code == code, done.output
    assert said in " ".join(done.output.replace("│", " ").split())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("start,finish\n1,2\n", "no column 'end'"),
        ("start,end\n5,2\n", ":2: the incident ends before it starts"),
        ("start,end\n1,soon\n", ":2: end: 'soon' is no time"),
        ("start,end,labels\n1,2,a=b;c\n", ":2: labels: 'c' is not of the form"),
        ("start,end\n1,2,3\n", ":2: another number of columns"),
        ("start,end,zone\n1,2\n", ":2: another number of columns"),
    ],
)
def test_incidents_that_cannot_be_read(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "incidents.csv"
    path.write_text(text)
    with pytest.raises(ReplayError, match=f"{path}.*{said}"):
        read_incidents(path)


def test_incidents(tmp_path: Path) -> None:
    path = tmp_path / "incidents.csv"
    path.write_text("start,end,name,labels,zone\n1,2026-01-01T00:00:00+01:00,first, service=a ;x=1,b\n2,3,,,\n")
    first, second = read_incidents(path)
    assert first == (S, (START_S - 3600) * S, (("service", "a"), ("x", "1"), ("zone", "b")), "first")
    assert second == (2 * S, 3 * S, (), "")


# -- real incidents ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def petshop() -> list[Scenario]:
    return read(data_file("latency/petshop"))


@pytest.fixture(scope="module")
def active(petshop: list[Scenario], tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, str, int, int]]:
    """(rule, service, from, to) of every alert, in seconds."""
    directory = tmp_path_factory.mktemp("petshop")
    samples, incidents = convert(petshop, directory)
    found, _ = lines("--rules", str(RULES), "--incidents", str(incidents), str(samples), cwd=directory)
    begun: dict[tuple[str, str], int] = {}
    times = []
    for one in found:
        key = (one["rule"], one["labels"]["service"])
        time_s = us_of(TypeAdapter(AwareDatetime).validate_python(one["time"])) // S
        if one["to"] == "active":
            begun[key] = time_s
        else:
            times.append((*key, begun.pop(key), time_s))
    assert not begun
    return times


RULE_OF = {"latency": "requests/LatencyHigh", "availability": "requests/ErrorRatioHigh"}


def test_petshop_incidents_are_found_by_the_rule_and_service_they_show_in(
    petshop: list[Scenario], active: list[tuple[str, str, int, int]]
) -> None:
    missed = [
        one.name
        for one in petshop
        if one.target
        and not any(
            (rule, service) == (RULE_OF[one.signal], one.target) and start < one.end_s and end > one.onset_s
            for rule, service, start, end in active
        )
    ]
    assert len([one for one in petshop if one.target]) == 34
    assert missed == []


def test_petshop_false_samples(petshop: list[Scenario], active: list[tuple[str, str, int, int]]) -> None:
    """Of the normal operation: of the front's two signals, and of those of all services."""
    (normal,) = (one for one in petshop if not one.target)
    known = [start + PERIOD_S for start in normal.rows]
    false = [(rule, service) for rule, service, start, end in active for time_s in known if start <= time_s < end]
    assert 2 * len(known) == 1178
    assert len(false) <= 3, false
    assert {service for _, service in false} == {"PetSite"}


def test_petshop_thresholds_hold_on_incidents_that_were_left_out(petshop: list[Scenario]) -> None:
    """Chosen on the other deployments each time; the one in the rules' file is near all of them."""
    found = left_out(petshop)
    assert sum(one.incidents for one in found) == 34
    assert sum(one.hits for one in found) >= 33
    assert sum(one.normal_samples for one in found) == 1178
    assert sum(one.false_samples for one in found) <= 3
    for one in found:
        assert one.error_ratio == pytest.approx(0.01, rel=0.1)
        assert one.p95_s == pytest.approx(0.4, rel=0.1)
