"""Who hears nothing for a while, as Kafka hangs or a flow is stopped, must not take anybody for silent."""

import random
import signal
import threading
from collections import Counter
from functools import partial

from tailrace_schemas.clock import now_us

from tests.reliability.attack import Result, Run, attack
from tests.reliability.traffic import CONFIG, S, Traffic
from tests.reliability.world import (
    World,
    alert_events,
    check_alerts,
    check_rows,
    configure,
    finish,
    starts_on_window,
    told,
    why_no_kafka,
)

VICTIMS = ("broker", "alerts", "windows")
"""In turns."""
STOPPED_S = (72.0, 90.0)
"""Longer than idle_s + lateness_s, when wall time closes windows for good, and than rules wait for who is silent."""
APART_S = 40.0


@attack(
    name="standstill",
    promise="While Kafka hangs, or a flow is held up, nobody is taken for silent: every row is exact, and every alert "
    "of that time is told when it is over.",
    what="The broker, the flow of alerts, and the window flow are stopped (SIGSTOP) for "
    f"{STOPPED_S[0]:g} to {STOPPED_S[1]:g} s in turns, under live load, with alerts that begin and end in that time.",
    unit="standstills",
    short=3,
    long=21,
)
def standstill(run: Run) -> Result:
    if missing := why_no_kafka():
        return Result(skipped=missing)
    rng = random.Random(run.seed)
    with World.of(run.directory, "still") as world:
        b = world.bench
        configure(b, CONFIG)
        world.add_flow("windows", "windows")
        world.add_flow("alerts", "alerts,slo,health")
        seconds = int(run.size * (STOPPED_S[1] + APART_S)) // 10 * 10
        traffic = Traffic(run.seed, starts_on_window(now_us()) + 10 * S, seconds)
        world.add_traffic(traffic)
        stopped: Counter[str] = Counter()
        alerted = 0
        for number in range(run.size):
            alerted = world.until(partial(_alerts, world, alerted), "the flow of alerts goes on")
            victim = VICTIMS[number % len(VICTIMS)]
            for_s = rng.uniform(*STOPPED_S)
            world.parts[victim].signal(signal.SIGSTOP)
            threading.Event().wait(for_s)
            world.parts[victim].signal(signal.SIGCONT)
            stopped[victim] += round(for_s)
        made = finish(world, traffic)
        world.until(lambda: len(told(alert_events(b)[0])) >= len(traffic.events()), "all alerts are told")
        assert world.parts["alerts"].stop() == 0, world.tails()
        rows = check_rows(b, made)
        events, again = check_alerts(b, traffic)
    figures = {
        **{f"seconds that it stood still: {victim}": seconds for victim, seconds in stopped.items()},
        "samples": made.counters["samples"], "rows equal to the oracle": rows,
        "alert events equal to the oracle": events, "alert events told again, same id": again,
    }  # fmt: skip
    return Result(run.size, [run.seed], figures)


def _alerts(world: World, than: int) -> int:
    """How many there are, if that is more."""
    count = len(told(alert_events(world.bench)[0]))
    return count if count > than else 0
