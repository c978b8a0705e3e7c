"""`tailrace incidents`: what was wrong, for how long, and what alerting was worth."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from tailrace_flows.core.alerting.incidents import (
    accuracy,
    availability,
    down_stretches,
    interventions,
    mean_time_to_repair_s,
)
from tailrace_schemas.alerts import Severity, time_of
from tailrace_schemas.clock import now_us
from tailrace_schemas.config import parse_duration
from tailrace_schemas.incidents import Impact, Incident, IncidentStatus, Stretch

from tailrace_infra.alerts_command import ask
from tailrace_infra.output import Format, write_rows

__all__ = ["figures", "register"]

incidents_app = typer.Typer(help="Incidents, and the figures that they give.", no_args_is_help=True)

DataDir = Annotated[
    Path | None, typer.Option("--data-dir", help="Directory of an embedded stack.", file_okay=False, show_default=False)
]
FormatOption = Annotated[Format, typer.Option("--format", "-f", help="How rows are printed.")]
ALL: Final = "*"
"""What the row of all services is called."""

_LIST: Final = """
SELECT id, service, status, severity, start_time, end_time, seconds_to_repair, downtime_s, length(alerts) AS alerts,
       false_positives, acknowledged_by, impact, resolution
FROM incidents
WHERE (status = 'open' OR end_time > {since:DateTime64(6)}) AND ({open:UInt8} = 0 OR status = 'open')
ORDER BY status = 'open' DESC, start_time DESC LIMIT {limit:UInt32}
"""
_SHOW: Final = """
SELECT id, severity, status, name, started_at, acknowledged_at, acknowledged_by, resolved_at, resolved_by,
       false_positive, description, annotations
FROM alerts WHERE id IN (SELECT arrayJoin(alerts) FROM incidents WHERE id = {id:String}) ORDER BY started_at, id
"""
_INCIDENTS: Final = """
SELECT id, service, status, severity, start_time, end_time, alerts, false_positives, interventions
FROM incidents WHERE start_time < {end:DateTime64(6)} AND (end_time IS NULL OR end_time > {start:DateTime64(6)})
ORDER BY start_time, id
"""
_DOWN: Final = """
SELECT id, started_at, resolved_at FROM alerts
WHERE severity = {critical:String} AND NOT ifNull(false_positive, false)
  AND started_at < {end:DateTime64(6)} AND (resolved_at IS NULL OR resolved_at > {start:DateTime64(6)})
