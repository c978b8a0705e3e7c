"""Every command as a user runs it, on one running stack and without any."""

import csv
import io
import json
import os
import random
import signal
import subprocess
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import typer
from tailrace_infra.alerts_command import new_command
from tailrace_infra.cli import PARTS, commands_of, complete_app
from tailrace_infra.stack import running_endpoints
from tailrace_schemas.alerts import CommandKind
from typer.testing import CliRunner, Result

from tests.infra.command import COMMAND, Up, tailrace, up
from tests.infra.waiting import eventually

pytest.importorskip("chdb")

COMMANDS = [
    "up", "run", "agent", "replay", "sql", "migrate", "topics", "check", "status", "kafka start", "kafka stop", "apply",
    "config list", "config diff", "config history", "alerts list", "alerts show", "alerts ack", "alerts resolve",
    "alerts annotate", "alerts mark", "alerts silence", "alerts watch", "slo list", "slo show", "health run",
    "health show", "notify", "detect", "forecast", "verify",
]  # fmt: skip
NOWHERE = {
    "TAILRACE_KAFKA__BOOTSTRAP_SERVERS": "127.0.0.1:1",
    "TAILRACE_CLICKHOUSE__URL": "http://127.0.0.1:1",
}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with up(tmp_path_factory.mktemp("up") / "data", TAILRACE_RECOVERY__EPOCH_S="0.2") as running:
        running.endpoints()
        yield running


@pytest.fixture(scope="module")
def usage() -> Callable[..., Result]:
    """What reading the arguments gives, in this process: a new one for each takes a second."""
    complete = complete_app()
    return lambda *arguments: CliRunner(env={"COLUMNS": "200"}).invoke(complete, arguments)


def json_of(*arguments: str) -> list[dict[str, Any]]:
    done = tailrace(*arguments, "--format", "json")
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def write_samples(path: Path, seed: int = 1, steps: int = 600) -> int:
    """A CSV of every kind; how many samples it has."""
    rng = random.Random(seed)
    with path.open("w") as file:
        file.write("time,metric,value,kind,unit,service,http.route\n")
        for step in range(steps):
            time = f"{1_767_225_600 + step / 10:.1f}"
            file.write(f"{time},duration,{rng.lognormvariate(-3, 1)},distribution,s,shop-{seed},/a\n")
            file.write(f"{time},requests,2,counter,1,shop-{seed},/a\n")
            file.write(f"{time},bytes,{step * 10},cumulative,By,shop-{seed},/a\n")
            file.write(f"{time},queue,{step % 50},gauge,1,stock-{seed},\n")
        file.write(f"{time},deploy,1,event,,shop-{seed},/a\n")
    return 4 * steps + 1


ROWS = """
SELECT * FROM windows WHERE service IN ('shop-{seed}', 'stock-{seed}') ORDER BY service, metric, window_start
"""


