"""Which sections a native file may have, and who reads documents of another form."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from tailrace_schemas.config.anomaly import DetectorSpec
from tailrace_schemas.config.base import ConfigModel
from tailrace_schemas.config.dispatch import (
    Escalation,
    Inhibition,
    Routing,
    Silence,
    Team,
    TimeInterval,
    check_references,
)
from tailrace_schemas.config.health import HealthCheck, ServiceSpec, health_problems
from tailrace_schemas.config.maintenance import Maintenance
from tailrace_schemas.config.openslo import API_VERSION, read_openslo
from tailrace_schemas.config.receivers import Receiver
from tailrace_schemas.config.rules import RuleGroup
from tailrace_schemas.config.slo import SloSpec
from tailrace_schemas.config.source import Document, Item, Problem

__all__ = ["CHECKS", "DIALECTS", "SECTIONS", "Section"]


@dataclass(frozen=True)
class Section:
    """A key at the top of a native file."""

    key: str
    kind: str
    """Of its records on the config topic, which are `kind/name`."""
    model: type[ConfigModel]
    """Its things, each with a `name`; or, where `single`, the section itself, which is then its own name."""
    single: bool = False


SECTIONS: Final[tuple[Section, ...]] = (
    Section("groups", "rule_group", RuleGroup),
    Section("slos", "slo", SloSpec),
    Section("maintenance", "maintenance", Maintenance),
    Section("routing", "routing", Routing, single=True),
    Section("receivers", "receiver", Receiver),
    Section("teams", "team", Team),
    Section("escalations", "escalation", Escalation),
    Section("inhibitions", "inhibition", Inhibition),
    Section("silences", "silence", Silence),
    Section("time_intervals", "time_interval", TimeInterval),
    Section("health_checks", "health_check", HealthCheck),
    Section("services", "service", ServiceSpec),
    Section("detectors", "detector", DetectorSpec),
)  # fmt: skip

DIALECTS: Final[Mapping[str, Callable[[Sequence[Document]], list[Item]]]] = {API_VERSION: read_openslo}
"""`apiVersion` of documents of another form -> what they mean; all of them together, since they name each other.

Raises:
    ConfigError: with all that is wrong in them.
"""

CHECKS: Final[tuple[Callable[[Sequence[Item]], Iterable[Problem]], ...]] = (check_references, health_problems)
"""What must hold between things, in whatever file each is: references, contradictions."""
