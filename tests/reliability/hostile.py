"""Hostile texts as services, metrics and attributes, through everything that stores or shows them."""

import json
import random
from array import array
from itertools import count
from typing import Any

import yaml
from rich.console import Console
from tailrace_infra.live import line, screen
from tailrace_infra.overview import read_overview
from tailrace_schemas.clock import now_us
from tailrace_schemas.codec import Codec
from tailrace_schemas.samples import (
    MAX_ATTRIBUTE_BYTES,
    MAX_NAME_CHARS,
    MAX_VALUE_CHARS,
    Series,
    attribute_bytes,
    encode_batch,
    encode_series_table,
)

from tests.infra.command import tailrace
from tests.reliability.attack import Result, Run, attack
from tests.reliability.traffic import S
from tests.reliability.world import (
    PATIENCE_S,
    World,
    check_rows,
    configure,
    counters_of_windows,
    delivered,
    python,
    starts_on_window,
    why_no_kafka,
)  # fmt: skip
from tests.subscribers.receiving import Hook, Mailbox, smtp_server, webhook_server

METRIC = "load'); DROP TABLE canary; -- {{ 7*7 }}\x1b[31m\r\nX-Injected: 1\0\u202e"
KEY = "key' OR '1'='1\\ \n\t\x9b2J{% raw %}"
WINDOWS = 6
OBEYED = frozenset(map(chr, [*range(9), *range(11, 32), *range(127, 160)])) | frozenset("\u202a\u202e\u2066")
"""What a terminal or a reader must not get: controls but tab and line break, and what turns the direction of text."""


def texts(run: Run) -> list[str]:
    """So many that are no two alike."""
    pwned = run.directory / "pwned"
    pieces = [
        "'; DROP TABLE canary; --", '"); TRUNCATE TABLE rows_10s; /*', "\\", "\\'", "''", "`", f"$(touch {pwned})",
        f"`touch {pwned}`", f"; touch {pwned} #", f"| tee {pwned}", "{{ 7*7 }}", "{% for i in range(9) %}x{% endfor %}",
        "{value}", "{service!r}", "%s%n%d", "${env:HOME}", "${file:/etc/passwd}", "<script>alert(1)</script>", "&amp;",
        "\r\nBcc: victim@example.org\r\n\r\nHi", "\nlevel=info event=forged", "\n.\r\nQUIT\r\n", "\0",
        "\x1b]0;owned\x07",
        "\x1b[2J\x1b[1;1H", "\x9b31m", "\u202etxt.exe", "\u2028", "[bold]x[/bold]", "[link=http://evil]", "é\U0001f4a3",
        "../../../../etc/passwd", "{p:String}", "a=b,c=d", "=cmd|' /C calc'!A0", '[{"a":' * 200, "\t", " ", "x" * 900,
    ]  # fmt: skip
    rng = random.Random(run.seed)
    numbers = count()
    found = [f"{piece}{next(numbers)}"[-1000:] for piece in pieces]
    while len(found) < run.size:
        found.append(f"{''.join(rng.sample(pieces[:-1], rng.randint(2, 4)))}{next(numbers)}"[-1000:])
    rng.shuffle(found)
    return found[: run.size]


def _services(world: World) -> int:
    return int(world.bench.clickhouse.query("SELECT uniqExact(service) FROM windows").first_row[0])


def _config(hook: Hook, mailbox: Mailbox) -> str:
    mail = {
        "to": ["sre@example.org"],
        "from": "t@example.org",
        "host": "127.0.0.1",
        "port": mailbox.port,
        "tls": "none",
    }
    plenty = {"messages": 100_000, "per": "1m"}
    own = "{% for one in notification.alerts %}<<{{ one.alert.labels.host }}>>{% endfor %}"
    rule = {
        "alert": "Loaded", "metric": METRIC, "aggregate": "mean", "by": ["service", "host", KEY], "op": "gt",
        "threshold": 0.9, "description": "{host} of {service} is at {value:.0%}",
    }  # fmt: skip
    return yaml.safe_dump(
        {
            "groups": [{"name": "hostile", "rules": [rule]}],
            "routing": {
                "receiver": "hook", "group_by": ["..."], "group_wait": "0s",
                "routes": [{"receiver": name, "continue": True} for name in ("hook", "mail", "own")],
            },
            "receivers": [
                {"name": "hook", "webhook": {"url": f"{hook.url}/x", "headers": {"X-Token": "${env:HOOK_TOKEN}"}}},
                {"name": "mail", "email": mail, "rate_limit": plenty},
                {"name": "own", "email": mail, "rate_limit": plenty, "templates": {"title": "own", "text": own}},
            ],
        }
    )  # fmt: skip


