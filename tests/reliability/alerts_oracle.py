"""Which alert events there must be, by rules that are judged the slow way."""

from dataclasses import dataclass, field
from math import isnan

from tailrace_schemas.alerts import Command, CommandKind, Labels, Transition, alert_id, event_id
from tailrace_schemas.config import ConfigModel
from tailrace_schemas.config.rules import NoData, Rule, RuleGroup
from tailrace_schemas.samples import Series

from tests.flows.alerting.rows import Row, S, slow_values

__all__ = ["ALL", "GOOD", "STEP_S", "Judge"]

STEP_S = 10
"""Rules are judged so often."""
GOOD, ALL = Series("ok", "counter", "1"), Series("all", "counter", "1")
"""What the objective goes by."""

Labelled = dict[Labels, float]


@dataclass
class _State:
    """A label set whose condition holds, or whose alert goes on."""

    since_us: int
    paused_us: int = 0
    absent_us: int | None = None
    alert: str = ""
    quenched: bool = False


@dataclass
class _Known:
    """An alert, for as long as commands may name it."""

    source: str
    labels: Labels
    sequence: int = 0
    status: str = "active"
    marked: bool = False
    commands: set[str] = field(default_factory=set)


class Judge:
    """What must be told: all rows in a dictionary, and each condition judged at each time, the slow way."""

    def __init__(self, config: dict[str, ConfigModel]) -> None:
        self.config = dict(config)
        self.rows: dict[tuple[str, Series, int], Row] = {}
        self.watermarks_s: dict[str, int] = {}
        self.judged_s: int | None = None
        self.listening = True
        """Whether it is still waited for who else there is; nothing is judged meanwhile."""
        self.states: dict[str, dict[Labels, _State]] = {}
        self.last_us: dict[str, int] = {}
        """When each rule was judged last."""
        self.alerts: dict[str, _Known] = {}
        self.told: dict[str, tuple[str, str, int]] = {}
        """Event id -> (alert, transition, sequence)."""

    def hear(self, service: str, end_s: int, rows: list[Row]) -> None:
        for row in rows:
            key = (row.service, row.series, row.end_s)
            if key not in self.rows or row.version > self.rows[key].version:
                self.rows[key] = row
        if rows and self.judged_s is None:
            self.judged_s = min(row.end_s for row in rows) - STEP_S
        self.watermarks_s[service] = max(end_s, self.watermarks_s.get(service, 0))
        self.reach()

    def reach(self) -> None:
        """Judges what all services have closed."""
        reached_s = min(self.watermarks_s.values())
        while not self.listening and self.judged_s is not None and self.judged_s + STEP_S <= reached_s:
            self.judged_s += STEP_S
            self._judge(self.judged_s)

    def configure(self, config: dict[str, ConfigModel]) -> None:
        before, self.config = self._rules(), dict(config)
        assert self.judged_s is not None
        for source in before.keys() - self._rules().keys():
            for labels, state in sorted(self.states.pop(source, {}).items()):
                if state.alert:
                    self._tell(state.alert, Transition.RESOLVED, f"window:{self.judged_s * S}")
                    self.alerts[state.alert].status = "resolved"
                    del labels
            self.last_us.pop(source, None)
            # A rule that is gone knows nothing of its alerts any more.
            self.alerts = {name: one for name, one in self.alerts.items() if one.source != source}

    def command(self, command: Command) -> None:
        known = self.alerts.get(command.alert_id)
        if known is None or command.id in known.commands:
            return
        known.commands.add(command.id)
        cause = f"command:{command.id}"
        refused = {
            CommandKind.ACKNOWLEDGE: known.status != "active",
            CommandKind.RESOLVE: known.status == "resolved",
            CommandKind.MARK: known.marked == command.false_positive,
        }.get(command.kind, False)
        if refused:
            self._tell(command.alert_id, Transition.REJECTED, cause)
            return
        transition = {
            CommandKind.ACKNOWLEDGE: Transition.ACKNOWLEDGED,
            CommandKind.RESOLVE: Transition.RESOLVED,
            CommandKind.MARK: Transition.MARKED,
        }[command.kind]
        self._tell(command.alert_id, transition, cause)
        if command.kind is CommandKind.MARK:
            known.marked = command.false_positive
        else:
            known.status = transition.value
        if command.kind is CommandKind.RESOLVE:
            state = self.states[known.source][known.labels]
            state.alert, state.quenched = "", True

    def _rules(self) -> dict[str, Rule]:
        groups = [one for one in self.config.values() if isinstance(one, RuleGroup)]
        return {f"{group.name}/{rule.alert}": rule for group in groups for rule in group.rules}

    def _judge(self, t_s: int) -> None:
        rows = [row for row in self.rows.values() if t_s - 400 < row.end_s <= t_s]
        for source, rule in self._rules().items():
            values = {labels: one["value"] for labels, one in slow_values(rule, STEP_S, rows, t_s).items()}
            self._rule(source, rule, t_s * S, values)
        if "slo/it" in self.config:
            self._objective(t_s)

    def _rule(self, source: str, rule: Rule, t_us: int, values: Labelled) -> None:
        states = self.states.setdefault(source, {})
        elapsed_us = t_us - self.last_us.get(source, t_us)
        self.last_us[source] = t_us
        assert isinstance(rule.threshold, float)
        threshold = rule.threshold
        clear = threshold if rule.clear_threshold is None else rule.clear_threshold
        for labels in sorted({*values, *states}):
            value = values.get(labels, float("nan"))
            state = states.get(labels)
            if isnan(value):
                if state is not None and state.quenched and labels not in values:
                    del states[labels]
                elif rule.no_data is NoData.ALERT and (state is not None or labels in values):
                    self._holds(source, rule.for_s, labels, t_us)
                elif state is not None and rule.no_data is NoData.KEEP:
                    state.paused_us += elapsed_us
                elif state is not None:
                    self._ends(source, rule.keep_firing_for_s, labels, t_us, elapsed_us)
            elif value > threshold:
                self._holds(source, rule.for_s, labels, t_us)
            elif state is not None and value > clear and (state.alert or state.quenched):
                state.absent_us = None
            elif state is not None:
                self._ends(source, rule.keep_firing_for_s, labels, t_us, elapsed_us)

    def _holds(self, source: str, for_s: float, labels: Labels, t_us: int) -> None:
        state = self.states[source].setdefault(labels, _State(t_us))
        state.absent_us = None
        if state.alert or state.quenched or t_us - state.since_us - state.paused_us < for_s * S:
            return
        state.alert = alert_id(source, labels, state.since_us)
        self.alerts[state.alert] = _Known(source, labels, sequence=-1)
        self._tell(state.alert, Transition.ACTIVE, f"window:{t_us}")

    def _ends(self, source: str, keep_s: float, labels: Labels, t_us: int, elapsed_us: int) -> None:
        state = self.states[source][labels]
        if not state.alert:
            del self.states[source][labels]
            return
        state.absent_us = 0 if state.absent_us is None else state.absent_us + elapsed_us
        if state.absent_us >= keep_s * S:
            self._tell(state.alert, Transition.RESOLVED, f"window:{t_us}")
            self.alerts[state.alert].status = "resolved"
            del self.states[source][labels]

    def _objective(self, t_s: int) -> None:
        def events(seconds: int) -> tuple[float, float]:
            good, total = (
                sum(
                    float(value or 0)
                    for (service, series, end_s), row in self.rows.items()
                    if service == "web" and series == wanted and t_s - seconds < end_s <= t_s
                    for value in row.values
                )
                for wanted in (GOOD, ALL)
            )
            return total - good, total

        labels: Labels = (("alert", "burn-critical"), ("service", "web"), ("slo", "it"))
        states = self.states.setdefault("slo/it", {})
        (bad, total), (short_bad, short_total) = events(3600), events(300)
        if not short_total or not total:
            return  # no evidence; there is no `for`, so nothing is paused
        burns = bad / total > 0.144 * (1 + 1e-9) and short_bad / short_total > 0.144 * (1 + 1e-9)
        if burns and total >= 50:
            self._holds("slo/it", 0, labels, t_s * S)
        elif not burns and labels in states:
            self._ends("slo/it", 0, labels, t_s * S, STEP_S * S)

    def _tell(self, alert: str, transition: Transition, cause: str) -> None:
        known = self.alerts[alert]
        known.sequence += 1
        self.told[event_id(alert, transition, cause)] = (alert, transition.value, known.sequence)
