"""Objectives' past, read beside the evaluation: a ClickHouse that is away holds up nothing but the objective itself."""

import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from tailrace_schemas import clock
from tailrace_schemas.config.slo import SloSpec

from tailrace_flows import host_clock
from tailrace_flows.core.alerting.burn import Stored
from tailrace_flows.core.alerting.store import STEP_US
from tailrace_flows.core.alerting.units import SloUnit

__all__ = ["History", "SloPast"]

log = logging.getLogger(__name__)

History = Callable[[SloSpec, int], Iterable[Stored]]
"""An objective's stored events until a time; raises ConnectionError."""
GRACE_S: Final = 5.0
"""So long the evaluation waits when it begins: usually there is an answer, and nothing is pending."""
RETRY_S: Final = (5.0, 60.0)
"""Between one try and the next, at first and at most; twice as long each time."""
LOOK_US: Final = 200_000


class SloPast:
    """Primes the objectives of an evaluator that know nothing of their past."""

    def __init__(self, history: History) -> None:
        self._history = history
        self._readings: dict[str, _Reading] = {}

    def prime(self, units: Mapping[str, Any]) -> None:
        """Begins to read what is wanted, waits GRACE_S for what is new, and hands over what is there.

        Raises: what `history` does, but for ConnectionError.
        """
        now_us = host_clock.now_us()
        self._readings = {key: one for key, one in self._readings.items() if units.get(key) is one.unit}
        begun = []
        for key, unit in units.items():
            if isinstance(unit, SloUnit) and unit.empty and key not in self._readings:
                unit.await_past()
                self._readings[key] = _Reading(unit, self._history)
                begun.append(self._readings[key])
        until_s = clock.monotonic_s() + GRACE_S
        for one in begun:
            one.done.wait(max(0.0, until_s - clock.monotonic_s()))
        for key, one in list(self._readings.items()):
            if one.finished(now_us):
                del self._readings[key]

    def next_us(self, now_us: int) -> int | None:
        """When `prime` is wanted again; None: nothing is read."""
        return now_us + LOOK_US if self._readings else None


class _Reading:
    """The past of one objective, until it is there."""

    def __init__(self, unit: SloUnit, history: History) -> None:
        self.unit = unit
        self._history = history
        self._wait_s, self._most_s = RETRY_S
        self._retry_us: int | None = None
        self._begin()

    def _begin(self) -> None:
        self.done = threading.Event()
        self._until_us = host_clock.now_us() // STEP_US * STEP_US
        self._rows: list[Stored] = []
        self._error: Exception | None = None
        # A daemon: a read that hangs must not hold up the end of the process.
        threading.Thread(target=self._read, args=(self.done, self._until_us), daemon=True).start()

    def _read(self, done: threading.Event, until_us: int) -> None:
        try:
            self._rows = list(self._history(self.unit.spec, until_us))
        except Exception as error:  # noqa: BLE001 - raised by `finished`, in the flow's thread
            self._error = error
        done.set()

    def finished(self, now_us: int) -> bool:
        """Whether the objective has its past now; tries again when it is time."""
        if self._retry_us is not None:
            if now_us >= self._retry_us:
                self._retry_us = None
                self._begin()
            return False
        if not self.done.is_set():
            return False
        if self._error is None:
            self.unit.prime(self._until_us, self._rows)
            return True
        if not isinstance(self._error, ConnectionError):
            raise self._error
        log.warning(
            "slo/%s: its past cannot be read, again in %g s: %s", self.unit.spec.name, self._wait_s, self._error
        )
        self._retry_us = now_us + round(self._wait_s * 1e6)
        self._wait_s = min(2 * self._wait_s, self._most_s)
        return False
