"""A long time in a short one: event time runs faster than the clock, with faults all along. Does anything grow?"""

import os
import random
import signal
import threading
from bisect import bisect_right
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from itertools import groupby, product
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
from tailrace_schemas.clock import monotonic_s, now_us

from tests.reliability.attack import Figure, Plot, Result, Run, attack
from tests.reliability.store import Watched, watching
from tests.reliability.traffic import CONFIG, S, Traffic
from tests.reliability.world import (
    Broker,
    Process,
    World,
    alert_events,
    check_alerts,
    check_objective,
    check_rollups,
    check_rows,
    configure,
    finish,
    starts_on_window,
    told,
    why_no_kafka,
)
from tests.system.workload import Workload

SPEED = 60
"""Seconds of event time in one of wall time."""
AHEAD_US = 40 * S
FAULT_S = (3.0, 6.0)
LIVE_FAULT_S = (20.0, 60.0)
FIRST_FAULTS = ("kill windows", "kill sender", "kill clickhouse", "pause broker", "kill alerts")
LATER_FAULTS = ("pause clickhouse", "kill sender", "pause broker", "pause windows", "pause alerts")
"""In turns. What is watched is killed in the first third only: then it is to have the time to grow."""
WARM_UP = 1 / 2
"""Of the time: slopes are those of what follows."""
JUDGED_S = 3600.0
"""Slopes over less say nothing: a process that begins takes memory. ClickHouse's grew by 155 MB an hour in the second
half of half an hour, and by 15 in that of 76 minutes."""
MOST_MB_AN_HOUR = 20.0
MOST_BROKER_MB = 800.0
"""A JVM fills the heap that it is given, 512 MB, before it looks for what is free: its slope says nothing."""
MOST_FDS_AN_HOUR = 5.0
PERIOD_S = 86400
"""Of the objective: the shortest, so that budgets are spent and come back within the soak."""
ROWS = "rows of 10 s"
KEPT_S = 300
"""After so long rows of 10 s and alert events are deleted: of 10 s, as soon as all of their day's are as old."""
AGED = ("rows_10s", "alert_event_rows")
"""Merges of the other large tables read one day of them: three days are as good as a hundred. Alert events are one
partition, and within three days it would only grow."""
AGEING = (f"TTL stored_at + INTERVAL {KEPT_S} SECOND", "SETTING merge_with_ttl_timeout = 60")
REPLACED_KEPT_S = 60
"""So long parts that were merged into others stay on disk, of all tables. ClickHouse's 480 s are 8 hours of event time:
as a day's rows become more, so do the copies of them, of which there are more than of rows."""
MOST_GROWTH = 1.3
"""What they take on disk, at most, in the last third of the time, by what they took before; it is 1.5 if nothing is
deleted."""


@attack(
    name="soak",
    promise="Nothing grows with time: not memory, not open files, not the recovery directory; and every row is exact.",
    what=f"Event time runs {SPEED} times as fast as the clock, so that 72 h take 72 minutes, with a fault (kill -9, "
    f"SIGSTOP for 1 to 2 s) every {FAULT_S[0]:g} to {FAULT_S[1]:g} s: windows, alerts, an objective with a period of a "
    f"day; rows of 10 s and alert events are deleted after {KEPT_S // 60} minutes. Memory, open files and sizes are "
    "watched.",
    unit="minutes of event time",
    short=30,
    long=4320,
)
def soak(run: Run) -> Result:
    # Event time runs ahead of the clock: no window is closed by the clock, and none is before an objective's past ends.
    traffic = Traffic(run.seed, 0, run.size * 60, samples=10, ahead_us=AHEAD_US, speed=SPEED)
    most_ms = run.size * 60_000 + AHEAD_US // 1000
    broker = Broker(run.directory / "kafka", {"log.message.timestamp.after.max.ms": str(most_ms)})
    return _soak(run, traffic, AHEAD_US, FAULT_S, broker)


@attack(
    name="soak_live",
    promise="Nothing grows with time: not memory, not open files, not the recovery directory; and every row is exact.",
    what=f"In real time, to be left running (`--size` minutes, a day in the long form), 1,200 samples a second, with a "
    f"fault (kill -9, SIGSTOP for 1 to 2 s) every {LIVE_FAULT_S[0]:g} to {LIVE_FAULT_S[1]:g} s; watched as in `soak`.",
    unit="minutes",
    short=3,
    long=1440,
)
def soak_live(run: Run) -> Result:
    traffic = Traffic(run.seed, 0, run.size * 60, samples=600)
    return _soak(run, traffic, 10 * S, LIVE_FAULT_S, Broker(run.directory / "kafka"))


