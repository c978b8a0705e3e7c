"""The clock of the flow's host is set, ahead and back, and put right again, in the virtual worlds of `windows`."""

import shutil
import struct
import subprocess
import sys
import threading
import traceback
from bisect import bisect_right
from collections import Counter
from pathlib import Path
from random import Random

from tailrace_flows.broker_clock import TOLERANCE_US
from tailrace_flows.core.counters import Count
from tailrace_flows.core.steady import SteadyClock
from tailrace_schemas.clock import monotonic_s, now_us
from tailrace_schemas.samples import Series, encode_batch, encode_series_table

from tests.flows.machine import S
from tests.reliability.attack import Result, Run, attack
from tests.reliability.seeds import seeds
from tests.reliability.traffic import CONFIG, Traffic
from tests.reliability.windows import MODES, Plan, World, judge_live
from tests.reliability.world import World as Processes
from tests.reliability.world import (
    alert_events,
    check_alerts,
    check_rows,
    configure,
    counters_of_windows,
    delivered,
    finish,
    python,
    starts_on_window,
    told,
    why_no_kafka,
)

__all__ = ["play"]

STEPS_S = (0.5, 5.0, 60.0, 3600.0, 86400.0)
STEPS_OF_A_WORLD = 600
ROUND = ((7200, 22), (0, 15), (-7200, 15), (0, 25))
"""By how many seconds the clock of real processes is wrong, and for how many it then stays so. By more than an hour:
Kafka refuses records that are so far ahead."""
TRAFFIC_S = 130
PATIENCE_S = 90.0


class Stepping(World):
    """A live world on a host whose clock is set; records are sent at their own, true time."""

    def __init__(self, plan: Plan) -> None:
        self.error_us = 0
        """By how much the host's clock is ahead of true time."""
        self.believed_us = 0
        """By how much the time that the process goes by is: as the clock was when it started, or the broker's."""
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
        """A new process, which believes the clock as it is, unless it is ahead of the broker's, which is right, or of
        what the process before it believed."""
        true_us = self.true_now_us
        if offset_us is None and self.error_us > TOLERANCE_US:
            offset_us = 0
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
                world.crash(random.randrange(1 << 30))
                world.start()
                world.steps["starts while the clock is ahead"] += world.error_us > 0
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
    """Worlds until there are enough steps, and of all seeds that failed before."""
    result = Result()
    done: Counter[str] = Counter()
    for seed in seeds(run, result):
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
    promise="Flows whose host's clock is set by two hours, ahead or back, and put right, go on within seconds, count "
    "every sample once, and tell every alert once.",
    what="Real processes on a real Kafka: the windows, in two processes and then in one by turns, and alerts, under a "
    "library that shifts their wall clock (but not the kernel's) while services send, one of them seldom; they are "
    "killed (kill -9) and start again while it is ahead; rows and alert events against exact computation; needs a C "
    "compiler.",
    unit="rounds",
    short=1,
    long=10,
)
def host_clock_process(run: Run) -> Result:
    """A round: ahead, when flows are killed too, put right, back, put right."""
    compiler = shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        return Result(skipped="needs Linux and a C compiler (cc)")
    if missing := why_no_kafka():
        return Result(skipped=missing)
    library, source = run.directory / "set_clock.so", Path(__file__).with_name("set_clock.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-O2", "-o", library, source], check=True)
    figures: Counter[str] = Counter()
    behind_s = {"rows": 0.0, "alerts": 0.0}
    for number in range(run.size):
        directory = run.directory / str(number)
        directory.mkdir()
        with Processes.of(directory, "clock", contents=("replay", "snapshot")[number // 2 % 2]) as world:
            _round(run, number, world, library, figures, behind_s)
    shown = {
        f"{name}, seconds after the clock was wrong or right for a while": value for name, value in behind_s.items()
    }
    return Result(run.size, [run.seed + number for number in range(run.size)], {**figures, **shown})


def _round(
    run: Run, number: int, world: Processes, library: Path, figures: Counter[str], behind_s: dict[str, float]
) -> None:
    b, random = world.bench, Random(f"clock {run.seed + number}")
    configure(b, CONFIG)
    offset = b.directory / "offset"
    offset.write_bytes(bytes(8))
    shifted = {"LD_PRELOAD": str(library), "SET_CLOCK_FILE": str(offset)}
    command = python("-m", "tailrace_infra.cli", "run")
    world.add("windows", [*command, "windows", "--processes", str(2 - number % 2)], **shifted)
    world.add("alerts", [*command, "alerts"], **shifted)
    traffic = Traffic(run.seed + number, starts_on_window(now_us()) + 10 * S, TRAFFIC_S)
    world.add_traffic(traffic)
    producer, pause = b.producer(), threading.Event()
    table = encode_series_table((Series("m", "counter", "", ()),))

    def send_seldom(seconds: float) -> None:
        """A service that is silent but for three seconds: wall time closes its windows."""
        began_s, from_s = monotonic_s(), random.uniform(0, seconds - 3)
        while (at_s := monotonic_s() - began_s) < seconds:
            if 0 <= at_s - from_s < 3:
                message = encode_batch(
                    service="seldom", producer_id="seldom", sequence=-1, base_time_us=now_us(), series_table=table,
                    series_index=bytes(4), time_offset_us=bytes(4), value=struct.pack("<d", 1),
                )  # fmt: skip
                b.send(producer, [("seldom", message)])
            pause.wait(0.5)

    def count(wanted: int) -> bool:
        return counters_of_windows(b).get("samples", 0) >= wanted

    def tell(until_s: float) -> bool:
        return {one for one in traffic.events() if one[1] <= until_s} <= set(told(alert_events(b)[0]))

    def starts(name: str) -> int:
        return world.parts[name].log.read_text().count("starting anew")

    world.until(lambda: count(1), "samples are counted")
    for error_s, seconds in ROUND:
        run.say(f"the clock is {error_s:+d} s")
        with offset.open("r+b") as file:
            file.write((error_s * S).to_bytes(8, "little", signed=True))
        if error_s > 0:
            for name in ("windows", "alerts"):
                world.parts[name].kill()
        send_seldom(seconds)
        began_s, began_us = monotonic_s(), now_us()
        wanted = delivered(b).counters["samples"]
        for what, done in (("rows", lambda: count(wanted)), ("alerts", lambda: tell(began_us / S))):  # noqa: B023
            world.until(done, f"{what} go on at {error_s:+d} s", PATIENCE_S)
            behind_s[what] = max(behind_s[what], round(monotonic_s() - began_s, 1))
        if error_s > 0:
            for name in ("windows", "alerts"):
                assert not starts(name), f"a clock set ahead is believed: {world.tails()}"
                assert "ahead of that of Kafka's broker" in world.parts[name].log.read_text(), world.tails()
    world.until(lambda: world.parts["sender"].done, "the traffic is sent")
    world.until(lambda: tell(now_us() / S), "all alerts are told")
    made = finish(world, traffic)
    assert world.parts["alerts"].stop() == 0, world.tails()
    # A start may be refused while processes of the killed cluster end.
    refused = Counter({name: world.parts[name].log.read_text().count("is in use by process") for name in world.ended})
    assert not world.ended - refused, f"ended: {world.ended}, refused: {refused}\n{world.tails(20)}"
    figures["samples"] += made.counters["samples"]
    figures["rows equal to the oracle"] += check_rows(b, made)
    figures["alert events"] += check_alerts(b, traffic)[0]
    for name in ("windows", "alerts"):
        assert starts(name) >= 2, f"{name} did not notice that the clock was set back: {world.tails()}"
        figures[f"starts of {name} by another clock"] += starts(name)
