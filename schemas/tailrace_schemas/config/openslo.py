"""OpenSLO v1 documents as objectives of ours.

Source: github.com/OpenSLO/OpenSLO, README.md (openslo/v1). What is read: SLO, SLI, AlertPolicy, AlertCondition; a
`metricSource` has `type: Tailrace` and in its `spec` a `metric` and, if need be, `where`. Service is a grouping and
AlertNotificationTarget a name that becomes a tag of the alerts, for routes to match. What cannot be done as
the document says is refused with the reason, never left out.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from pydantic import ValidationError

from tailrace_schemas.config.slo import SloSpec
from tailrace_schemas.config.source import ConfigError, Document, Item, Key, Problem, key_text

__all__ = ["API_VERSION", "read_openslo"]

API_VERSION: Final = "openslo/v1"
_KINDS: Final = ("SLO", "SLI", "AlertPolicy", "AlertCondition", "AlertNotificationTarget", "Service", "DataSource")
_SEVERITIES: Final = {
    "page": "critical", "ticket": "warning", "critical": "critical", "error": "error", "warning": "warning",
    "info": "info",
}  # fmt: skip
_DURATION: Final = re.compile(r"(\d+)([mhdw])")
_METADATA: Final = frozenset({"name", "displayName", "labels", "annotations"})


class _At(NamedTuple):
    """A mapping in a document, and where."""

    document: Document
    key: Key
    value: Mapping[str, Any]

    def refuse(self, message: str, *inside: str | int) -> ConfigError:
        return ConfigError([self.document.problem(self.key + inside, message)])

    def only(self, *allowed: str) -> None:
        """Raises ConfigError: there are other keys."""
        for name in self.value:
            if name not in allowed:
                raise self.refuse(f"there is no such key. Allowed: {', '.join(allowed)}", name)

    def inner(self, *keys: str | int) -> "_At":
        """Raises ConfigError: there is no mapping."""
        value: Any = self.value
        for number, key in enumerate(keys):
            try:
                value = value[key]
            except (LookupError, TypeError):
                raise self.refuse(f"{keys[number]!r} is missing", *keys[:number]) from None
        if not isinstance(value, dict):
            raise self.refuse("must be a mapping of keys to values", *keys)
        return _At(self.document, self.key + keys, value)

    def text(self, key: str) -> str:
        """Raises ConfigError: there is no text."""
        value = self.value.get(key)
        if key not in self.value:
            raise self.refuse(f"{key!r} is missing")
        if not isinstance(value, str) or not value:
            raise self.refuse("must be text", key)
        return value

    def items(self, key: str) -> "list[_At]":
        """Raises ConfigError: it is no list of mappings."""
        found = self.value.get(key, [])
        if not isinstance(found, list):
            raise self.refuse("must be a list", key)
        return [self.inner(key, number) for number in range(len(found))]


def read_openslo(documents: Sequence[Document]) -> list[Item]:
    """The objectives of all documents together, which name each other.

    An SLO of one objective has its name; of several, the name and their number: `checkout.1`.

    Raises:
        ConfigError: with the first thing that is wrong in each SLO, and in each document of a kind of no use.
    """
    reader = _Reader()
    problems: list[Problem] = []
    slos = []
    for document in documents:
        try:
            found = reader.add(document)
            if found is not None:
                slos.append(found)
        except ConfigError as error:
            problems += error.problems
    items = []
    for slo in slos:
        try:
            items += list(reader.objectives(slo))
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return items


class _Reader:
    def __init__(self) -> None:
        self._named: dict[tuple[str, str], _At] = {}

    def add(self, document: Document) -> _At | None:
        """Remembers a document; an SLO is returned."""
        whole = _At(document, (), document.value)
        whole.only("apiVersion", "kind", "metadata", "spec")
        kind = whole.text("kind")
        if kind not in _KINDS:
            raise whole.refuse(f"{kind!r} is no kind of {API_VERSION}; there is: {', '.join(_KINDS)}", "kind")
        metadata = whole.inner("metadata")
        metadata.only(*sorted(_METADATA))
        name = metadata.text("name")
        if kind == "DataSource":
            raise whole.refuse("data sources are not supported: Tailrace reads its own metrics and no other's", "kind")
        before = self._named.setdefault((kind, name), whole)
        if before is not whole:
            where = f"{before.document.file}:{before.document.line(())}"
            raise metadata.refuse(f"there is another {kind} {name!r}, at {where}", "name")
        return whole if kind == "SLO" else None

    def _referred(self, kind: str, at: _At, key: str) -> _At:
        name = at.text(key)
        found = self._named.get((kind, name))
        if found is None:
            raise at.refuse(f"there is no {kind} named {name!r} in these files", key)
        return found.inner("spec")

    # -- SLO -------------------------------------------------------------------------------------------

    def objectives(self, slo: _At) -> Iterator[Item]:
        spec = slo.inner("spec")
        spec.only(
            "description", "service", "indicator", "indicatorRef", "timeWindow", "budgetingMethod", "objectives",
            "alertPolicies",
        )  # fmt: skip
        method = spec.text("budgetingMethod")
        if method != "Occurrences":
            raise spec.refuse(
                f"{method!r} is not supported: Tailrace weighs by events, which is Occurrences", "budgetingMethod"
            )
        name = slo.inner("metadata").text("name")
        base: dict[str, Any] = {
            "service": spec.text("service"),
            "description": str(spec.value.get("description", "")),
            "period": _period(spec),
        }
        base |= self._alerting(spec)
        indicator = self._indicator(spec)
        objectives = spec.items("objectives")
        if not objectives:
            raise spec.refuse("there must be at least one", "objectives")
        for number, objective in enumerate(objectives, 1):
            target, counted = _objective(objective, indicator)
            mine = name if len(objectives) == 1 else f"{name}.{number}"
            native = base | {"name": mine, "objective": target, "indicator": counted}
            yield Item("slo", mine, _model(objective, native), slo.document, objective.key)

    def _indicator(self, spec: _At) -> _At:
        if ("indicator" in spec.value) == ("indicatorRef" in spec.value):
            raise spec.refuse("give either `indicator` or `indicatorRef`")
        if "indicatorRef" in spec.value:
            found = self._referred("SLI", spec, "indicatorRef")
        else:
            indicator = spec.inner("indicator")
            indicator.only("apiVersion", "kind", "metadata", "spec")
            found = indicator.inner("spec")
        found.only("description", "thresholdMetric", "ratioMetric")
        if ("thresholdMetric" in found.value) == ("ratioMetric" in found.value):
            raise found.refuse("give either `thresholdMetric` or `ratioMetric`")
        return found

    # -- alerts ----------------------------------------------------------------------------------------

    def _alerting(self, spec: _At) -> dict[str, Any]:
        """`alerts` and `tags`; nothing where there are no policies, so that the recommended alerts hold."""
        if "alertPolicies" not in spec.value:
            return {}
        alerts: list[dict[str, Any]] = []
        tags: list[str] = []
        for entry in spec.items("alertPolicies"):
            policy = entry
            if "alertPolicyRef" in entry.value:
                entry.only("alertPolicyRef")
                policy = self._referred("AlertPolicy", entry, "alertPolicyRef")
            else:
                entry.only("apiVersion", "kind", "metadata", "spec")
                policy = entry.inner("spec")
            alerts += self._policy(policy)
            tags += [self._target(one) for one in policy.items("notificationTargets")]
        return {"alerts": alerts, "tags": list(dict.fromkeys(tags))}

    def _policy(self, policy: _At) -> list[dict[str, Any]]:
        policy.only(
            "description", "alertWhenNoData", "alertWhenResolved", "alertWhenBreaching", "conditions",
            "notificationTargets",
        )  # fmt: skip
        if policy.value.get("alertWhenNoData"):
            raise policy.refuse(
                "is not supported: without data an objective's alerts stay as they are; "
                "write an alert rule with `op: absent` to be told of missing data",
                "alertWhenNoData",
            )
        if not policy.value.get("alertWhenBreaching", True):
            raise policy.refuse("false is not supported: it would leave no alert to be told", "alertWhenBreaching")
        conditions = policy.items("conditions")
        if len(conditions) != 1:
            raise policy.refuse("must have exactly one condition", "conditions")
        condition = conditions[0]
        if "conditionRef" in condition.value:
            condition.only("conditionRef")
            return [_condition(self._referred("AlertCondition", condition, "conditionRef"))]
        condition.only("apiVersion", "kind", "metadata", "spec")
        return [_condition(condition.inner("spec"))]

    def _target(self, entry: _At) -> str:
        if "targetRef" in entry.value:
            entry.only("targetRef")
            return entry.text("targetRef")
        return entry.inner("metadata").text("name")


def _condition(spec: _At) -> dict[str, Any]:
    """A burn rate over one window. All four operators mean: when it burns faster.

    The specification's own example writes `op: lte` for "exceeds 2": the threshold is at most the burn rate. An alert
    on a budget that burns slowly would be one on health.
    """
    spec.only("description", "severity", "condition")
    severity = spec.text("severity")
    if severity not in _SEVERITIES:
        raise spec.refuse(f"{severity!r} is not known; there is: {', '.join(_SEVERITIES)}", "severity")
    condition = spec.inner("condition")
    condition.only("kind", "op", "threshold", "lookbackWindow", "alertAfter")
    kind = condition.value.get("kind", "burnrate")
    if kind != "burnrate":
        raise condition.refuse(f"{kind!r} is not supported; there is: burnrate", "kind")
    if condition.text("op") not in ("lte", "gte", "lt", "gt"):
        raise condition.refuse("must be one of lte, gte, lt, gt", "op")
    return {
        "severity": _SEVERITIES[severity],
        "long": _duration(condition, "lookbackWindow"),
        "factor": _number(condition, "threshold"),
        "for": _duration(condition, "alertAfter") if "alertAfter" in condition.value else "0m",
    }


def _period(spec: _At) -> str:
    windows = spec.items("timeWindow")
    if len(windows) != 1:
        raise spec.refuse("must have exactly one window", "timeWindow")
    window = windows[0]
    window.only("duration", "isRolling", "calendar")
    if "calendar" in window.value or window.value.get("isRolling") is not True:
        raise window.refuse("is not supported unless it has `isRolling: true`: budgets of Tailrace roll")
    return _duration(window, "duration")


def _duration(at: _At, key: str) -> str:
    text = at.text(key)
    if not _DURATION.fullmatch(text):
        raise at.refuse(f"{text!r} is not supported: a number with m, h, d or w, as in 28d; months vary", key)
    return text


def _number(at: _At, key: str) -> float:
    value = at.value.get(key)
    if key not in at.value:
        raise at.refuse(f"{key!r} is missing")
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise at.refuse("must be a number", key)
    return value


def _objective(objective: _At, indicator: _At) -> tuple[float | str, dict[str, Any]]:
    """The target, and what is counted."""
    for name in ("timeSliceTarget", "timeSliceWindow"):
        if name in objective.value:
            raise objective.refuse("is not supported: Tailrace weighs by events, which has no slices", name)
    objective.only("displayName", "op", "value", "target", "targetPercent")
    if ("target" in objective.value) == ("targetPercent" in objective.value):
        raise objective.refuse("give either `target` or `targetPercent`")
    percent = "targetPercent" in objective.value
    target: float | str = f"{_number(objective, 'targetPercent')}%" if percent else _number(objective, "target")
    if "ratioMetric" in indicator.value:
        for name in ("op", "value"):
            if name in objective.value:
                raise objective.refuse("is for a thresholdMetric; the indicator is a ratioMetric", name)
        return target, _ratio(indicator.inner("ratioMetric"))
    if objective.text("op") not in ("lte", "lt"):
        raise objective.refuse(
            "is not supported: events are good up to a value (lte, lt), as a latency's are; for more than a value "
            "write an alert rule",
            "op",
        )
    metric = indicator.inner("thresholdMetric")
    metric.only("metricSource")
    return target, {"latency": _metric(metric) | {"below": _number(objective, "value")}}


def _ratio(ratio: _At) -> dict[str, Any]:
    for name in ("raw", "rawType"):
        if name in ratio.value:
            raise ratio.refuse("is not supported: a ratio alone has lost how many events it stands for", name)
    ratio.only("counter", "good", "bad", "total")
    found: dict[str, Any] = {}
    for name in ("good", "bad", "total"):
        if name in ratio.value:
            metric = ratio.inner(name)
            metric.only("metricSource")
            found[name] = _metric(metric)
    return found


def _metric(metric: _At) -> dict[str, Any]:
    source = metric.inner("metricSource")
    if "metricSourceRef" in source.value:
        raise source.refuse("data sources are not supported: write `type: Tailrace`", "metricSourceRef")
    source.only("type", "spec")
    kind = source.text("type")
    if kind != "Tailrace":
        raise source.refuse(
            f"{kind!r} is not supported: queries of other systems cannot be run here; write `type: Tailrace` and "
            "in `spec` a `metric` and `where`",
            "type",
        )
    spec = source.inner("spec")
    spec.only("metric", "where")
    return dict(spec.value)


def _model(objective: _At, native: dict[str, Any]) -> SloSpec:
    try:
        return SloSpec.model_validate_json(json.dumps(native))
    except ValidationError as error:
        wrong = [
            f"{key_text(one['loc'] + one.get('ctx', {}).get('key', ()))}: {one['msg']}"
            for one in error.errors(include_url=False, include_input=False)
        ]
        raise objective.refuse("; ".join(wrong)) from None
