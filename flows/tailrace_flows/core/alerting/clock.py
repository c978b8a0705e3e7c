"""When rules are evaluated: event time, as far as every live service has told all of it.

A plain state machine; wall time (`now_us`) only says who is waited for.
"""

from dataclasses import dataclass, field
from typing import Final

__all__ = ["DELAY", "SETTLE_US", "STALL_US", "EvaluationClock"]

STALL_US: Final = 30_000_000
"""Nobody is waited for longer: neither a service that is silent, nor one whose time lags behind the others'."""
SETTLE_US: Final = 5_000_000
"""So long is listened who is there when nobody was, before anybody is believed: rows of the same windows may be on
their way from other services, in partitions that are read a moment later."""
SETTLE_STEP_US: Final = 1_000_000
"""What a pause between two looks counts for, at most: who was held up has heard nothing in it."""
AHEAD_US: Final = 3600 * 1_000_000
"""A watermark that is further ahead of wall time says nothing of it: the stream has ended, or a clock is wrong."""
FORGET_US: Final = 24 * 3600 * 1_000_000
"""Who was silent for longer while others were heard is forgotten: services come and go, as jobs do."""
NEWS_US: Final = 1_000_000
"""Of what can be heard, no more is told: many partitions say so at about the same time."""
DEAF_US: Final = 10_000_000
"""Who could hear nothing for longer was held up, or cut off from the broker: nobody was silent in that time."""
AWAY_US: Final = 5_000_000
"""A windows flow that did not say for longer how far it has read is away, stands still, or has a backlog: nobody was
silent in that time. It says so every 2 s."""
SET_BACK_US: Final = 60_000_000
"""Its host's clock was set back if it says so much less than before."""
PATIENCE_US: Final = 300_000_000
"""While rows come without its saying so, silence counts after so long all the same: a partition that nobody can read is
not to hold up the alerts of the others for ever."""
DELAY: Final = "tailrace.evaluation.delay"
"""How far behind wall time windows are closed, or judged, whichever is more, in seconds: a gauge of the service
`tailrace` that rules may look at. A rule that looks at nothing else is judged by wall time, so that it tells while the
flows are behind, or stand still. For others, and detectors, it is a row of the window that is judged."""


@dataclass
class _Service:
    watermark_us: int
    heard_us: int
    """Listened time of its last message."""
    lags_since_us: int | None = None
    """Listened time since when its watermark is more than STALL_US behind the foremost, or that time if it is less."""

    def waited_for(self, listened_us: int) -> bool:
        lags = self.lags_since_us is not None and listened_us - self.lags_since_us >= STALL_US
        return listened_us - self.heard_us < STALL_US and not lags


