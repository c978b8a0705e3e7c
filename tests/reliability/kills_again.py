"""kill -9 of the window flow while an epoch's states are stored in part, and again when that epoch was done again."""

import random
import sqlite3
import threading
from contextlib import closing
from signal import SIGCONT, SIGSTOP
from typing import NamedTuple

from tailrace_schemas.clock import monotonic_s, now_us

from tests.reliability.attack import Result, Run, attack
from tests.reliability.traffic import S, Traffic
from tests.reliability.world import World, check_rows, finish, starts_on_window, why_no_kafka

EPOCH_S = "0.03"
PROPERTIES = '{"fetch.min.bytes": "100000000", "fetch.wait.max.ms": "1500"}'
"""The broker keeps each answer back for so long: for a while after its start the flow reads nothing."""
SERVICES = 6
"""In all partitions."""
PAUSE_S = (0.2, 2.0)
UNDONE_S = 8.0
"""So long ClickHouse stands still at most: after 10 s the flow writes to its disk instead, and epochs end again."""
MOST_AGAIN = 3
"""Kills in a series, after its first."""
SOON_S = (0.0, 0.4)
"""From the end of the epoch that the kill before it cut off to the next kill."""
AHEAD_US = 40 * S
PER_KILL_S = 4.0


@attack(
    name="kills_again",
    promise="Every sample that Kafka has confirmed is counted once and is in exactly one row, however soon a flow that "
    "was killed is killed again.",
    what="kill -9 of the window flow when states are stored of an epoch that cannot end, as ClickHouse stands still, "
    "and up to three times more, each time when it was done again: with nothing, as the broker keeps the flow waiting.",
    unit="kills",
    short=12,
    long=300,
)
def kills_again(run: Run) -> Result:
    if missing := why_no_kafka():
        return Result(skipped=missing)
    with World.of(run.directory, "again", TAILRACE_RECOVERY__EPOCH_S=EPOCH_S) as world:
        return _kill(run, world)


def _kill(run: Run, world: World) -> Result:
    rng = random.Random(run.seed)
    flow = world.add_flow("windows", "windows", TAILRACE_KAFKA__PROPERTIES=PROPERTIES)
    clickhouse = world.parts["clickhouse"]
    seconds = max(60, int(run.size * PER_KILL_S) // 10 * 10)
    start_us = starts_on_window(now_us() + AHEAD_US)
    traffic = Traffic(run.seed, start_us, seconds, services=SERVICES, hosts=2, ahead_us=AHEAD_US)
    world.add_traffic(traffic)
    kills = said = in_part = 0
    begun = -1
    began_s = monotonic_s()
    while kills < run.size:
        begun = _await_an_end(world, begun)
        threading.Event().wait(rng.uniform(*PAUSE_S))
        clickhouse.signal(SIGSTOP)
        undone = _await_undone(world)
        in_part += undone
        kills += flow.kill()
        clickhouse.signal(SIGCONT)
        for _ in range(rng.randint(1, MOST_AGAIN) if undone else 0):
            begun = _await_an_end(world, begun)
            threading.Event().wait(rng.uniform(*SOON_S))
            kills += flow.kill()
        if kills // 20 > said:
            said = kills // 20
            run.say(f"{kills} kills in {monotonic_s() - began_s:.0f} s, {world.confirmed()} of {seconds} s sent")
    took_s = monotonic_s() - began_s
    made = finish(world, traffic)
    rows = check_rows(world.bench, made)
    figures = {
        "kills while an epoch's states were stored in part": in_part,
        "minutes of killing": took_s / 60,
        "samples": made.counters["samples"],
        "rows of 10 s equal to the oracle": rows,
    }
    return Result(kills, [run.seed], figures)


class _Reached(NamedTuple):
    """What the recovery files say of the flow's last run."""

    number: int
    resumed: int
    """The epoch that it began with."""
    reached: int
    """The epoch that it is in."""
    stored: int
    """The last epoch of which a shard's state is stored."""


def _await_undone(world: World) -> bool:
    """Until a shard's state is stored of an epoch that has not ended, within UNDONE_S; whether it is."""
    until_s = monotonic_s() + UNDONE_S
    while monotonic_s() < until_s:
        found = _reached(world)
        # An epoch that ends does so at once: one that is still there on a second look waits for ClickHouse.
        if found.stored >= found.reached and _reached(world) == found:
            return True
        threading.Event().wait(0.02)
    return False


def _await_an_end(world: World, before: int) -> int:
    """Until a run of the flow after that one has ended the epoch that it began with; its number."""

    def ended() -> _Reached | None:
        found = _reached(world)
        return found if found.number > before and found.reached > found.resumed else None

    number: int = world.until(ended, "the flow begins again and ends an epoch", every_s=0.01).number
    return number


def _reached(world: World) -> _Reached:
    runs, fronts, stored = [(-1, 0)], [(-1, 0)], 0
    for path in (world.bench.directory / "recovery" / "windows").glob("part-*.sqlite3"):
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as file:
            runs += file.execute("SELECT ex_num, resume_epoch FROM exs")
            fronts += file.execute("SELECT ex_num, worker_frontier FROM fronts")
            of_shards = "SELECT max(snap_epoch) FROM snaps WHERE step_id LIKE '%.windows%'"
            stored = max(stored, *(epoch or 0 for (epoch,) in file.execute(of_shards)), 0)
    number, resumed = max(runs)
    return _Reached(number, resumed, max((at for run, at in fronts if run == number), default=resumed), stored)
