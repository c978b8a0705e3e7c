"""A long time in a short one: event time runs faster than the clock, with faults all along. Does anything grow?"""

import os
import random
import signal
import threading
from collections import Counter
from contextlib import suppress
from pathlib import Path

import numpy as np
from tailrace_schemas.clock import monotonic_s, now_us

from tests.reliability.attack import Figure, Plot, Result, Run, attack
from tests.reliability.store import Watched, watching
from tests.reliability.traffic import S, Traffic
from tests.reliability.world import Process, World, check_rows, finish, starts_on_window, why_no_kafka

SPEED = 60
"""Seconds of event time in one of wall time."""
FAULT_S = (3.0, 6.0)
LIVE_FAULT_S = (20.0, 60.0)
FIRST_FAULTS = ("kill windows", "kill sender", "kill clickhouse", "pause broker")
LATER_FAULTS = ("pause clickhouse", "kill sender", "pause broker", "pause windows")
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


@attack(
    name="soak",
    promise="Nothing grows with time: not memory, not open files, not the recovery directory; and every row is exact.",
    what=f"Event time runs {SPEED} times as fast as the clock, so that 72 h take 72 minutes, with a fault (kill -9, "
    f"SIGSTOP for 1 to 2 s) every {FAULT_S[0]:g} to {FAULT_S[1]:g} s; memory, open files and sizes are watched.",
    unit="minutes of event time",
    short=30,
    long=4320,
)
def soak(run: Run) -> Result:
    # Event time ends at about now; wall time is to close none of its windows.
    start_us = starts_on_window(now_us() - run.size * 60 * S)
    # The sender begins at once: it waits from `now` on, not from the first sample's time.
    traffic = Traffic(run.seed, start_us, run.size * 60, samples=10, ahead_us=start_us - now_us(), speed=SPEED)
    return _soak(run, traffic, FAULT_S, TAILRACE_WINDOWS__IDLE_S="600")


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
    traffic = Traffic(run.seed, starts_on_window(now_us()) + 10 * S, run.size * 60, samples=600)
    return _soak(run, traffic, LIVE_FAULT_S)


def _soak(run: Run, traffic: Traffic, fault_s: tuple[float, float], **environment: str) -> Result:
    if missing := why_no_kafka():
        return Result(skipped=missing)
    rng = random.Random(run.seed)
    with World.of(run.directory, "soak", **environment) as world:
        flow = world.add_flow("windows", "windows")
        world.add_traffic(traffic)
        watched = {name: Watched(world.parts[name]) for name in ("windows", "broker", "clickhouse")}
        sizes = _Sizes(run.directory)
        done: Counter[str] = Counter()
        began_s = monotonic_s()
        with watching(*watched.values()), watching(sizes, every_s=2):
            world.until(lambda: world.bench.counters().get("samples"), "samples are counted")
            while not world.parts["sender"].done and monotonic_s() - began_s < traffic.seconds / traffic.speed:
                threading.Event().wait(rng.uniform(*fault_s))
                kinds = FIRST_FAULTS if world.confirmed() < traffic.seconds / 3 else LATER_FAULTS
                how, _, name = kinds[sum(done.values()) % len(kinds)].partition(" ")
                if _fault(world.parts[name], how, rng):
                    done[f"{how} {name}"] += 1
                    if sum(done.values()) % 50 == 0:
                        run.say(f"{sum(done.values())} faults, {world.confirmed() // 60} of {run.size} minutes sent")
            made = finish(world, traffic)
        took_s = monotonic_s() - began_s
        rows = check_rows(world.bench, made)
        assert flow.code == 0
    slopes: dict[str, float] = {}
    most: dict[str, float] = {}
    for name, one in watched.items():
        slopes[f"memory of {name}: MB an hour"] = _slope(one.at_s, one.rss_mb)
        slopes[f"open files of {name}: an hour"] = _slope(one.at_s, one.fds)
        most |= {f"memory of {name}: most, MB": one.most_mb(), f"open files of {name}: most": max(one.fds)}
        most[f"threads of {name}: most"] = max(one.threads)
    slopes["recovery directory: MB an hour"] = _slope(sizes.at_s, sizes.mb["recovery"])
    if took_s < JUDGED_S:
        slopes = {}
    failures = [
        run.failure(f"{what}: {slope:.1f}")
        for what, slope in slopes.items()
        if slope > (MOST_FDS_AN_HOUR if "files" in what else MOST_MB_AN_HOUR) and what != "memory of broker: MB an hour"
    ]
    if watched["broker"].most_mb() > MOST_BROKER_MB:
        failures.append(run.failure(f"memory of the broker: {watched['broker'].most_mb():.0f} MB"))
    figures: dict[str, Figure] = {
        **dict(sorted(done.items())), "samples": made.counters["samples"], "rows equal to the oracle": rows,
        "wall time, s": took_s, "slopes": "below" if slopes else f"not judged in less than {JUDGED_S:g} s",
        **slopes, **most, "recovery directory: most, MB": max(sizes.mb["recovery"]),
        "database: most, MB": max(sizes.mb["clickhouse"]),
    }  # fmt: skip
    plots = [
        *(one.plot(name) for name, one in watched.items()),
        *(Plot(f"size of {name}", "s", "MB", sizes.at_s, mb) for name, mb in sizes.mb.items()),
        *(Plot(f"open files of {name}", "s", "files", watched[name].at_s, [float(count) for count in watched[name].fds])
          for name in ("windows", "clickhouse")),
        Plot("threads of clickhouse", "s", "threads", watched["clickhouse"].at_s,
             [float(count) for count in watched["clickhouse"].threads]),
    ]  # fmt: skip
    return Result(run.size, [run.seed], figures, failures, plots)


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


class _Sizes:
    """What lies on disk."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._began_s = monotonic_s()
        self.at_s: list[float] = []
        self.mb: dict[str, list[float]] = {"recovery": [], "clickhouse": []}

    def look(self) -> None:
        self.at_s.append(monotonic_s() - self._began_s)
        for name, found in self.mb.items():
            found.append(_size(self._directory / name) / 2**20)


def _size(directory: Path) -> int:
    """What its files take, of those that stay while it looks."""
    size = 0
    for place, _, names in os.walk(directory):  # passes over a directory that is deleted meanwhile
        for name in names:
            with suppress(OSError):
                size += (Path(place) / name).stat().st_blocks * 512
    return size


def _slope(at_s: list[float], values: list[float] | list[int]) -> float:
    """An hour, after the warm-up."""
    first = int(len(at_s) * WARM_UP)
    if len(at_s) - first < 3:
        return 0.0
    return float(np.polyfit(np.array(at_s[first:]) / 3600, np.array(values[first:], dtype=float), 1)[0])
