"""The past of an objective from stored rows, so that a budget of 30 days survives a lost state."""

from collections.abc import Mapping
from typing import Any, Final

from tailrace_schemas.config.matcher import Matcher, matchers_of
from tailrace_schemas.config.slo import Count, SloSpec

__all__ = ["slo_history"]

_MINUTE: Final = 60
_HOUR: Final = 3600
_MINUTES_REACH_S: Final = 3 * 86_400 + _HOUR
"""Older than that the burn rates of 3 d do not look: hours will do."""
_TENS_REACH_S: Final = 6 * _HOUR + _MINUTE
"""Older than that minutes will do."""

# The rows of each stretch of time at one resolution; PREWHERE by the sorting key comes from the conditions.
_STRETCH: Final = """
SELECT toUnixTimestamp(window_start) AS start, {seconds} AS seconds, {bad} AS bad, {total} AS total
FROM {view}
WHERE stream = '' AND window_start >= {{{low}:Int64}} AND window_start < {{{high}:Int64}} AND ({matching})
GROUP BY start
HAVING total > 0
"""
_ALL: Final = "SELECT * FROM ({stretches}) ORDER BY start"
_AMOUNT: Final = "if(kind = 'distribution', toFloat64(count), ifNull(increase, 0))"
_SLOW: Final = """multiIf(
    max <= {limit:Float64}, 0., min > {limit:Float64}, toFloat64(count),
    toFloat64(arraySum((code, n) -> if(code > tailrace_bucket_code({limit:Float64}, assumeNotNull(scale)), n, 0),
                       bucket_index, bucket_count)))"""


def slo_history(client: Any, spec: SloSpec, until_us: int) -> list[tuple[int, int, float, float]]:
    """Rows (start in microseconds, seconds, good, total) of the objective's period until `until_us`, in order of time.

    Of 10 s for the last 6 hours, of a minute for the last 3 days, and of an hour before (which the rollup makes): what
    `Slo.prime` needs to be exact where it is exact. They do not overlap. `client` is one of clickhouse-connect.

    Cost: about 5,500 rows for 30 days; reads the rows of the metrics and services that are counted.

    Raises:
        clickhouse_connect.driver.exceptions.ClickHouseError
    """
    until_s = until_us // 10_000_000 * 10
    tens_s = (until_s - _TENS_REACH_S) // _MINUTE * _MINUTE
    minutes_s = (until_s - _MINUTES_REACH_S) // _HOUR * _HOUR
    first_s = (until_s - round(spec.period_s) - _HOUR) // _HOUR * _HOUR
    parameters: dict[str, Any] = {"first": first_s, "minutes": minutes_s, "tens": tens_s, "until": until_s}
    bad, total, matching = _counted(spec, parameters)
    stretches = [
        _STRETCH.format(view=view, seconds=seconds, low=low, high=high, bad=bad, total=total, matching=matching)
        for view, seconds, low, high in (
            ("windows_1h", _HOUR, "first", "minutes"),
            ("windows_1m", _MINUTE, "minutes", "tens"),
            ("windows", 10, "tens", "until"),
        )
    ]
    query = _ALL.format(stretches=" UNION ALL ".join(stretches))
    found = client.query(query, parameters=parameters).result_rows
    return [
        (int(start) * 1_000_000, int(seconds), all_of_them - min(max(wrong, 0.0), all_of_them), all_of_them)
        for start, seconds, wrong, all_of_them in found
    ]


def _counted(spec: SloSpec, parameters: dict[str, Any]) -> tuple[str, str, str]:
    """SQL of the bad events, of all events, and of the condition on rows; adds the parameters it names."""
    indicator = spec.indicator
    if indicator.latency is not None:
        latency = indicator.latency
        parameters["limit"] = latency.below
        matching = _condition(Count(metric=latency.metric, where=latency.where), spec.service, "total", parameters)
        return f"sum({_SLOW})", "sum(toFloat64(count))", f"{matching} AND kind = 'distribution'"
    part, total = indicator.counts()
    of_part = _condition(part, spec.service, "part", parameters)
    of_total = _condition(total, spec.service, "total", parameters)
    events = f"sumIf({_AMOUNT}, {of_total})"
    counted = f"sumIf({_AMOUNT}, {of_part})"
    kinds = "kind IN ('distribution', 'counter', 'cumulative', 'event')"
    bad = counted if indicator.counts_bad else f"{events} - {counted}"
    return bad, events, f"({of_part} OR {of_total}) AND {kinds}"


def _condition(count: Count, service: str, prefix: str, parameters: dict[str, Any]) -> str:
    parameters[f"{prefix}_metric"] = count.metric
    parts = [f"metric = {{{prefix}_metric:String}}"]
    where: Mapping[str, str] = count.where
    matchers = list(matchers_of(where))
    if "service" not in where:
        matchers.append(Matcher("service", "=", service))
    for number, matcher in enumerate(matchers):
        label, value = f"{prefix}_label_{number}", f"{prefix}_value_{number}"
        parameters[value] = matcher.value
        column = "service"
        if matcher.label != "service":
            parameters[label] = matcher.label
            column = f"attributes[{{{label}:String}}]"
        if matcher.operator in ("=", "!="):
            parts.append(f"{column} {matcher.operator} {{{value}:String}}")
        else:
            parameters[value] = f"^(?s:{matcher.value})$"
            negated = "NOT " if matcher.operator == "!~" else ""
            parts.append(f"{negated}match({column}, {{{value}:String}})")
    return f"({' AND '.join(parts)})"
