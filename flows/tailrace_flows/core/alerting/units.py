"""What the evaluator judges, and how a configuration becomes it."""

from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from typing import Any

from tailrace_schemas.alerts import AlertEvent, Command
from tailrace_schemas.config import ConfigModel
from tailrace_schemas.config.rules import RuleGroup

from tailrace_flows.core.alerting.evaluator import Findings, Plan
from tailrace_flows.core.alerting.rules import AlertGroup, keep_of
from tailrace_flows.core.alerting.store import Keep, WindowStore

__all__ = ["RuleUnit", "plan"]


def plan(parts: Collection[str], config: Mapping[str, ConfigModel]) -> dict[str, Plan]:
    """The units of a configuration, by key; of the parts `rules`, `slo` and `health`."""
    found: dict[str, Plan] = {}
    for key, model in config.items():
        if isinstance(model, RuleGroup) and "rules" in parts:
            found[key] = Plan(model, partial(RuleUnit, model))
    return found


class RuleUnit:
    """A rule group."""

    def __init__(self, group: RuleGroup, state: Any = None) -> None:
        self._group = AlertGroup(group, state)
        self.interval_us = self._group.interval_us
        self.keep: Mapping[str, Keep] = keep_of([self._group])

    def judge(
        self, store: WindowStore, t_us: int, changed: Iterable[tuple[str, int]], count: Callable[..., None]
    ) -> Findings:
        """As `Unit.judge`: rules look at the store alone."""
        count("rule_evaluations", len(self._group.rules))
        return Findings(self._group.evaluate(store, t_us))

    def command(self, command: Command) -> list[AlertEvent] | None:
        """As `Unit.command`."""
        return self._group.command(command)

    def close(self, t_us: int, reason: str, successor: "RuleUnit | None" = None) -> list[AlertEvent]:
        """As `Unit.close`: resolves the alerts of all rules but those that the successor has too."""
        staying = successor._group.rules if successor else {}
        gone = [rule for name, rule in self._group.rules.items() if name not in staying]
        return [event for rule in gone for event in rule.alerts.close(t_us, reason)]

    def republish(self) -> list[AlertEvent]:
        """As `Unit.republish`."""
        return self._group.republish()

    def snapshot(self) -> Any:
        """As `Unit.snapshot`."""
        return self._group.snapshot()
