"""Collectors of the host agent: one subject each. To add one, write its class and name it in `default_collectors`."""

from collections.abc import Sequence

from tailrace_producers.collectors.cpu import Cpu
from tailrace_producers.collectors.disk import Disk
from tailrace_producers.collectors.filesystem import Filesystem
from tailrace_producers.collectors.groups import Group
from tailrace_producers.collectors.host import Sockets, Uptime
from tailrace_producers.collectors.memory import Memory
from tailrace_producers.collectors.network import IGNORED_INTERFACES, Connections, Interfaces
from tailrace_producers.collectors.probes import Probes, Target
from tailrace_producers.collectors.processes import Processes
from tailrace_producers.collectors.reading import Collector, Failure, Reading

__all__ = ["Collector", "Failure", "Group", "Reading", "Target", "default_collectors"]


def default_collectors(
    groups: Sequence[Group] = (),
    targets: Sequence[Target] = (),
    probe_timeout_s: float = 2.0,
    ignored_interfaces: Sequence[str] = IGNORED_INTERFACES,
) -> list[Collector]:
    """Everything that this platform can tell; `groups` of processes and probes of `targets` where there are some.

    Raises:
        ValueError: groups, targets or a timeout that cannot be; says which.
    """
    collectors: list[Collector] = [
        Cpu(), Memory(), Disk(), Filesystem(), Processes(groups=groups), Uptime(), Sockets(),
        Interfaces(ignored_interfaces), Connections(),
    ]  # fmt: skip
    if targets:
        collectors.append(Probes(targets, probe_timeout_s))
    return collectors
