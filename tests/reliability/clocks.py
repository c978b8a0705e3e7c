"""The clock of the flow's host steps back, and is put right again, in the virtual worlds of `windows`."""

import traceback
from bisect import bisect_right
from collections import Counter
from itertools import chain, count
from random import Random

from tailrace_flows.core.counters import Count

from tests.flows.machine import S
from tests.reliability.attack import Result, Run, attack
from tests.reliability.seeds import failed_before
from tests.reliability.windows import MODES, Plan, World, judge_live

__all__ = ["play"]

BACK_S = (0.5, 5.0, 60.0, 3600.0)
STEPS_OF_A_WORLD = 600


class Stepping(World):
    """A live world whose clock is `behind_us` behind; records are sent at their own time."""

    behind_us = 0

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self.steps: Counter[str] = Counter()

    @property
    def true_us(self) -> int:
        return self.now_us + self.behind_us

    def reveal(self) -> None:
        self.hidden = [
            len(log) - bisect_right(log, self.true_us, key=lambda entry: entry.record_time_us) for log in self.entries
        ]

    def step(self, random: Random) -> None:
        """Back, or forth by a minute at most, but never ahead of true time."""
        if self.behind_us and random.random() < 0.5:
            by_us = -min(self.behind_us, 60 * S)
            self.steps["steps forth, up to right"] += 1
        else:
            by_us = round(random.choice(BACK_S) * S)
            self.steps["steps back"] += 1
        self.behind_us += by_us
        self.now_us -= by_us

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
            case _:
                world.step(random)
    done += world.read(cut)
    while (next_us := world.next_record_us()) is not None:
        world.wait(max(0.0, next_us - world.true_us) / S + random.choice((0, 0.5, 5)))
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
    promise="A host's clock that steps back, and is put right, makes nothing late, loses nothing and counts nothing "
    "twice.",
    what="The windows' state machines in virtual worlds whose clock steps back by up to an hour at a time, at any "
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
