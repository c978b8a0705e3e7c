"""`tailrace anomalies compare`: what changed of a service with a deploy or another event."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import typer
from tailrace_flows.core.change import Change, compare
from tailrace_schemas.config import duration_text, parse_duration

from tailrace_infra.alerts_command import ask
from tailrace_infra.output import Format, write_rows

__all__ = ["compare_event"]

FINE_S: Final = 2 * 3600
"""Sides up to this are compared by windows of 10 s, longer ones by those of 1 m."""
SERIES_MAX: Final = 5_000
CONFIDENT: Final = 0.95

_EVENT: Final = """
SELECT toUnixTimestamp64Micro(time), name, stream FROM events
WHERE service = {service:String} AND {name:String} IN ('', name) AND {stream:String} IN ('', stream)
ORDER BY time DESC LIMIT 1
"""
_POINTS: Final = """
SELECT metric, attributes, any(unit), any(kind),
       groupArray(at) AS times, groupArray(value) AS values
FROM (
    SELECT metric, attributes, unit, kind, toInt64(toUnixTimestamp(window_start)) AS at,
           multiIf(kind = 'distribution', {figure}, kind = 'gauge', mean, rate) AS value
    FROM {view}
    WHERE service = {{service:String}} AND stream = {{stream:String}} AND {{metric:String}} IN ('', metric)
      AND toUnixTimestamp(window_end) > {{since:Int64}} AND toUnixTimestamp(window_start) < {{until:Int64}}
    ORDER BY metric, attributes, window_start
)
WHERE value IS NOT NULL GROUP BY metric, attributes ORDER BY metric, attributes LIMIT {{limit:UInt32}}
"""
_COLUMNS: Final = (
    "metric", "labels", "figure", "before", "after", "shift", "low", "high", "change_percent", "confidence", "points",
)  # fmt: skip


def compare_event(
    service: Annotated[str, typer.Option("--service", "-s", help="Whose series.")],
    at: Annotated[
        str, typer.Option("--at", help="When it happened: RFC 3339, or Unix seconds. [default: its last event]")
    ] = "",
    event: Annotated[str, typer.Option("--event", help="The last event of this name only, such as deploy.")] = "",
    side: Annotated[str, typer.Option("--window", help="How far to look before and after.")] = "30m",
    settle: Annotated[str, typer.Option("--settle", help="Time after it to leave out: restarts, cold caches.")] = "0s",
    metric: Annotated[str, typer.Option("--metric", help="Only this metric.")] = "",
    figure: Annotated[
        Literal["p50", "p90", "p95", "p99", "p999", "mean"], typer.Option(help="Of distributions, of each window.")
    ] = "p95",
    stream: Annotated[str, typer.Option("--stream", help="Of a replay. [default: the event's, or the live one]")] = "",
    every: Annotated[bool, typer.Option("--all", help="Series too that are not surely changed.")] = False,
    data_dir: Annotated[
        Path | None,
        typer.Option("--data-dir", help="Directory of an embedded stack.", file_okay=False, show_default=False),
    ] = None,
    format: Annotated[Format, typer.Option("--format", "-f", help="How rows are printed.")] = Format.TABLE,
) -> None:
    """Compare the time after a deploy (or any event) with the time before: what got slower, by how much, how surely.

    Without --at, the event is the last sample of kind `event` of the service. Of distributions a quantile of each
    window is compared, of counters the rate, of gauges the mean. Shown are series that changed with a confidence of
    95 % for all of them together; shift is the median difference, low and high its interval of 95 %.

    Examples:

        tailrace anomalies compare --service checkout --event deploy

        tailrace anomalies compare -s checkout --at 2026-03-01T14:05:00Z --window 1h --settle 2m --format json
    """
    from tailrace_infra.cli import complain, fail

    seconds = _seconds(side, "--window")
    settle_s = _seconds(settle, "--settle")
    if seconds <= 0:
        raise typer.BadParameter("nothing is nothing to compare with", param_hint="--window")
    what = "the time given"
    if at:
        at_s = _moment(at)
    else:
        _, found = ask(data_dir, _EVENT, {"service": service, "name": event, "stream": stream})
        if not found:
            which = f"{f' named {event!r}' if event else ''}{f' in stream {stream!r}' if stream else ''}"
            fail(f"service {service!r} has no event{which}: say --at, or send one")
        at_us, what, stream = found[0]
        at_s = at_us / 1e6
    step_s = 10 if seconds <= FINE_S else 60
    query = _POINTS.format(figure=figure, view="windows" if step_s == 10 else "windows_1m")
    parameters = {
        "service": service, "stream": stream, "metric": metric, "since": int(at_s - seconds),
        "until": int(at_s + settle_s + seconds), "limit": SERIES_MAX + 1,
    }  # fmt: skip
    _, series = ask(data_dir, query, parameters)
    changes = []
    for name, labels, unit, kind, times, values in series[:SERIES_MAX]:
        before = [value for time, value in zip(times, values, strict=True) if time + step_s <= at_s]
        after = [value for time, value in zip(times, values, strict=True) if time >= at_s + settle_s]
        change = compare(before, after)
        if len(before) > 1 < len(after):
            changes.append((change, (name, labels, _figure(kind, figure, unit)), f"{len(before)}, {len(after)}"))
    # Of so many series some differ by chance (Bonferroni).
    needed = 1 - (1 - CONFIDENT) / max(1, len(changes))
    rows = [_row(*one) for one in changes if every or one[0].confidence >= needed]
    rows.sort(key=lambda row: (-row[9], -abs(row[8] or 0), row[0], sorted(row[1].items())))
    write_rows(_COLUMNS, rows, format)
    moment = datetime.fromtimestamp(at_s, UTC)
    sure = sum(change.confidence >= needed for change, *_ in changes)
    complain(
        f"{what} at {moment:%Y-%m-%d %H:%M:%S} UTC: {sure} of {len(changes)} series changed "
        f"({duration_text(seconds)} before and after)"
    )
    if len(series) > SERIES_MAX:
        complain(f"only the first {SERIES_MAX:,} series, by metric and labels, were compared: --metric narrows it down")


def _row(change: Change, series: tuple[str, dict[str, str], str], points: str) -> tuple[Any, ...]:
    percent = 100 * change.shift / abs(change.before) if change.before else None
    return (
        *series, change.before, change.after, change.shift, change.low, change.high, percent, change.confidence, points,
    )  # fmt: skip


def _figure(kind: str, figure: str, unit: str) -> str:
    what = {"distribution": figure, "gauge": "mean"}.get(kind, "rate")
    per = "" if what != "rate" else "/s"
    return f"{what} ({unit}{per})" if unit else f"{what}{' (1/s)' if per else ''}"


def _seconds(text: str, option: str) -> float:
    try:
        return parse_duration(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=option) from None


def _moment(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        pass
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is no time: RFC 3339 (2026-01-01T00:00:00Z), or Unix seconds", param_hint="--at"
        ) from None
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