def _send(world: World, found: list[str], start_us: int) -> None:
    """A gauge and a distribution of each service, in each window; and what is too long to be one."""
    producer = world.bench.producer()
    for window in range(WINDOWS):
        if window == 2:  # rules judge a window once: when they know of all services
            world.until(lambda: _services(world) == len(found), "all services are known")
        messages = []
        for number, text in enumerate(found):
            attributes = tuple(sorted({"host": text, KEY: text[::-1]}.items()))
            table = encode_series_table(
                [Series(METRIC, "gauge", "1", attributes), Series("d" + METRIC, "distribution", "s", attributes)]
            )
            message = encode_batch(
                service=text, producer_id=f"p{number}", sequence=window, base_time_us=start_us + window * 10 * S,
                series_table=table, series_index=array("I", [0, 1]).tobytes(),
                time_offset_us=array("i", [5 * S, 5 * S]).tobytes(), value=array("d", [0.95, 0.5]).tobytes(),
            )  # fmt: skip
            messages.append((text, message))
        world.bench.send(producer, messages)
    world.bench.send(producer, [(found[0], _largest(found[0], start_us))])
    sample = {"service": "s", "stream": "", "time_us": start_us, "value": 1.0, "metric": "m", "kind": "gauge"}
    sample["unit"] = ""
    for field in ("service", "metric", "unit", "stream"):
        long = Codec("Sample").encode({**sample, "attributes": {}, field: "x" * 900_000})
        world.bench.send(producer, [("s", long)])
    for attributes in ({"k": "v" * 900_000}, {f"k{number}": "v" * MAX_VALUE_CHARS for number in range(100)}):
        long = Codec("Sample").encode({**sample, "attributes": attributes})
        world.bench.send(producer, [("s", long)])


def _largest(service: str, start_us: int) -> bytes:
    """A row of the longest names that there may be, and of more buckets: as values of 600 orders of magnitude fill."""
    names = {"k": "\U0001f4a3" * (MAX_VALUE_CHARS - 1)}
    names["n"] = "x" * (MAX_ATTRIBUTE_BYTES - attribute_bytes(names.items()) - 1)
    longest = "\U0001f4a3" * MAX_NAME_CHARS
    rng = random.Random(1)
    values = array("d", [10 ** rng.uniform(-300, 300) for _ in range(55_000)])
    return encode_batch(
        service=service, producer_id="largest", sequence=0, base_time_us=start_us,
        series_table=encode_series_table([Series(longest, "distribution", longest, tuple(names.items()))]),
        series_index=bytes(4 * len(values)), time_offset_us=array("i", [5 * S] * len(values)).tobytes(),
        value=values.tobytes(),
    )  # fmt: skip


@attack(
    name="hostile",
    promise="What people write cannot become code: names, attributes and texts stay data in SQL, templates, mail, "
    "logs, shells and terminals.",
    what="Services, metrics, attribute keys and values that are SQL, Jinja2, shell, HTML, header lines, terminal "
    "controls, names of 900 kB and the largest row there can be, from the topic to ClickHouse, webhook, mail, commands "
    "and the live view",
    unit="hostile services",
    short=50,
    long=1_000,
)
def hostile(run: Run) -> Result:
    if missing := why_no_kafka():
        return Result(skipped=missing)
    found = texts(run)
    with (
        webhook_server() as hook,
        smtp_server() as mailbox,
        World.of(run.directory, "hostile", TAILRACE_WINDOWS__IDLE_S="600") as world,
    ):
        b = world.bench
        b.clickhouse.command("CREATE TABLE canary (x UInt8) ENGINE = MergeTree ORDER BY x AS SELECT 42 AS x")
        tables = b.clickhouse.query("SHOW TABLES").result_rows
        configure(b, _config(hook, mailbox))
        world.add_flow("windows", "windows")
        world.add_flow("alerts", "alerts")
        world.add("notifier", python("-m", "tailrace_infra.cli", "notify"))
        _send(world, found, starts_on_window(now_us()) - 70 * S)
        made = delivered(b)
        assert sum(made.counters[name] for name in made.counters if name.startswith("dead_letters.")) == 6
        patience_s = max(PATIENCE_S, len(found))  # each is told in several messages, one after the other
        world.until(lambda: len(hook.got) >= len(found), "the webhook is told of all", patience_s)
        world.until(lambda: len(mailbox.got) >= 2 * len(found), "the mailbox has two messages of each", patience_s)
        expected = {(text, text, text[::-1]) for text in found}
        labels = [one["alert"]["labels"] for body in hook.bodies() for one in body["alerts"]]
        assert {_key(one) for one in labels} == expected, "the webhook got other labels than were sent"
        queries = _check_mail(b, mailbox, found, expected)
        shown = _check_commands(b, expected)
        drawn = Console(width=5000, force_terminal=True, color_system=None)
        with drawn.capture() as captured:
            overview = read_overview(b.clickhouse, None, 1_000)
            drawn.print(screen(overview, 1.0, b.settings.clickhouse.url, 5_000))
        assert overview.alerts
        _no_controls("the live view", captured.get())
        assert "\n" not in line(overview, 1.0)
        assert world.parts["windows"].stop() == 0
        for name in ("alerts", "notifier"):
            assert world.parts[name].stop() == 0, world.tails()
        rows = check_rows(b, made)
        for name in ("windows", "alerts", "notifier"):
            _check_log(name, world.parts[name].log.read_text(errors="replace"))
        assert b.clickhouse.query("SELECT x FROM canary").result_rows == [(42,)]
        assert b.clickhouse.query("SHOW TABLES").result_rows == tables
        assert not (run.directory / "pwned").exists(), "a text was run by a shell"
        figures = {
            "rows equal to the oracle, byte by byte": rows, "dead letters of names that are too long": 6,
            "buckets of the largest row": _buckets(b),
            "alerts at the webhook": len(labels), "mails": len(mailbox.got),
            "queries of mails that gave the row they are about": queries, "rows shown by commands": shown,
            "counters": ", ".join(f"{name} {value}" for name, value in sorted(counters_of_windows(b).items())),
        }  # fmt: skip
        return Result(len(found), [run.seed], figures)


