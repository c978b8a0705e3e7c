"""`tailrace anomalies compare`, on the sketches that the whole pipeline made of samples."""

import csv
import json
import random
from collections.abc import Iterator

import numpy as np
import pytest
from tailrace_infra import compare_command
from tailrace_infra.cli import complete_app
from typer.testing import CliRunner

from tests.infra.command import embedded, tailrace

START_S = 1_767_225_600  # 2026-01-01
DEPLOY_S = START_S + 900
Samples = dict[str, list[tuple[float, float]]]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[dict[str, str], Samples]]:
    """Half an hour of two routes and a counter; /pay is 30 % slower from the deploy on. And the samples by route."""
    rng = random.Random(7)
    directory = tmp_path_factory.mktemp("compare")
    samples: Samples = {"/pay": [], "/look": []}
    with (directory / "shop.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["time", "service", "metric", "kind", "unit", "value", "route", "version"])
        for number in range(1_800):
            time = START_S + number
            if time == DEPLOY_S:
                writer.writerow([time, "shop", "deploy", "event", "", 1, "", "2.0"])
            for route, times in samples.items():
                slower = 1.3 if route == "/pay" and time >= DEPLOY_S else 1.0
                for part in range(3):
                    value = slower * rng.lognormvariate(-1, 0.3)
                    times.append((time + part / 4, value))
                    writer.writerow([time + part / 4, "shop", "latency", "distribution", "s", value, route, ""])
            writer.writerow([time, "shop", "requests", "counter", "{request}", rng.randint(4, 8), "", ""])
    done = tailrace("replay", str(directory / "shop.csv"), "--embedded", "--data-dir", str(directory / "data"))
    assert done.returncode == 0, done.stderr
    with embedded(directory / "data") as client:
        yield {"TAILRACE_CLICKHOUSE__URL": client.url}, samples


def test_what_got_slower_with_the_last_deploy_by_how_much_and_how_surely(
    shop: tuple[dict[str, str], Samples],
) -> None:
    environment, samples = shop
    options = ["-s", "shop", "--window", "15m", "--format", "json"]
    done = tailrace("anomalies", "compare", "--event", "deploy", *options, environment=environment)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)
    assert (row["metric"], row["labels"], row["figure"]) == ("latency", {"route": "/pay"}, "p95 (s)")
    p95 = [
        np.quantile([v for t, v in samples["/pay"] if begin <= t < begin + 10], 0.95, method="inverted_cdf")
        for begin in range(START_S, START_S + 1_800, 10)
    ]
    differences = np.subtract.outer(np.array(p95[90:]), np.array(p95[:90]))
    assert row["before"] == pytest.approx(np.median(p95[:90]), rel=0.012)  # the sketch's error, on both sides
    assert row["after"] == pytest.approx(np.median(p95[90:]), rel=0.012)
    assert row["shift"] == pytest.approx(np.median(differences), abs=0.012 * row["after"])
    assert row["low"] < row["shift"] < row["high"]
    assert row["change_percent"] == pytest.approx(30, abs=10)
    assert row["confidence"] > 0.999
    assert row["points"] == "90, 90"
    assert "deploy at 2026-01-01 00:15:00 UTC: 1 of 3 series changed (15m before and after)" in done.stderr
    everything = json.loads(tailrace("anomalies", "compare", "--all", *options, environment=environment).stdout)
    assert [one["metric"] for one in everything].count("latency") == 2
    (requests,) = [one for one in everything if one["metric"] == "requests"]
    assert requests["figure"] == "rate ({request}/s)"
    assert requests["before"] == pytest.approx(6, abs=0.3)


def test_what_cannot_be_compared_is_said(shop: tuple[dict[str, str], Samples]) -> None:
    environment, _ = shop
    done = tailrace("anomalies", "compare", "-s", "shop", "--event", "rollback", environment=environment)
    assert (done.returncode, done.stderr.strip()) == (
        1, "tailrace: service 'shop' has no event named 'rollback': say --at, or send one",
    )  # fmt: skip
    done = tailrace("anomalies", "compare", "-s", "shop", "--stream", "another", environment=environment)
    assert done.stderr.strip() == "tailrace: service 'shop' has no event in stream 'another': say --at, or send one"
    done = tailrace("anomalies", "compare", "-s", "shop", "--at", "noon", environment=environment)
    assert done.returncode == 2
    assert "'noon' is no time" in done.stderr


def test_series_that_were_left_out_are_said(
    shop: tuple[dict[str, str], Samples], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TAILRACE_CLICKHOUSE__URL", shop[0]["TAILRACE_CLICKHOUSE__URL"])
    arguments = ["anomalies", "compare", "-s", "shop", "--event", "deploy", "--all", "--format", "json"]
    monkeypatch.setattr(compare_command, "SERIES_MAX", 3)  # the event is one
    done = CliRunner().invoke(complete_app(), arguments)
    assert len(json.loads(done.stdout)) == 2
    assert "only the first 3 series" in done.stderr
    monkeypatch.setattr(compare_command, "SERIES_MAX", 4)
    done = CliRunner().invoke(complete_app(), arguments)
    assert len(json.loads(done.stdout)) == 3
    assert "only the first" not in done.stderr