@dataclass
class EvaluationClock:
    """Reached event time never goes back. State: 200 bytes for each service of the last day.

    Silence is counted in *listened time*: it stands still while the broker or the windows flow is away, or the process
    is held up, as nobody can be heard then. It is wall time where `listen` is never called.
    """

    started_us: int
    """Wall time when there was nothing yet, or of the last restart."""
    reached_us: int | None = None
    services: dict[str, _Service] = field(default_factory=dict)
    """Who was silent longest first."""
    settle_us: int = SETTLE_US
    """0: all is heard in the order of time, and the first that is heard is believed."""
    settling_us: int = 0
    """How much longer is listened before time moves."""
    looked_us: int = 0
    """Wall time up to which that was counted."""
    listened_us: int | None = None
    """The last wall time at which what is told could be heard."""
    read_until_us: int | None = None
    """Wall time up to which the windows flow said last that it has read all; None: it never did, and need not."""
    waited_us: int = 0
    """For how long rows have come since, and it is waited for."""
    tried_us: int = 0
    """Wall time up to which that was counted."""
    told_us: int = 0
    """Wall time at which anybody was last heard."""
    newest_us: int = 0
    """The greatest watermark that was not ahead when it was heard."""
    lag_us: int = 0
    """How far that was behind listened time when anybody was last heard."""

    def go_on(self, until_us: int, now_us: int) -> None:
        """The windows flow has said that it has read all there was at `until_us`, by its host's clock."""
        until_us, before_us = min(until_us, now_us), self.read_until_us
        self.waited_us = 0
        if before_us is None or until_us > before_us:
            self.read_until_us = until_us
        elif until_us < before_us - SET_BACK_US:
            self.read_until_us = until_us
            self.listened_us = None
            for one in self.services.values():
                one.heard_us, one.lags_since_us = min(one.heard_us, until_us), None

    def listen(self, at_us: int) -> bool:
        """What is told can be heard at this wall time; whether that is news."""
        deaf_after_us = DEAF_US
        if self.read_until_us is not None and self._waits(at_us):
            at_us, deaf_after_us = min(at_us, self.read_until_us), AWAY_US
        before_us = self.listened_us
        if before_us is not None:
            if at_us < before_us + NEWS_US:
                return False
            if (deaf_us := at_us - before_us) > deaf_after_us:
                for one in self.services.values():
                    one.heard_us = max(one.heard_us, min(one.heard_us + deaf_us, at_us))
                    if one.lags_since_us is not None:
                        one.lags_since_us += deaf_us
        self.listened_us = at_us
        return True

    def _waits(self, at_us: int) -> bool:
        """Whether there is patience with the windows flow; always while nothing comes of it at all."""
        away = at_us - self.told_us > DEAF_US
        if not away:
            self.waited_us += min(max(at_us - self.tried_us, 0), AWAY_US)
        self.tried_us = at_us
        return away or self.waited_us < PATIENCE_US

    def _listened(self, now_us: int) -> int:
        return now_us if self.listened_us is None else min(self.listened_us, now_us)

    def hear(self, service: str, watermark_us: int, now_us: int) -> None:
        """A service's windows that end at `watermark_us` or before are closed, and their rows are here."""
        listened_us = self._listened(now_us)
        if not any(one.waited_for(listened_us) for one in reversed(self.services.values())):
            self._settle(now_us)
        known = self.services[service] = self.services.pop(service, _Service(watermark_us, listened_us))
        known.watermark_us = max(known.watermark_us, watermark_us)
        known.heard_us = max(known.heard_us, listened_us)
        while listened_us - self.services[first := next(iter(self.services))].heard_us >= FORGET_US:
            del self.services[first]
        self.told_us = max(self.told_us, now_us)
        if watermark_us <= listened_us + STALL_US:
            self.newest_us = max(self.newest_us, watermark_us)
        self.lag_us = max(0, listened_us - self.newest_us) if self.newest_us else 0

    def advance(self, now_us: int) -> int | None:
        """Event time up to which everything can be evaluated; None: nothing is known yet, or not for long enough.

        The least watermark of the services that are waited for; while there is none, listened time less STALL_US, so
        that rules about missing data see that it is missing. Where they were further behind, less that: a pause in a
        backlog, or of a service whose clock is behind, passes by no more than its own time of it.
        """
        listened_us = self._listened(now_us)
        # Not beyond wall time: one service whose clock is ahead must not make laggards of all the others.
        foremost_us = min(max((one.watermark_us for one in self.services.values()), default=0), listened_us)
        for one in self.services.values():
            if foremost_us - one.watermark_us <= STALL_US:
                one.lags_since_us = None
            elif one.lags_since_us is None:
                one.lags_since_us = listened_us
        live = [one.watermark_us for one in self.services.values() if one.waited_for(listened_us)]
        if self.settling_us:
            counted_us = min(max(now_us - self.looked_us, 0), SETTLE_STEP_US)
            self.settling_us = max(self.settling_us - counted_us, 0)
            self.looked_us = now_us
            if self.settling_us:
                return self.reached_us
        found_us = min(live) if live else listened_us - max(STALL_US, self.lag_us)
        if live or listened_us - STALL_US >= self.started_us:
            self.reached_us = found_us if self.reached_us is None else max(self.reached_us, found_us)
        return self.reached_us

    def behind_us(self, now_us: int) -> int | None:
        """How far evaluation, or the foremost service that is not ahead of everything, is behind wall time, whichever
        is more; None: no service is known."""
        known = [one.watermark_us for one in self.services.values() if one.watermark_us < now_us + AHEAD_US]
        if not known:
            return None
        return max(0, now_us - max(known), 0 if self.reached_us is None else now_us - self.reached_us)

    def stalled(self, now_us: int) -> list[str]:
        """The services that are left out."""
        listened_us = self._listened(now_us)
        return sorted(name for name, one in self.services.items() if not one.waited_for(listened_us))

    def next_us(self, now_us: int) -> int:
        """Wall time at which `advance` may give more although nothing is heard."""
        after_us = now_us - self._listened(now_us) + STALL_US
        due = [max(one.heard_us, one.lags_since_us or 0) + after_us for one in self.services.values()]
        if self.settling_us:
            due.append(now_us + min(self.settling_us, SETTLE_STEP_US))
        return min((at for at in due if at > now_us), default=now_us + STALL_US // 3)

    @property
    def latest_us(self) -> int:
        """Listened time of the last message, or wall time of the begin."""
        return max((one.heard_us for one in self.services.values()), default=self.started_us)

    def resume(self, now_us: int) -> None:
        """After a restart: everybody has as long as ever to be heard of; who was silent for a day is forgotten.

        Also who is not known yet: what was told while nobody was here is still to be read, and is not to be passed by.
        """
        self.started_us = now_us
        heard_us = now_us if self.read_until_us is None else min(now_us, self.read_until_us)
        if self.listened_us is not None:
            self.listened_us = heard_us
        self.services = {
            name: _Service(one.watermark_us, heard_us)
            for name, one in self.services.items()
            if now_us - one.heard_us < FORGET_US
        }
        if self.settling_us:
            self._settle(now_us)

    def _settle(self, now_us: int) -> None:
        self.settling_us = self.settle_us
        self.looked_us = now_us
