"""What the flows are called: without their code, which takes a second of CPU time to load."""

from collections.abc import Collection
from typing import Final

__all__ = ["FLOWS", "joined_name"]

FLOWS: Final = ("windows", "alerts", "slo", "health", "anomaly")
"""Each is a module of this package."""


def joined_name(names: Collection[str]) -> str:
    """What several flows in one are called: `all`, or `alerts_slo`."""
    ordered = [name for name in FLOWS if name in names]
    return "all" if len(ordered) == len(FLOWS) else "_".join(ordered)
