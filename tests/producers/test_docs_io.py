"""docs/io.md: its code runs, and what it says is recorded is what is."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tailrace_infra import broker
from tailrace_producers import Telemetry, io_monitoring
from tailrace_producers.command import CommandRun, record_command

from tests.producers.reading import read_topic, samples_of

PAGE = (Path(__file__).parents[2] / "docs" / "io.md").read_text()


@pytest.fixture(autouse=True)
def forget(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(io_monitoring, "_caches", {})
    yield
    io_monitoring.stop_io_monitoring()


def test_the_code_runs_and_the_table_has_what_it_records(capsys: pytest.CaptureFixture[str]) -> None:
    namespace: dict[str, Any] = {}
    with broker.embedded_broker() as bootstrap_servers:
        for code in re.findall(r"```python\n(.*?)```", PAGE, re.S):
            exec(code.replace("localhost:9092", bootstrap_servers), namespace)
        telemetry: Telemetry = namespace["telemetry"]
        run = CommandRun("x", 1, None, 1_700_000_000_000_000, 1, 1, 1, 1, 1, 1)
        record_command(telemetry, run)
        with io_monitoring.track_io_operation("read", "x"):
            telemetry.collect()
        telemetry.close()
        samples = [one for read in read_topic(bootstrap_servers) for one in samples_of(read.batch)]
    report = capsys.readouterr().out
    assert "read config" in report
    assert "write result" in report
    lookups = {
        (dict(one.series.attributes)["cache.name"], dict(one.series.attributes)["cache.result"]): 0.0
        for one in samples
        if one.series.metric == "cache.lookups"
    }
    for one in samples:
        if one.series.metric == "cache.lookups":
            attributes = dict(one.series.attributes)
            lookups[attributes["cache.name"], attributes["cache.result"]] += one.value
    assert lookups == {
        ("regex", "miss"): 10, ("regex", "hit"): 290, ("ids", "miss"): 50, ("ids", "hit"): 250, ("batch", "miss"): 300,
    }  # fmt: skip
    found: dict[tuple[str, str, str], set[str]] = {}
    for one in samples:
        metric, kind, unit, pairs = one.series
        found.setdefault((metric, kind, unit), set()).update(key for key, _ in pairs)
    table = {
        (metric, kind, unit): set(re.findall(r"`([\w.]+\.[\w.]+)`", cell))
        for metric, kind, unit, cell in re.findall(r"^\| `([\w.]+)` \| (\w+) \| `(.+?)` \| (.*?) \|", PAGE, re.M)
    }
    assert found == table