def _buckets(b: Any) -> int:
    """All resolutions have it, as coarse as it takes."""
    found = b.clickhouse.query(
        "SELECT length(bucket_index), scale FROM windows WHERE length(bucket_index) > 8192 "
        "UNION ALL SELECT length(bucket_index), scale FROM windows_1m WHERE length(bucket_index) > 8192"
    ).result_rows
    assert len(found) == 2
    ((buckets, scale),) = set(found)
    assert buckets <= 16_384
    assert scale < 6
    return int(buckets)


def _key(labels: dict[str, str]) -> tuple[str, str, str]:
    return labels["service"], labels["host"], labels[KEY]


def _no_controls(where: str, text: str) -> None:
    assert not (got := OBEYED & set(text)), f"{where} has {got}"


def _check_mail(b: Any, mailbox: Mailbox, found: list[str], expected: set[tuple[str, str, str]]) -> int:
    """Each message is one, to one; its query gives the row; a receiver's own template shows the text as it is."""
    queries, own = set(), []
    for message in mailbox.got:
        assert message["To"] == "sre@example.org"
        assert message["Bcc"] is message["X-Injected"] is None
        plain, rich = message.get_body(("plain",)), message.get_body(("html",))
        assert plain
        assert rich
        text, html = (part.get_content().replace("\r\n", "\n") for part in (plain, rich))
        _no_controls("a mail", text + html + message["Subject"])
        assert "<script" not in html
        if message["Subject"] == "own":
            own.append(text)
        else:
            queries |= {one.strip() for one in text.splitlines() if one.strip().startswith("SELECT ")}
    printable = ["".join(char for char in text if char in "\n\t " or char.isprintable()) for text in found]
    assert all(any(f"<<{text}>>" in one for one in own) for text in printable)
    told = set()
    for query in queries:
        rows = list(b.clickhouse.query(query).named_results())
        assert rows, f"a mail's query gives nothing: {query}"
        told |= {(one["service"], one["attributes"]["host"], one["attributes"][KEY]) for one in rows}
    assert told == expected
    assert len(queries) == len(expected)
    return len(queries)


def _check_commands(b: Any, expected: set[tuple[str, str, str]]) -> int:
    shown = 0
    queries = (
        ("alerts", "list", "--limit", "10000"),
        ("sql", "SELECT service, attributes AS labels FROM windows WHERE kind = 'gauge' LIMIT 1 BY service"),
    )
    for arguments in queries:
        for form in ("table", "json"):
            done = tailrace(*arguments, "--format", form, environment=b.environment)
            assert done.returncode == 0, done.stderr
            _no_controls(f"tailrace {arguments[0]} --format {form}", done.stdout + done.stderr)
            if form == "json":
                rows = json.loads(done.stdout)
                labels = [{"service": one["service"], **one["labels"]} for one in rows]
                assert {_key(one) for one in labels} == expected
                shown += len(rows)
    for name in ("'; DROP TABLE canary; --", "\x1b]0;owned\x07"):
        done = tailrace("alerts", "show", name, environment=b.environment)
        assert done.returncode == 1
        _no_controls("tailrace alerts show", done.stderr)
    return shown


def _check_log(name: str, text: str) -> None:
    _no_controls(f"the log of {name}", text)
    forged = [one for one in text.splitlines() if one.startswith(("level=", "event=")) or one.strip() == "."]
    assert not forged, f"lines of the log of {name} are not its own: {forged[:3]}"