def _soak(run: Run, traffic: Traffic, after_us: int, fault_s: tuple[float, float], broker: Broker) -> Result:
    """`after_us`: how long after everything has begun the traffic does."""
    if missing := why_no_kafka():
        return Result(skipped=missing)
    with World.of(run.directory, "soak", brokers=[broker]) as world:
        _age(world.bench.clickhouse)
        configure(world.bench, CONFIG.replace("period: 30d", f"period: {PERIOD_S // 86400}d"))
        world.add_flow("windows", "windows")
        world.add_flow("alerts", "alerts,slo,health")
        world.until_judging("alerts,slo,health")
        traffic = replace(traffic, start_us=starts_on_window(now_us() + after_us))
        world.add_traffic(traffic)
        seen = _Seen(world)
        began_s = monotonic_s()
        with watching(*seen.processes.values()), watching(seen.sizes, every_s=2):
            done = _faults(run, world, traffic, fault_s)
            made = finish(world, traffic)
        took_s = monotonic_s() - began_s
        exact = _check(world, traffic, made, seen.sizes)
    growth = seen.growth() if took_s >= JUDGED_S else {}
    figures: dict[str, Figure] = {
        **done, "samples": made.counters["samples"], **exact, "wall time, s": took_s,
        "growth": "below" if growth else f"not judged in less than {JUDGED_S:g} s", **growth, **seen.most(),
    }  # fmt: skip
    failures = [run.failure(f"{what}: {value:.3g}") for what, value in {**growth, **seen.most()}.items()
                if value > _limit(what)]  # fmt: skip
    return Result(run.size, [run.seed], figures, failures, seen.plots())


def _age(clickhouse: Any) -> None:
    """Has ClickHouse delete in minutes what it deletes in days and hours."""
    for table, change in product(AGED, AGEING):
        clickhouse.command(f"ALTER TABLE {table} MODIFY {change}")
    tables = "SELECT name FROM system.tables WHERE database = currentDatabase() AND engine LIKE '%MergeTree'"
    for (table,) in clickhouse.query(tables).result_rows:
        clickhouse.command(f"ALTER TABLE {table} MODIFY SETTING old_parts_lifetime = {REPLACED_KEPT_S}")


def _faults(run: Run, world: World, traffic: Traffic, fault_s: tuple[float, float]) -> Counter[str]:
    """Until all is sent; how often each was done."""
    rng = random.Random(run.seed)
    done: Counter[str] = Counter()
    began_s = monotonic_s()
    world.until(lambda: world.bench.counters().get("samples"), "samples are counted")
    while not world.parts["sender"].done and monotonic_s() - began_s < traffic.seconds / traffic.speed:
        threading.Event().wait(rng.uniform(*fault_s))
        kinds = FIRST_FAULTS if world.confirmed() < traffic.seconds / 3 else LATER_FAULTS
        how, _, name = kinds[done.total() % len(kinds)].partition(" ")
        if _fault(world.parts[name], how, rng):
            done[f"{how} {name}"] += 1
            if done.total() % 50 == 0:
                run.say(f"{done.total()} faults, {world.confirmed() // 60} of {run.size} minutes sent")
    return done


def _check(world: World, traffic: Traffic, made: Workload, sizes: "_Sizes") -> dict[str, Figure]:
    """Everything is as the oracles have it, but for what may be deleted for its age; how much of it there is."""
    b = world.bench
    for table in AGED:
        b.clickhouse.command(f"SYSTEM STOP TTL MERGES {table}")
    aged_us = traffic.start_us + sizes.sent_before(KEPT_S) * S
    world.until(lambda: len(told(alert_events(b)[0])) >= len(traffic.events()), "all alerts are told")
    assert world.parts["alerts"].stop() == 0, world.tails()
    left = check_rows(b, made, aged_before_us=aged_us)
    events, again = check_alerts(b, traffic, aged_before_us=aged_us)
    return {
        "rows of a minute equal to the oracle": b.clickhouse.command("SELECT count() FROM windows_1m"),
        "rows of 10 s that were left, equal to it": left,
        "alert events equal to the oracle": events, "alert events told again, same id": again,
        "alert events that were left": b.clickhouse.command("SELECT uniqExact(event_id) FROM alert_events"),
        "objective statuses equal to the oracle": check_objective(b, made, traffic, period_s=PERIOD_S),
        "rows of an hour and a day equal to the oracle": check_rollups(b, made),
    }  # fmt: skip


def _fault(part: Process, how: str, rng: random.Random) -> bool:
    """Whether there was something to do it to."""
    if how == "kill":
        return part.kill()
    if part.pid is None:
        return False
    part.signal(signal.SIGSTOP)
    threading.Event().wait(rng.uniform(1, 2))
    part.signal(signal.SIGCONT)
    return True


