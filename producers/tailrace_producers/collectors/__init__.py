"""Collectors of the host agent: one subject each. To add one, write its class and name it in `default_collectors`."""

from tailrace_producers.collectors.cpu import Cpu
from tailrace_producers.collectors.disk import Disk
from tailrace_producers.collectors.filesystem import Filesystem
from tailrace_producers.collectors.host import Sockets, Uptime
from tailrace_producers.collectors.memory import Memory
from tailrace_producers.collectors.processes import Processes
from tailrace_producers.collectors.reading import Collector, Failure, Reading

__all__ = ["Collector", "Failure", "Reading", "default_collectors"]


def default_collectors() -> list[Collector]:
    """Everything that this platform can tell."""
    return [Cpu(), Memory(), Disk(), Filesystem(), Processes(), Uptime(), Sockets()]
