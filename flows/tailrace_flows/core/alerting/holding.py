"""What holds a notification back: inhibition, silences, flapping."""

from collections.abc import Callable, Iterable, Mapping

from tailrace_schemas.alerts import us_of
from tailrace_schemas.config.dispatch import DispatchConfig, FlapDamping, Matchers, Silence

__all__ = ["FlapDetector", "Inhibitor", "Silencer", "microseconds"]

Key = tuple[str, ...]


def microseconds(silence: Silence) -> tuple[int, int]:
    """Its start and end."""
    return us_of(silence.start), us_of(silence.end)


class Silencer:
    """Whether a silence holds an alert back."""

    def __init__(self, silences: Iterable[Silence]) -> None:
        self._silences = [(*microseconds(silence), Matchers(silence.where)) for silence in silences]

    def at(self, now_us: int) -> Callable[[Mapping[str, str]], bool]:
        """The question at one time, answered for many alerts."""
        current = [matchers for start, end, matchers in self._silences if start <= now_us < end]
        return lambda labels: any(matchers.match(labels) for matchers in current)


class Inhibitor:
    """Which alerts are held back because another one fires, as in Alertmanager's inhibit/inhibit.go.

    The labels of `equal` must agree; a missing one is empty. An alert that matches both sides of a rule is not held
    back by alerts of which the same is true, itself among them. Cost: each firing alert against each rule, whenever a
    group is looked at.
    """

    def __init__(self, config: DispatchConfig) -> None:
        self._rules = [(Matchers(one.source), Matchers(one.target), one.equal) for one in config.inhibitions.values()]

    def over(self, firing: Iterable[Mapping[str, str]]) -> Callable[[Mapping[str, str]], bool]:
        """The question for one set of firing alerts, given by their labels."""
        if not self._rules:
            return lambda _: False
        alerts = list(firing)
        sources: list[tuple[set[Key], set[Key]]] = []
        for source, target, equal in self._rules:
            all_, one_sided = set(), set()
            for labels in alerts:
                if source.match(labels):
                    key = _key(equal, labels)
                    all_.add(key)
                    if not target.match(labels):
                        one_sided.add(key)
            sources.append((all_, one_sided))

        def inhibited(labels: Mapping[str, str]) -> bool:
            for (source, target, equal), (all_, one_sided) in zip(self._rules, sources, strict=True):
                if all_ and target.match(labels):
                    inhibiting = one_sided if source.match(labels) else all_
                    if _key(equal, labels) in inhibiting:
                        return True
            return False

        return inhibited


def _key(equal: Iterable[str], labels: Mapping[str, str]) -> Key:
    return tuple(labels.get(name, "") for name in equal)


class FlapDetector:
    """Changes of state within a window, with hysteresis: as many as `start` is flapping, `stop` or fewer is calm.

    Nagios weighs the changes over its last 21 checks. Alerts have no checks at a steady pace, only changes; so they are
    counted by time, which also says to a reader what the numbers mean. State: the times of one alert's last changes, at
    most `start` of them.
    """

    def __init__(self, config: FlapDamping | None) -> None:
        self._start = config.start if config else 0
        self._stop = config.stop if config else 0
        self._window_us = round(config.window * 1e6) if config else 0

    def changed(self, changes: tuple[int, ...], t_us: int) -> tuple[int, ...]:
        """The changes with one more."""
        return (*changes, t_us)[-self._start :] if self._start else ()

    def is_flapping(self, was: bool, changes: tuple[int, ...], now_us: int) -> bool:
        """Whether the alert flaps now, given whether it did."""
        if not self._start:
            return False
        recent = sum(t_us > now_us - self._window_us for t_us in changes)
        return recent > self._stop if was else recent >= self._start

    def is_over(self, changes: tuple[int, ...], now_us: int) -> bool:
        """Whether the changes can be forgotten."""
        return not changes or changes[-1] <= now_us - self._window_us