class _Seen:
    """What the processes and the directories took all along."""

    def __init__(self, world: World) -> None:
        self.processes = {name: Watched(world.parts[name]) for name in ("windows", "alerts", "broker", "clickhouse")}
        self.sizes = _Sizes(world)

    def growth(self) -> dict[str, float]:
        found: dict[str, float] = {}
        for name, one in self.processes.items():
            found[f"memory of {name}: MB an hour"] = _slope(one.at_s, one.rss_mb)
            found[f"open files of {name}: an hour"] = _slope(*_fewest(one.at_s, one.fds))
        found["recovery directory: MB an hour"] = _slope(self.sizes.at_s, self.sizes.mb["recovery directory"])
        rows = self.sizes.mb[ROWS]
        third = len(rows) * 2 // 3
        found[f"{ROWS}: most in the last third, by what they took before"] = max(rows[third:]) / max(rows[:third])
        return found

    def most(self) -> dict[str, float]:
        found: dict[str, float] = {}
        for name, one in self.processes.items():
            found |= {f"memory of {name}: most, MB": one.most_mb(), f"open files of {name}: most": max(one.fds)}
            found[f"threads of {name}: most"] = max(one.threads)
        return found | {f"{name} on disk: most, MB": max(mb) for name, mb in self.sizes.mb.items()}

    def plots(self) -> list[Plot]:
        of = self.processes
        return [
            *(one.plot(name) for name, one in of.items()),
            *(Plot(f"{name} on disk", "s", "MB", self.sizes.at_s, mb) for name, mb in self.sizes.mb.items()),
            *(Plot(f"open files of {name}", "s", "files", of[name].at_s, [float(count) for count in of[name].fds])
              for name in ("windows", "alerts", "clickhouse")),
            Plot("threads of clickhouse", "s", "threads", of["clickhouse"].at_s,
                 [float(count) for count in of["clickhouse"].threads]),
        ]  # fmt: skip


def _limit(what: str) -> float:
    """Of what was seen; none of most of it."""
    limits = {"memory of broker: MB an hour": inf, "memory of broker: most, MB": MOST_BROKER_MB}
    ends = {"MB an hour": MOST_MB_AN_HOUR, ": an hour": MOST_FDS_AN_HOUR, "by what they took before": MOST_GROWTH}
    return limits.get(what) or next((limit for end, limit in ends.items() if what.endswith(end)), inf)


class _Sizes:
    """What lies on disk, and how much was sent by then."""

    def __init__(self, world: World) -> None:
        self._world = world
        directory = world.bench.directory
        self._places = {"recovery directory": directory / "recovery", "database": directory / "clickhouse"}
        (self._places[ROWS],) = (directory / "clickhouse" / "data").glob("*/rows_10s")
        self._began_s = monotonic_s()
        self._sent: list[int] = []
        self.at_s: list[float] = []
        self.mb: dict[str, list[float]] = {name: [] for name in self._places}

    def look(self) -> None:
        self.at_s.append(monotonic_s() - self._began_s)
        self._sent.append(self._world.confirmed())
        for name, place in self._places.items():
            self.mb[name].append(_size(place) / 2**20)

    def sent_before(self, ago_s: float) -> int:
        """Seconds of the traffic that Kafka had confirmed so long ago: what came later was stored later."""
        looked = bisect_right(self.at_s, monotonic_s() - self._began_s - ago_s)
        return self._sent[looked] if looked < len(self._sent) else self._sent[-1]


def _size(directory: Path) -> int:
    """What its files take, of those that stay while it looks."""
    size = 0
    for place, _, names in os.walk(directory):  # passes over a directory that is deleted meanwhile
        for name in names:
            with suppress(OSError):
                size += (Path(place) / name).stat().st_blocks * 512
    return size


def _fewest(at_s: list[float], values: list[int]) -> tuple[list[float], list[int]]:
    """Of each minute: ClickHouse has 17 files open, and ten times as many while it merges; one that is never closed is
    always among them."""
    minutes = [list(group) for _, group in groupby(zip(at_s, values, strict=True), lambda one: one[0] // 60)]
    return [group[0][0] for group in minutes], [min(value for _, value in group) for group in minutes]


def _slope(at_s: list[float], values: list[float] | list[int]) -> float:
    """An hour, after the warm-up."""
    first = int(len(at_s) * WARM_UP)
    if len(at_s) - first < 3:
        return 0.0
    return float(np.polyfit(np.array(at_s[first:]) / 3600, np.array(values[first:], dtype=float), 1)[0])
