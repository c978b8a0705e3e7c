"""The clock of the flow's host is set, ahead and back, and put right again, in the virtual worlds of `windows`."""

import shutil
import struct
import subprocess
import sys
import threading
import traceback
from bisect import bisect_right
from collections import Counter
from itertools import chain, count
from pathlib import Path
from random import Random

from tailrace_flows.core.counters import Count
from tailrace_flows.core.steady import SteadyClock
from tailrace_infra.child import start_child
from tailrace_schemas.clock import monotonic_s, now_us
from tailrace_schemas.samples import Series, encode_batch, encode_series_table

from tests.flows.machine import S
from tests.reliability.attack import Result, Run, attack
from tests.reliability.seeds import failed_before
from tests.reliability.windows import MODES, Plan, World, judge_live
from tests.system.harness import Bench, bench, clickhouse_process

__all__ = ["play"]

STEPS_S = (0.5, 5.0, 60.0, 3600.0, 86400.0)
WRONG_S = 10.0
"""A clock that is further ahead is wrong when a process starts, which then believes it: see docs/reliability.md."""
STEPS_OF_A_WORLD = 600


class Stepping(World):
    """A live world on a host whose clock is set; records are sent at their own, true time."""

    def __init__(self, plan: Plan) -> None:
        self.error_us = 0
        """By how much the host's clock is ahead of true time."""
        self.believed_us = 0
        """By how much the time that the process goes by is: as the clock was when it started."""
        self.steps: Counter[str] = Counter()
        super().__init__(plan)
        self.steady = SteadyClock(self.now_us, self.now_us)

    @property
    def true_now_us(self) -> int:
        return self.now_us - self.believed_us

    def reveal(self) -> None:
        self.hidden = [
            len(log) - bisect_right(log, self.true_now_us, key=lambda entry: entry.record_time_us)
            for log in self.entries
        ]

    def poll(self, number: int, records: int) -> int:
        at = self.partitions[number].next_offset - self.low
        found = super().poll(number, records)
        if found:
            times_us = [record.time_us for record in self.logs[number][at : at + found]]
            self.steady.hear(min(times_us), self.true_now_us)
        self.look()
        return found

    def wait(self, seconds: float) -> None:
        super().wait(seconds)
        self.look()

    def step(self, random: Random) -> None:
        """The clock is set: by any of STEPS_S, or right."""
        if self.error_us and random.random() < 0.5:
            self.error_us = 0
            self.steps["put right"] += 1
        else:
            by_us = round(random.choice(STEPS_S) * S) * random.choice((-1, 1))
            self.error_us += by_us
            self.steps["set ahead" if by_us > 0 else "set back"] += 1
        self.look()

    def look(self) -> None:
        """As the main thread of a process does, many times a second."""
        true_us = self.true_now_us
        assert self.steady.now_us(true_us) == self.now_us
        if self.steady.set_by_us(true_us + self.error_us, true_us):
            self.steps["starts by another clock"] += 1
            self.crash(self.crashes)
            self.start(self.steady.offset_us)

    def start(self, offset_us: int | None = None) -> None:
        """A new process, which believes the clock as it is, or what the process before it believed."""
        true_us = self.true_now_us
        self.steady = SteadyClock(true_us + self.error_us, true_us, offset_us)
        self.now_us = self.steady.now_us(true_us)
        self.believed_us = self.now_us - true_us
        self._restore()

    def read(self, cut: int) -> int:
        """Reads what was sent; how many polls that took."""
        polls = 0
        for number in range(len(self.logs)):
            while self.poll(number, cut):
                polls += 1
        return polls


def play(seed: int) -> tuple[int, Counter[str]]:
    """Lets the world of this seed happen. Returns its number of steps, and what was in it.

    Raises:
        AssertionError: a row is wrong, or something is counted as late that was not.
    """
    random = Random(f"clock {seed}")
    world = Stepping(MODES["live"](random))
    cut = random.choice((1, 3, 10, 200))
    done = 0
    while done < STEPS_OF_A_WORLD:
        done += 1
        match random.choices(("poll", "wait", "commit", "crash", "step"), (60, 20, 14, 4, 2))[0]:
            case "poll":
                world.poll(random.randrange(len(world.logs)), random.randint(1, cut))
            case "wait":
                world.wait(random.choice((0.001, 0.01, 0.3, 1.1, 2.5)))
            case "commit":
                world.commit()
            case "crash":
                if world.error_us <= WRONG_S * S:
                    world.crash(random.randrange(1 << 30))
                    world.start()
            case _:
                world.step(random)
    done += world.read(cut)
    while (next_us := world.next_record_us()) is not None:
        world.wait(max(0.0, next_us - world.true_now_us) / S + random.choice((0, 0.5, 5)))
        done += world.read(cut) + 1
        world.commit()
        if random.random() < 0.02:
            world.step(random)
    world.finish(cut)
    judge_live(world)
    samples = sum(value for (*_, name), value in world.counters.items() if name == Count.SAMPLES)
    return done, world.steps + Counter(samples=samples, rows=len(world.rows), crashes=world.crashes)