# Without any server


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_has_examples_and_explains_every_option(usage: Callable[..., Result], command: str) -> None:
    done = usage(*command.split(), "-h")
    assert done.exit_code == 0
    if command:
        assert f"tailrace {command}" in done.stdout.split("Examples:")[1]
    assert "--help" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["bogus"], "No such command 'bogus'"),
        (["up", "--duration", "x"], "--duration"),
        (["up", "--clickhouse-port", "99999"], "--clickhouse-port"),
        (["run", "other"], "windows"),
        (["replay", "/no/such/file"], "/no/such/file"),
        (["sql", "SELECT 1", "--format", "xml"], "--format"),
    ],
)
def test_wrong_usage_is_exit_code_2(usage: Callable[..., Result], arguments: list[str], text: str) -> None:
    done = usage(*arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    assert text in done.stderr


@pytest.mark.parametrize("module", PARTS)
def test_a_part_is_loaded_for_each_of_its_commands(module: str) -> None:
    app = typer.Typer()
    import_module(f"tailrace_infra.{module}").register(app)
    assert commands_of(app) == set(PARTS[module])


def test_verify_runs_the_suite_of_a_checkout() -> None:
    done = tailrace("verify", "producer_clock", "--size", "1", "--seed", "5", cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    assert "producer_clock: held; 1 clocks" in done.stdout
    assert "seed 5" in done.stderr


def test_verify_elsewhere_says_where_the_suite_is(tmp_path: Path) -> None:
    done = tailrace("verify", "--long", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    assert "source tree" in done.stderr
    assert "pip install -e '.[dev]'" in done.stderr
    assert "tailrace verify" in done.stderr


def test_wrong_settings_are_exit_code_2_and_name_the_place(tmp_path: Path) -> None:
    (tmp_path / "tailrace.toml").write_text("[kafka]\nbootstrap = 'x'\n")
    done = tailrace("check", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "tailrace.toml:2: there is no setting 'kafka.bootstrap'" in done.stderr


def test_check_says_what_to_do_and_is_exit_code_1() -> None:
    done = tailrace("check", "--format", "json", environment=NOWHERE)
    assert done.returncode == 1
    found = {row["check"]: row for row in json.loads(done.stdout)}
    assert {name for name, row in found.items() if row["ok"]} == {"settings"}
    assert "127.0.0.1:1" in found["kafka"]["detail"]
    assert "`tailrace up`" in found["kafka"]["detail"]
    assert "Connection refused" in found["clickhouse"]["detail"]
    assert not done.stderr


def test_check_of_files_says_what_they_mean_or_what_is_wrong_where(tmp_path: Path) -> None:
    rule = "- alert: Busy\n  metric: cpu\n  aggregate: mean\n  op: gt\n  threshold: 0.9\n"
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    good.write_text("groups:\n- name: a\n  rules:\n  " + rule.replace("\n", "\n  "))
    bad.write_text("groups:\n- name: b\n  rules:\n  " + rule.replace("\n", "\n  ").replace("gt", "above"))
    assert json_of("check", str(good)) == [
        {
            "place": f"{good}:2", "kind": "rule_group", "name": "a",
            "meaning": "a/Busy (warning) fires when the mean of cpu over 10s is above 0.9; "
            "without data it stays as it is.",
        }
    ]  # fmt: skip
    done = tailrace("check", str(good), str(bad), environment=NOWHERE)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"{bad}:7: groups[0].rules[0].op: must be one of 'gt', 'gte'" in done.stderr
    assert tailrace("check", str(tmp_path / "none.yaml")).returncode == 2


@pytest.mark.parametrize(
    ("command", "setting"),
    [
        (["sql", "SELECT 1"], "clickhouse.url"),
        (["migrate"], "clickhouse.url"),
        (["status"], "clickhouse.url"),
        (["alerts", "list"], "clickhouse.url"),
        (["topics"], "kafka.bootstrap_servers"),
        (["config", "list"], "kafka.bootstrap_servers"),
        (["alerts", "ack", "0123456789abcdef"], "kafka.bootstrap_servers"),
        (["notify"], "kafka.bootstrap_servers"),
    ],
)
def test_servers_that_are_away_are_named_with_their_setting(command: list[str], setting: str) -> None:
    done = tailrace(*command, environment=NOWHERE)
    assert (done.returncode, done.stdout) == (1, "")
    *before, told = done.stderr.splitlines()
    assert before == (["tailrace: waiting for Kafka at 127.0.0.1:1 ..."] if "kafka" in setting else [])
    for part in ("127.0.0.1:1", "Connection refused", setting, "`tailrace up`", "--data-dir"):
        assert part in told


@pytest.mark.parametrize(
    ("flow", "topic"), [(["windows"], "samples"), (["windows", "--processes", "2"], "samples"), (["slo"], "config")]
)
def test_a_flow_without_its_topics_says_so_and_nothing_else(
    flow: list[str], topic: str, embedded_broker: str, tmp_path: Path
) -> None:
    environment = {"TAILRACE_KAFKA__BOOTSTRAP_SERVERS": embedded_broker}
    done = tailrace("run", *flow, environment=environment, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    (told,) = done.stderr.splitlines()
    assert f"topic tailrace.{topic}: Broker: Unknown topic or partition - `tailrace topics` creates the topics" in told


def test_a_recovery_directory_that_cannot_be_is_told_with_its_setting(embedded_broker: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    environment = {
        "TAILRACE_KAFKA__BOOTSTRAP_SERVERS": embedded_broker,
        "TAILRACE_RECOVERY__DIRECTORY": str(tmp_path / "file"),
    }
    assert tailrace("topics", environment=environment, cwd=tmp_path).returncode == 0
    done = tailrace("run", "windows", environment=environment, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    (told,) = done.stderr.splitlines()
    assert f"{tmp_path / 'file'}" in told
    assert "recovery.directory" in told


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["silence", "0123456789abcdef", "--for", "9999d"], "duration_s: Input should be less than"),
        (["ack", "0123456789abcdef", "-m", "x" * 20_000], "message: String should have at most"),
    ],
)
def test_a_command_about_an_alert_that_cannot_be(arguments: list[str], text: str) -> None:
    done = tailrace("alerts", *arguments, environment={"TAILRACE_KAFKA__BOOTSTRAP_SERVERS": "127.0.0.1:1"})
    assert (done.returncode, done.stdout) == (1, "")
    assert text in done.stderr
    assert "Traceback" not in done.stderr


def test_a_user_without_a_name_can_say_what_is_done_about_an_alert(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 123456789)
    assert new_command(CommandKind.ACKNOWLEDGE, "0123456789abcdef", "", None).author == "uid 123456789"


@pytest.mark.parametrize("command", [["check"], ["status"], ["agent"], ["migrate"], ["replay", __file__]])
def test_a_directory_on_which_nothing_runs(command: list[str], tmp_path: Path) -> None:
    done = tailrace(*command, "--data-dir", str(tmp_path))
    assert done.returncode == 1
    assert f"no stack runs on {tmp_path}" in done.stderr


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("missing.csv", b"time,value\n1,2\n", "no column 'metric'; found: time, value"),
        ("empty.csv", b"", "empty.csv"),
        ("bad.csv", b"time,metric,value\n" + b"x,y,z\n" * 50, "bad.csv"),
        ("bytes.csv", bytes(range(256)) * 40, "bytes.csv"),
        ("bad.parquet", b"PAR1 nothing", "bad.parquet"),
    ],
)
def test_a_file_that_cannot_be_replayed(stack: Up, name: str, content: bytes, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    done = tailrace("replay", str(tmp_path / name), "--data-dir", str(stack.data_dir))
    assert (done.returncode, done.stdout) == (1, "")
    assert text in done.stderr
    assert "Traceback" not in done.stderr


# On a running stack


def test_sql_gives_exact_values(stack: Up) -> None:
    query = """SELECT 0.1 + 0.2 AS f, nan AS n, [1, NULL] AS a, map('k', 1.5) AS m, toUInt64(18446744073709551615) AS u,
               toDateTime('2026-01-02 03:04:05', 'UTC') AS t, toFixedString('ab', 2) AS x, '[red]' AS s"""
    found = json_of("sql", "--data-dir", str(stack.data_dir), query)
    assert found == [
        {
            "f": 0.1 + 0.2, "n": None, "a": [1, None], "m": {"k": 1.5}, "u": 2**64 - 1,
            "t": "2026-01-02T03:04:05Z", "x": "ab", "s": "[red]",
        }
    ]  # fmt: skip
    done = tailrace("sql", "--data-dir", str(stack.data_dir), "-f", "csv", "-", stdin=query)
    assert next(csv.DictReader(io.StringIO(done.stdout)))["f"] == repr(0.1 + 0.2)


def test_sql_only_reads_unless_told_otherwise(stack: Up) -> None:
    data_dir = ["--data-dir", str(stack.data_dir)]
    create = "CREATE TABLE mine (a Int32) ENGINE = MergeTree ORDER BY a"
    refused = tailrace("sql", *data_dir, create)
    assert refused.returncode == 1
    assert "--write" in refused.stderr
    for statement in (create, "INSERT INTO mine VALUES (1), (2)"):
        done = tailrace("sql", *data_dir, "--write", statement)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert json_of("sql", *data_dir, "SELECT sum(a) AS n FROM mine -- so it is;") == [{"n": 3}]


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ("SELECT '[/red]' FROM nowhere", "Unknown table expression identifier 'nowhere'"),
        ("SELEC 1", "Syntax error"),
        ("SELECT 1 FORMAT JSON", "Leave out FORMAT"),
        ("SELECT throwIf(number = 500000) FROM numbers(1000000)", "throwIf"),
        (" ", "empty"),
    ],
)
def test_sql_errors_are_clickhouse_s_own(stack: Up, query: str, text: str) -> None:
    done = tailrace("sql", "--data-dir", str(stack.data_dir), query)
    assert done.returncode == 1
    assert text in done.stderr
    for noise in ("http://", "Native", "Traceback", "(version"):
        assert noise not in done.stderr


@pytest.mark.parametrize("form", ["csv", "json", "table"])
def test_sql_ends_quietly_when_its_reader_has_seen_enough(stack: Up, form: str) -> None:
    """Of an answer that never ends, too; a table ends by itself."""
    command = [*COMMAND, "sql", "--data-dir", str(stack.data_dir), "-f", form, "SELECT number FROM system.numbers"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        try:
            assert running.stdout.readline()
            running.stdout.close()
            running.wait(60)
        finally:
            running.kill()
        assert running.stderr.read().decode() in ("", "only the first 10,000 rows; --format csv or json prints all\n")


def test_the_servers_that_settings_name_win_over_the_default_directory(stack: Up) -> None:
    beside = stack.data_dir.parent
    (beside / "tailrace-data").symlink_to(stack.data_dir)
    assert tailrace("sql", "SELECT 1", cwd=beside).returncode == 0
    assert tailrace("sql", "SELECT 1", cwd=beside, environment=NOWHERE).returncode == 1
    assert tailrace("status", cwd=beside, environment=NOWHERE).returncode == 1


def test_check_status_topics_and_migrate(stack: Up) -> None:
    data_dir = ["--data-dir", str(stack.data_dir)]
    assert all(row["ok"] for row in json_of("check", *data_dir))
    eventually(lambda: {row["figure"]: row["value"] for row in json_of("status", *data_dir)}.get("samples"), 60)
    figures = {row["figure"]: row["value"] for row in json_of("status", *data_dir)}
    assert figures["lag_records"] >= 0
    assert {row["topic"] for row in json_of("topics", *data_dir)} >= {"tailrace.samples", "tailrace.dead-letters"}
    assert json_of("migrate", *data_dir) == [{"migration": "all", "state": "up to date"}]


def test_the_agent_sends_to_a_running_stack(stack: Up) -> None:
    data_dir = ["--data-dir", str(stack.data_dir)]
    done = tailrace("agent", *data_dir, "--service", "second", "--interval", "0.2", "--duration", "1.5")
    assert done.returncode == 0
    assert "dropped={}" in done.stderr

    def all_counted() -> bool:
        query = "SELECT value FROM counters WHERE service = 'second' AND name = 'samples'"
        return any(f"recorded={row['value']}," in done.stderr for row in json_of("sql", *data_dir, query))

    eventually(all_counted, 60)


def test_a_replay_into_a_running_stack_and_again(stack: Up, tmp_path: Path) -> None:
    samples = write_samples(tmp_path / "file.csv")
    replay = ["replay", str(tmp_path / "file.csv"), "--data-dir", str(stack.data_dir)]
    first = {row["figure"]: row["value"] for row in json_of(*replay)}
    assert (first["samples_sent"], first["samples"], first["services"]) == (samples, samples, 2)
    query = ["sql", "--data-dir", str(stack.data_dir), ROWS.format(seed=1)]
    before = json_of(*query)
    assert {row["kind"] for row in before} == {"distribution", "counter", "cumulative", "gauge", "event"}
    again = {row["figure"]: row["value"] for row in json_of(*replay)}
    assert (again["samples"], again["duplicate_samples"]) == (samples, samples)
    assert json_of(*query) == before


# On a directory on which nothing runs


def test_an_embedded_replay_that_is_interrupted_goes_on_when_it_is_repeated(tmp_path: Path) -> None:
    samples = write_samples(tmp_path / "file.csv", seed=2, steps=20_000)
    data_dir = tmp_path / "data"
    command = ["replay", str(tmp_path / "file.csv"), "--embedded", "--data-dir", str(data_dir)]
    interrupted = subprocess.Popen(
        [*COMMAND, *command, "--speed", "200"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    eventually(lambda: running_endpoints(data_dir) or interrupted.poll() is not None, 60)
    os.killpg(interrupted.pid, signal.SIGINT)
    _, told = interrupted.communicate(timeout=40)
    assert interrupted.returncode == 1
    assert "run the same command again" in told
    assert "Traceback" not in told
    figures = {row["figure"]: row["value"] for row in json_of(*command)}
    assert (figures["samples_sent"], figures["samples"]) == (samples, samples)
    done = tailrace(
        "sql", "--data-dir", str(data_dir), "-f", "csv", "SELECT sum(count) FROM windows WHERE stream != ''"
    )
    assert (done.stdout.splitlines()[1:], done.stderr) == ([str(samples)], "")