"""
_SERVICES: Final = "SELECT DISTINCT service FROM health WHERE service != ''"


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    app.add_typer(incidents_app, name="incidents")


@incidents_app.command("list")
def list_incidents(
    since: Annotated[str, typer.Option(help="Those that ended within so long: 12h, 7d.")] = "7d",
    only_open: Annotated[bool, typer.Option("--open", help="Only those that are open.")] = False,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="At most so many.")] = 100,
    data_dir: DataDir = None,
    format: FormatOption = Format.TABLE,
) -> None:
    """Show incidents, the open ones first.

    Examples:

        tailrace incidents list --since 30d

        tailrace incidents list --open --format json
    """
    start, _ = _period(since)
    write_rows(*ask(data_dir, _LIST, {"since": start, "open": int(only_open), "limit": limit}), format)


@incidents_app.command("show")
def show(
    incident: Annotated[str, typer.Argument(help="The incident's id; its first characters will do.")],
    data_dir: DataDir = None,
    format: FormatOption = Format.TABLE,
) -> None:
    """Show the alerts of one incident, in the order in which they began.

    Examples:

        tailrace incidents show 3f9c2a1b
    """
    from tailrace_infra.cli import fail

    _, found = ask(data_dir, "SELECT id FROM incidents WHERE startsWith(id, {id:String}) LIMIT 2", {"id": incident})
    if len(found) != 1:
        fail(f"{'no incident has' if not found else 'several incidents have'} an id that begins with {incident!r}")
    write_rows(*ask(data_dir, _SHOW, {"id": found[0][0]}), format)


@incidents_app.command("report")
def report(
    since: Annotated[str, typer.Option(help="How far back: 24h, 30d.")] = "30d",
    weight: Annotated[
        list[str] | None,
        typer.Option(help="SERVICE=NUMBER: how much its availability counts, 1 by default; may be repeated."),
    ] = None,
    data_dir: DataDir = None,
    format: FormatOption = Format.TABLE,
) -> None:
    """Show availability, downtime, time to repair and the accuracy of alerts, by service and for all.

    A service is down while an alert of severity critical is active; alerts that were marked as false positives do not
    count. Services are those with incidents in that time, with health checks, or with a --weight. The row * has the
    weighted mean of their availability.

    Examples:

        tailrace incidents report --since 7d --weight checkout=5

        tailrace incidents report --format json
    """
    start, end = _period(since)
    weights = dict(_weight(one) for one in weight or ())
    times = {"start": start, "end": end}
    _, services = ask(data_dir, _SERVICES, {})
    _, rows = ask(data_dir, _INCIDENTS, times)
    _, down = ask(data_dir, _DOWN, {**times, "critical": Severity.CRITICAL.value})
    incidents = list(
        _incidents(rows, {alert: Stretch(start=_utc(began), end=_utc(ended)) for alert, began, ended in down})
    )
    for (service,) in [*services, *((one.service,) for one in incidents)]:
        weights.setdefault(service, 1.0)
    shown = figures(incidents, start, end, weights)
    columns = ("service", *FIGURES)
    write_rows(columns, [[name, *(of_service[one] for one in FIGURES)] for name, of_service in shown.items()], format)


FIGURES: Final = (
    "availability", "downtime_s", "incidents", "open", "mttr_s", "alerts", "false_positives", "accuracy",
    "interventions",
)  # fmt: skip
"""Columns of the report."""


def figures(
    incidents: Sequence[Incident], start: datetime, end: datetime, weights: Mapping[str, float]
) -> dict[str, dict[str, Any]]:
    """FIGURES by service and for ALL, of the services of `weights`; none without any.

    `mttr_s` and `accuracy` are None where there is nothing to take them from.
    """
    if not weights:
        return {}
    mean, by_service = availability(incidents, start, end, weights)
    found = {}
    for service in [*sorted(weights), ALL]:
        own = [one for one in incidents if service in (one.service, ALL) and one.service in weights]
        parts = by_service.values() if service == ALL else [by_service[service]]
        found[service] = {
            "availability": mean if service == ALL else by_service[service].availability,
            "downtime_s": sum(one.downtime_s for one in parts),
            "incidents": sum(one.incidents for one in parts),
            "open": sum(one.counts and one.status is IncidentStatus.OPEN for one in own),
            "mttr_s": mean_time_to_repair_s(own),
            "alerts": sum(len(one.alerts) for one in own),
            "false_positives": sum(one.false_positives for one in own),
            "accuracy": accuracy(own),
            "interventions": interventions(own),
        }
    return found


def _incidents(rows: Iterable[Sequence[Any]], down: Mapping[str, Stretch]) -> Iterable[Incident]:
    """From rows of _INCIDENTS; `down`: when which alert of severity critical was active."""
    for key, service, status, severity, began, ended, alerts, false_positives, done in rows:
        yield Incident(
            id=key,
            service=service,
            status=IncidentStatus(status),
            severity=Impact(severity),
            start_time=_utc(began),
            end_time=_utc(ended),
            alerts=tuple(alerts),
            false_positives=false_positives,
            downtime=down_stretches(down[alert] for alert in alerts if alert in down),
            interventions=done,
        )


def _utc(time: Any) -> Any:
    """The database's times are in UTC, and do not say so."""
    return None if time is None else time.replace(tzinfo=UTC)


def _period(since: str) -> tuple[datetime, datetime]:
    try:
        length = timedelta(seconds=parse_duration(since))
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--since") from None
    if not length:
        raise typer.BadParameter("must be longer than nothing", param_hint="--since")
    end = time_of(now_us())
    return end - length, end


def _weight(text: str) -> tuple[str, float]:
    service, _, number = text.rpartition("=")
    try:
        weight = float(number)
    except ValueError:
        weight = -1.0
    if not service or not 0 < weight < float("inf"):
        raise typer.BadParameter(
            f"{text!r} is not of the form SERVICE=NUMBER, with a number above 0", param_hint="--weight"
        )
    return service, weight