@attack(
    name="host_clock",
    promise="A host's clock that is set, ahead or back, wrongly or right, makes nothing late, loses nothing and counts "
    "nothing twice.",
    what="The windows' state machines in virtual worlds on a host whose clock is set by up to a day at a time, at any "
    "step, between crashes; all rows and counters against exact computation.",
    unit="steps",
    short=20_000,
    long=1_000_000,
)
def host_clock(run: Run) -> Result:
    """Worlds until there are enough steps: those that failed before, then run.seed and those after it."""
    result = Result()
    done: Counter[str] = Counter()
    for seed in chain(failed_before(run.name), count(run.seed)):
        if result.runs >= run.size:
            break
        result.seeds.append(seed)
        try:
            steps, found = play(seed)
        except Exception:  # noqa: BLE001 - whatever it is, this seed does it again
            result.failures.append(run.failure(traceback.format_exc(), seed=seed, size=1))
            result.runs += STEPS_OF_A_WORLD
            continue
        result.runs += steps
        done += found
    result.figures = {"worlds": len(result.seeds), **dict(sorted(done.items()))}
    return result


@attack(
    name="host_clock_process",
    promise="A flow whose host's clock is set by an hour, ahead or back, and put right, goes on within seconds, and "
    "counts every sample once.",
    what="A real process of the windows on the embedded broker and ClickHouse, under a library that shifts its wall "
    "clock (but not the kernel's) while two services send; needs a C compiler.",
    unit="rounds",
    short=1,
    long=10,
)
def host_clock_process(run: Run) -> Result:
    """A round: ahead, put right, back, put right."""
    compiler = shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        return Result(skipped="needs Linux and a C compiler (cc)")
    library, offset = run.directory / "set_clock.so", run.directory / "offset"
    source = Path(__file__).with_name("set_clock.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-O2", "-o", library, source], check=True)
    offset.write_bytes(bytes(8))
    result = Result(seeds=[run.seed])
    broker = start_child("tailrace_infra.broker")
    try:
        servers = broker.ready["bootstrap_servers"]
        with (
            clickhouse_process(run.directory / "clickhouse") as url,
            bench(servers, url, run.directory, "clock", "snapshot") as b,
        ):
            flow = b.start_flow("windows", LD_PRELOAD=str(library), SET_CLOCK_FILE=str(offset))
            _rounds(run, result, b, offset)
            if code := flow.stop():
                result.failures.append(run.failure(f"exit code {code}: {b.log()[-2000:]}"))
            result.figures = {**result.figures, "starts by another clock": b.log().count("starting anew")}
    finally:
        broker.stop()
    return result


def _rounds(run: Run, result: Result, b: Bench, offset: Path) -> None:
    producer, pause = b.producer(), threading.Event()
    table = encode_series_table((Series("m", "counter", "", ()),))
    sent, longest_s = 0, 0.0

    def send() -> None:
        nonlocal sent
        for service in ("one", "two") if sent % 60 < 20 else ("one",):  # the second falls silent at times
            message = encode_batch(
                service=service, producer_id=service, sequence=-1, base_time_us=now_us(), series_table=table,
                series_index=bytes(4), time_offset_us=bytes(4), value=struct.pack("<d", 1),
            )  # fmt: skip
            b.send(producer, [(service, message)])
            sent += 1
        pause.wait(0.5)

    def caught_up(since_s: float, wanted: int) -> None:
        nonlocal longest_s
        while b.counters().get("samples", 0) < wanted:
            if monotonic_s() - since_s > 90:
                result.failures.append(run.failure(f"of {wanted} samples {b.counters()}: {b.log()[-2000:]}"))
                return
            send()
        longest_s = max(longest_s, monotonic_s() - since_s)

    for _ in range(run.size):
        result.runs += 1
        for error_s in (3600, 0, -3600, 0):
            run.say(f"the clock is {error_s:+d} s")
            with offset.open("r+b") as file:
                file.write((error_s * S).to_bytes(8, "little", signed=True))
            until_s = monotonic_s() + 25
            while monotonic_s() < until_s:
                send()
            caught_up(monotonic_s(), sent)
    pause.wait(3)
    found = b.counters()
    if found.get("samples") != sent or found.get("late_samples"):
        result.failures.append(run.failure(f"of {sent} samples {found}"))
    result.figures = {"samples": sent, "behind 25 s after the clock was set, seconds": round(longest_s, 1)}
