"""What is said to people: title, text and HTML of notifications, from templates.

Labels are hostile input: they are data to the templates and never templates themselves; HTML is escaped; a title is one
line; SQL literals are quoted. Templates are the operator's, and run sandboxed all the same, with bounded output.
"""

from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any, Final, NamedTuple

from jinja2 import StrictUndefined
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tailrace_schemas.alerts import Alert
from tailrace_schemas.config.receivers import Templates
from tailrace_schemas.notifications import Notification

__all__ = ["Rendered", "TemplatesError", "cause_sql", "render"]

TITLE_MAX: Final = 250
TEXT_MAX: Final = 50_000
SHOWN_MAX: Final = 20
"""Alerts in the default text, and groups in a digest."""


class Rendered(NamedTuple):
    """A message."""

    title: str
    text: str
    html: str


class TemplatesError(ValueError):
    """A template of a receiver fails with what there is; the message says which and why."""


def render(templates: Templates, notifications: Sequence[Notification]) -> Rendered:
    """One message about one notification, or about several (a digest).

    A template sees `notification` (the first), `notifications`, `firing` and `resolved` (how many alerts in all),
    `reason`, `shown`; the filters `name` (of a notification), `cause` (an alert's SQL) and `line` (a text on one line)
    besides Jinja2's own; `html` also sees `text`.

    Raises:
        TemplatesError: it fails; the caller may use the defaults, which do not.
    """
    context = {
        "notification": notifications[0],
        "notifications": notifications,
        "firing": sum(one.firing for one in notifications),
        "resolved": sum(one.resolved for one in notifications),
        "reason": notifications[0].reason,
        "shown": SHOWN_MAX,
    }
    title = " ".join(_run("title", templates.title or _default("title"), context).split())
    text = _run("text", templates.text or _default("text"), context).strip("\n") + "\n"
    html = _run("html", templates.html or _default("html"), {**context, "text": text})
    return Rendered(_cut(title, TITLE_MAX), _cut(text, TEXT_MAX), html)


@cache
def _default(what: str) -> str:
    return files("tailrace_subscribers.notify").joinpath("templates", f"{what}.jinja").read_text("utf-8")


def _run(what: str, template: str, context: dict[str, Any]) -> str:
    environment = _ESCAPING if what == "html" else _PLAIN
    found = []
    room = 2 * TEXT_MAX
    try:
        for part in environment.from_string(template).generate(context):
            found.append(part)
            room -= len(part)
            if room < 0:
                break
    except Exception as error:  # whatever it raises: a macro that calls itself ends in RecursionError
        raise TemplatesError(f"templates.{what}: {type(error).__name__}: {error}") from error
    return _clean("".join(found))


def _clean(text: str) -> str:
    """Without control characters, which terminals and mail programs obey."""
    return "".join(char for char in text if char in "\n\t" or (char.isprintable() or char == " "))


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "\N{HORIZONTAL ELLIPSIS}"


def _line(text: str) -> str:
    """On one line: what a producer sent must not look like lines of ours."""
    return " ".join(text.splitlines())


def _name(notification: Notification) -> str:
    """What it is about: the alert's name, or how many there are."""
    names = {one.alert.name for one in notification.alerts}
    if len(names) == 1:
        return names.pop()
    return f"{notification.firing + notification.resolved} alerts"


def cause_sql(alert: Alert) -> str:
    """The query that shows why an alert fires, around when it began; empty if there is none.

    Of the metric's windows, the objective's burn rates, or the changes of a service's health.
    """
    began = f"toDateTime({_literal(alert.timestamp.strftime('%Y-%m-%d %H:%M:%S'))}, 'UTC')"
    # For people to run; every value is a quoted literal.
    if alert.source.startswith("slo/"):
        slo = _literal(alert.source.removeprefix("slo/"))
        return (
            "SELECT window_end, budget_remaining, burn_rate_5m, burn_rate_30m, burn_rate_1h, burn_rate_6h, "  # noqa: S608
            f"burn_rate_3d, bad, total, frozen FROM slo_status WHERE slo = {slo} "
            f"AND window_end BETWEEN {began} - 3600 AND {began} + 600 ORDER BY window_end"
        )
    if alert.source.startswith("health/"):
        service = alert.labels.get("service", "")
        return (
            "SELECT time, check, status, reason, response_time_s, root_causes FROM health_changes "  # noqa: S608
            f"WHERE service = {_literal(service)} AND time > {began} - 86400 ORDER BY time"
        )
    if not alert.metric:
        return ""
    where = [f"metric = {_literal(alert.metric)}"]
    for name, value in sorted(alert.labels.items()):
        column = "service" if name == "service" else f"attributes[{_literal(name)}]"
        where.append(f"{column} = {_literal(value)}")
    return (
        "SELECT window_start, service, attributes, count, mean, min, max, p50, p99, last, rate FROM windows "  # noqa: S608
        f"WHERE {' AND '.join(where)} AND stream = '' "
        f"AND window_start BETWEEN {began} - 600 AND {began} + 600 "
        "ORDER BY window_start"
    )


def _literal(text: str) -> str:
    """A string literal of ClickHouse: a backslash and a quote are escaped, anything not printable as well."""
    parts = []
    for byte in text.encode():
        char = chr(byte)
        parts.append(f"\\{char}" if char in "\\'" else char if 32 <= byte < 127 else f"\\x{byte:02X}")
    return "'" + "".join(parts) + "'"


class _Sandbox(ImmutableSandboxedEnvironment):
    """Which also refuses to multiply its way to gigabytes; Jinja2 would do it while compiling."""

    intercepted_binops = frozenset({"*", "**"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if not all(isinstance(one, int | float) and abs(one) < 1e9 for one in (left, right)) or operator == "**":
            raise SecurityError(f"{operator} is for small numbers")
        return super().call_binop(context, operator, left, right)


def _environment(*, escape: bool) -> _Sandbox:
    environment = _Sandbox(autoescape=escape, undefined=StrictUndefined, keep_trailing_newline=True)
    environment.filters |= {"name": _name, "cause": cause_sql, "line": _line}
    return environment


_PLAIN: Final = _environment(escape=False)
_ESCAPING: Final = _environment(escape=True)
