"""Windows in a virtual world: partitions and shards as the dataflow drives them, against exact computation.

A world is made from its seed alone: services and producers that send, repeat, hold back and lose batches; polls,
epochs, crashes, drains, restarts with another configuration, topics that grow, nights without a sample. When it is
over, every row, counter, event and dead letter must be what `tests.flows.oracle` computes from the logs, exactly.
"""

import traceback
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from random import Random

from tailrace_flows.core.config import WindowConfig
from tailrace_flows.core.counters import Count
from tailrace_schemas.samples import KINDS, Series

from tests.flows.machine import START_US, Machine, S, check, check_events, check_row
from tests.flows.oracle import DAY_US, Batch, Entry, Expected, Garbage, Key, Single, expect, rows_of
from tests.reliability.attack import Result, Run, attack
from tests.reliability.seeds import seeds

__all__ = ["MODES", "Plan", "World", "judge_live", "play"]

SERVICES = ("cart", "service-64", "checkout", "search", "mail\n\x1b[31m", "täglich", "s" * 200)
"""The first two share a shard."""
NASTY = (
    0.0, -0.0, 1.0, 1.0, 2.0, 64.0, 0.1, 5e-324, -5e-324, 2.2250738585072014e-308, 1e300, -1e300, -2.5, -64.0,
)  # fmt: skip
NOT_FINITE = (float("nan"), float("inf"), float("-inf"))
GARBAGE = (
    (None, "malformed"),
    (b"", "truncated"),
    (b"not Avro at all", "unknown_schema"),
)
STEPS_OF_A_WORLD = 600
NO_LATENESS_S = 1e7


@dataclass
class Plan:
    """What a world is made of, besides its log."""

    logs: list[list[Entry]]
    config: WindowConfig
    configs: list[WindowConfig]
    """Those that restarts may bring."""
    hold: bool
    live: bool
    """Records become visible as time passes; otherwise all are there from the start."""
    scattered: bool = False
    """A service is in several partitions."""
    torn: bool = True
    """A crash leaves some of what was emitted since the last commit written."""
    grown: list[list[Entry]] = field(default_factory=list)
    """Logs of partitions that are added on the way."""
    retained: bool = True
    """Until they are read; otherwise the broker deletes records while the dataflow is away."""


class World(Machine):
    """A machine whose clock makes records visible, and which may restart as another configuration says."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.entries = [list(log) for log in plan.logs]
        self.used = [plan.config]
        self.unread: set[tuple[int, int]] = set()
        """(partition, offset) of what was deleted before it was counted."""
        super().__init__(plan.logs, plan.config, hold=plan.hold, now_us=START_US + (0 if plan.live else 3 * DAY_US))
        # Of a counter whose earlier points are lost, versions may be lower for a while as well.
        self.scattered = plan.scattered or not plan.retained
        self.reveal()

    def reveal(self) -> None:
        """Records whose time has come have been sent."""
        if self.plan.live:
            self.hidden = [
                len(log) - bisect_right(log, self.now_us, key=lambda entry: entry.record_time_us)
                for log in self.entries
            ]

    def wait(self, seconds: float) -> None:
        super().wait(seconds)
        self.reveal()

    def next_record_us(self) -> int | None:
        """When the next record will be sent; None: all are there."""
        waiting = zip(self.entries, self.hidden, strict=True)
        return min((log[-hidden].record_time_us for log, hidden in waiting if hidden), default=None)

    def is_closed(self, key: Key) -> bool:
        """Whether blocks have said so of the row's window."""
        return (key.start_s + key.seconds) * S <= self.closed_us.get((key.service, key.stream), 0)

    def crash(self, seed: int = 0) -> None:
        if not self.plan.torn:
            self._emitted = []
        super().crash(seed)

    def restart(self, config: WindowConfig, *, drained: bool) -> None:
        """Stops, cleanly or not, and starts with `config`."""
        if drained:
            self.drain()
        else:
            self.crash()
        self.config = config
        self.used.append(config)
        self._restore()

    def delete(self, random: Random) -> None:
        """Just after a restart: the broker has deleted the beginning of a partition, as far as it has been sent."""
        number = random.randrange(len(self.logs))
        if self.committed[0][number] is None:
            return  # who has no state begins where the broker does
        partition = self.partitions[number]
        sent = len(self.logs[number]) - self.hidden[number]
        low = random.randint(partition.next_offset, max(partition.next_offset, min(sent, partition.position + 3)))
        if low > self.kept_from[number]:
            self.delete_before(number, low)
        self.unread |= {(number, offset) for offset in range(partition.position, self.kept_from[number])}

    def grow(self) -> None:
        """The topic gets another partition; the dataflow is restarted to see it."""
        log = self.plan.grown.pop()
        self.entries.append(log)
        self.append([*([] for _ in self.logs), log])
        self.hidden.append(0)
        self.kept_from.append(0)
        partitions, shards = self.committed
        self.committed = ([*partitions, None], shards)
        self.crash()
        self.reveal()


class Clients:
    """Services that send to a topic: makes its logs, in the order in which records arrive."""

    def __init__(self, random: Random, partitions: int) -> None:
        self.random = random
        self.now_us = START_US
        self.logs: list[list[Entry]] = [[] for _ in range(partitions)]
        self.sequences: Counter[tuple[str, str, str]] = Counter()
        self.held: list[tuple[int, Batch]] = []
        """(when it is sent after all, batch)."""
        self.nights = 0
        self.ended: set[tuple[str, str]] = set()
        self.services = random.sample(SERVICES, random.randint(1, 5))
        wide = random.random() < 0.06
        self.tables = {service: self._tables(wide) for service in self.services}
        self.sizes = random.choice(((0, 1, 2, 5), (0, 1, 2, 5), (1, 20, 60), (100, 400))) if not wide else (400, 1500)
        self.values = [random.lognormvariate(-3, 1.5) for _ in range(300)] + list(NASTY)

    def _tables(self, wide: bool) -> list[tuple[Series, ...]]:
        random = self.random
        many = random.randint(800, 1500) if wide else random.choice((1, 4, 12, 60))
        every = [
            Series(f"m{n // 7}", KINDS[n % len(KINDS)], "s", (("route", f"/{n}"),) if n % 3 else ())
            for n in range(many)
        ]
        tables = []
        for _ in range(random.randint(1, 3)):
            table = every if random.random() < 0.5 else random.sample(every, random.randint(1, len(every)))
            tables.append(tuple(table))
        return tables

    def send(self, *, lags_us: Callable[[], int], scattered: bool, faults: bool, backfill: bool) -> None:
        """One batch of one service, and what goes wrong with it."""
        random = self.random
        self._send_held()
        service = random.choice(self.services)
        stream = f"backfill-{self.nights}" if backfill and random.random() < 0.15 else ""
        number = random.randrange(len(self.logs)) if scattered else SERVICES.index(service) % len(self.logs)
        log = self.logs[number]
        clock_us = self.now_us - (6 * 3600 * S if stream else 0)
        table = random.choice(self.tables[service])
        samples = tuple(
            (random.randrange(len(table)), clock_us - lags_us(), random.choice(self.values))
            for _ in range(random.choice(self.sizes))
        )
        samples = tuple(one for one in samples if one[2] >= 0 or table[one[0]].kind not in ("counter", "cumulative"))
        action = random.random() if faults else 1.0
        if action < 0.01:
            value, reason = random.choice(GARBAGE)
            log.append(Garbage(value, reason, self.now_us))
            return
        if action < 0.03 and samples:
            row, time_us, one = samples[0]
            log.append(Single(service, stream, table[row], time_us, one, self.now_us))
            return
        if action < 0.05:
            bad = [(len(table) + 3, clock_us, 1.0), (0, clock_us, random.choice(NOT_FINITE))]
            if not stream:
                bad.append((0, clock_us + 90 * S, 1.0))
            samples = (*samples, *random.sample(bad, random.randint(1, 2)))
        producer = f"{service[:8]}-{random.randrange(2)}-{self.nights}"
        name = (service, stream, producer)
        sequence = -1 if action > 0.97 and faults else self.sequences[name]
        self.sequences[name] += sequence >= 0
        end = bool(stream) and faults and random.random() < 0.02
        batch = Batch(service, stream, producer, sequence, table, samples, self.now_us, end)
        if 0.05 <= action < 0.07 and sequence >= 0:  # lost
            return
        if 0.07 <= action < 0.10 and sequence >= 0:  # held back
            self.held.append((number, batch))
            return
        log.append(batch)
        if 0.10 <= action < 0.14 and sequence >= 0:  # sent twice
            self.held.append((number, batch))

    def _send_held(self) -> None:
        """Held batches arrive a moment later, in any order."""
        while self.held and self.random.random() < 0.5:
            number, batch = self.held.pop(self.random.randrange(len(self.held)))
            self.logs[number].append(batch._replace(record_time_us=self.now_us))

    def flush(self) -> None:
        """Everything that was held back arrives."""
        while self.held:
            self._send_held()


def _backlog(random: Random) -> Plan:
    """All is there from the start, and much of it is later than allowed."""
    clients = Clients(random, random.randint(1, 3))
    config = WindowConfig(
        disorder_s=random.choice((0.0, 2.0)),
        lateness_s=random.choice((60.0, 20.0, 0.000001)),
        max_future_s=0.0,
        scale=random.choice((6, 6, 0, 8)),
        generation=random.choice((0, 0, 3)),
    )
    lags = (0, 0, 0, 1, S, 2 * S, 9 * S, 10 * S, 29 * S, 61 * S, 70 * S - 1, 70 * S, 131 * S)
    pace_us = random.choice((S // 10, S, 5 * S))
    for _ in range(_entries(random, clients)):
        clients.now_us += random.randrange(2 * pace_us) if random.random() < 0.98 else 130 * S
        clients.send(lags_us=lambda: random.choice(lags), scattered=False, faults=True, backfill=True)
    clients.flush()
    return Plan(clients.logs, config, [config], random.random() < 0.6, live=False)


def _live(random: Random) -> Plan:
    """Records come as time passes, none later than allowed; services fall silent; restarts change the configuration."""
    clients = Clients(random, random.randint(1, 4))
    configs = [
        WindowConfig(
            disorder_s=random.choice((0.0, 2.0)),
            lateness_s=random.choice((20.0, 60.0, 120.0)),
            max_future_s=20.0,
            idle_s=random.choice((3.0, 10.0)),
            scale=random.choice((6, 6, 6, 4)),
            generation=generation,
        )
        for generation in (0, 0, 1, 2)
    ]
    pace_us = random.choice((S // 10, S, 3 * S))
    far_us = random.choice((0, 1, S, 9 * S))
    for _ in range(_entries(random, clients)):
        clients.now_us += random.randrange(2 * pace_us)
        chance = random.random()
        if chance < 0.01:
            clients.flush()
            clients.now_us += random.choice((12, 40, 75, 200)) * S
        elif chance < 0.012:
            clients.flush()
            clients.nights += 1
            clients.now_us += random.choice((4000, 25 * 3600)) * S
        # A held batch waits for some entries more: with the lag it stays below the least lateness.
        clients.send(
            lags_us=lambda: random.randint(-4 * S, far_us) if random.random() < 0.2 else 0,
            scattered=False,
            faults=pace_us < 3 * S,
            backfill=True,
        )
        if clients.held and clients.now_us - clients.held[0][1].record_time_us > 3 * S:
            clients.flush()
    clients.flush()
    return Plan(clients.logs, configs[0], configs, random.random() < 0.6, live=True)


def _scattered(random: Random) -> Plan:
    """A service is in several partitions, and the topic grows; nothing is late, so nothing may be missing."""
    partitions = random.randint(2, 5)
    clients = Clients(random, partitions)
    configs = [
        WindowConfig(lateness_s=NO_LATENESS_S, max_future_s=60.0, disorder_s=disorder_s) for disorder_s in (0.0, 2.0)
    ]
    for _ in range(_entries(random, clients)):
        clients.now_us += random.randrange(2 * S)
        clients.send(lags_us=lambda: random.randint(0, 20 * S), scattered=True, faults=False, backfill=False)
    late = random.randint(0, partitions - 1)
    logs, grown = clients.logs[late:], clients.logs[:late]
    hold, live = random.random() < 0.6, random.random() < 0.5
    return Plan(logs, configs[0], configs, hold, live, scattered=True, grown=grown)


def _overtaken(random: Random) -> Plan:
    """A service is in several partitions: one that is read ahead makes late what the others have still to bring.

    In which order they are read decides what is late, and that is another one after a crash: a row that the epoch of
    a crash had written may hold what is counted as late then. So that all is exact, here it has written nothing.
    """
    partitions = random.randint(2, 5)
    clients = Clients(random, partitions)
    configs = [
        WindowConfig(lateness_s=lateness_s, max_future_s=20.0, disorder_s=random.choice((0.0, 2.0)))
        for lateness_s in random.choices((20.0, 60.0, 60.0, 120.0), k=3)
    ]
    pace_us = random.choice((S // 10, S, 3 * S))
    for _ in range(_entries(random, clients)):
        chance = random.random()
        clients.now_us += random.randrange(2 * pace_us) if chance < 0.98 else random.choice((15, 130, 4000)) * S
        clients.send(lags_us=lambda: random.randint(0, 20 * S), scattered=True, faults=True, backfill=True)
    clients.flush()
    late = random.randint(0, partitions - 1)
    logs, grown = clients.logs[late:], clients.logs[:late]
    hold, live = random.random() < 0.8, random.random() < 0.5
    return Plan(logs, configs[0], configs, hold, live, scattered=True, torn=False, grown=grown)


def _deleted(random: Random) -> Plan:
    """As `_live`, and at restarts the broker no longer has some of what is to be read, or to be read again."""
    plan = _live(random)
    plan.configs = [replace(config, generation=0) for config in plan.configs]
    plan.config = plan.configs[0]
    plan.torn = plan.retained = False
    return plan


def _entries(random: Random, clients: Clients) -> int:
    most = max(clients.sizes)
    return random.randint(10, 40) if most >= 500 else random.randint(20, 60 if most >= 100 else 300)


MODES = {"backlog": _backlog, "live": _live, "scattered": _scattered}
OVERTAKEN, DELETED = "overtaken", "deleted"


def play(seed: int, mode: str | None = None) -> tuple[int, Counter[str]]:
    """Lets the world of this seed happen, one of MODES, OVERTAKEN or DELETED. Its number of steps, and what was in it.

    Raises:
        AssertionError: something came out that should not have.
    """
    random = Random(seed)
    mode = mode or random.choice(tuple(MODES))
    make = {**MODES, OVERTAKEN: _overtaken, DELETED: _deleted}[mode]
    plan = make(random)
    world = World(plan)
    steps = 0
    cut = random.choice((1, 3, 10, 200))
    done: Counter[str] = Counter()
    while steps < STEPS_OF_A_WORLD:
        steps += 1
        step = random.random()
        if step < 0.60:
            world.poll(random.randrange(len(world.logs)), random.randint(1, cut))
        elif step < 0.80:
            world.wait(_pause_s(world, random))
        elif step < 0.93:
            world.commit()
        elif step < 0.97:
            world.crash(random.randrange(1 << 30))
            if not plan.retained:
                world.delete(random)
        elif step < 0.98:
            world.drain()
            if not plan.retained:
                world.delete(random)
            done["drains"] += 1
        elif step < 0.99:
            later = [one for one in plan.configs if one.generation >= world.config.generation]
            world.restart(random.choice(later), drained=random.random() < 0.5)
            done["restarts with another configuration"] += 1
        elif plan.grown:
            world.grow()
            done["partitions added"] += 1
    while plan.grown:
        world.grow()
    while plan.live and (next_us := world.next_record_us()) is not None:
        world.wait(max(0.0, next_us - world.now_us) / S + random.choice((0, 0.5, 5)))
        steps += 1
        for number in range(len(world.logs)):
            while world.poll(number, cut):
                steps += 1
        world.commit()
    world.hidden = [0] * len(world.logs)
    world.read_all(cut)
    world.wait(3)
    world.commit()
    written = {key: row["count"] for key, row in world.rows.items() if world.is_closed(key)}
    world.finish(cut)
    for key, samples in (
        written.items() if plan.retained else ()
    ):  # which a drain and a replay make whole would stay wrong without them
        assert world.rows[key]["count"] == samples, (key, samples, world.rows[key])
    judges = {
        _backlog: _judge_backlog, _live: judge_live, _scattered: _judge_scattered, _overtaken: _judge_overtaken,
        _deleted: _judge_deleted,
    }  # fmt: skip
    judges[make](world)
    done[f"{mode} worlds"] += 1
    done["samples"] += sum(samples_in(entry) for log in world.entries for entry in log)
    done["rows"] += len(world.rows)
    done["crashes"] += world.crashes
    return steps, done


def samples_in(entry: Entry) -> int:
    return 0 if isinstance(entry, Garbage) else 1 if isinstance(entry, Single) else len(entry.samples)


def _pause_s(world: World, random: Random) -> float:
    next_us = world.next_record_us()
    if next_us is not None and next_us - world.now_us > 5 * S and random.random() < 0.5:
        return random.random() * (next_us - world.now_us) / S
    return random.choice((0.001, 0.01, 0.3, 1.1, 2.5))


def _judge_backlog(world: World) -> None:
    check(world, expect(world.entries, world.config))


def judge_live(world: World) -> None:
    expected = expect(world.entries, replace(world.config, lateness_s=NO_LATENESS_S))
    _check_rows(world, expected)
    check_events(world, expected)
    assert world.counters == expected.counters
    assert len(world.letters) == expected.letters


def _judge_scattered(world: World) -> None:
    expected = expect(world.entries, world.config)
    # What a drain writes of an open window yields to the row of an epoch that closed it and was killed, though that may
    # lack points that another partition had still to bring: until it is closed again, which beats both.
    for row in world.written:
        if row["kind"] == "cumulative" and not world.is_closed(row["key"]):
            world.rows[row["key"]] = row
    _check_rows(world, expected)
    totals = [total for (*_, name), total in world.counters.items() if name == Count.SAMPLES]
    assert sum(totals) == len(expected.samples)
    assert not {name for *_, name in world.counters} & {Count.LATE, Count.DUPLICATE_BATCHES}


def _judge_overtaken(world: World) -> None:
    """What was read is in a row of each resolution or counted by reason, and nothing is in two."""
    counted: Counter[str] = Counter()
    for (_, service, _, name), total in world.counters.items():
        if service and (name in (Count.SAMPLES, Count.LATE, Count.DUPLICATE_SAMPLES) or name.startswith("dead_")):
            counted[name] += total
    assert sum(counted.values()) == sum(samples_in(entry) for log in world.entries for entry in log), counted
    taken: Counter[tuple[str, str]] = Counter()
    for (_, service, stream, name), total in world.counters.items():
        taken[service, stream] += total * (name == Count.SAMPLES)
    most = expect(world.entries, replace(world.config, lateness_s=NO_LATENESS_S)).rows
    for seconds in (world.config.window_seconds, world.config.rollup_seconds):
        found: Counter[tuple[str, str]] = Counter()
        for key, row in world.rows.items():
            if key.seconds == seconds:
                assert row["count"] <= most[key].count, (key, row)
                found[key.service, key.stream] += row["count"]
        assert found == +taken, (seconds, found, taken)


def _judge_deleted(world: World) -> None:
    """What was read is in a row of each resolution, or counted by reason; what was not is in no row."""
    counted: Counter[str] = Counter()
    taken: Counter[tuple[str, str]] = Counter()
    lacking: Counter[tuple[str, str]] = Counter()
    for (_, service, stream, name), total in world.counters.items():
        if service and (name in (Count.SAMPLES, Count.LATE, Count.DUPLICATE_SAMPLES) or name.startswith("dead_")):
            counted[name] += total
        taken[service, stream] += total * (name == Count.SAMPLES)
        lacking[service, stream] += total * (name == Count.UNREPLAYED)
        assert not (name == Count.UNREPLAYED and not world.hold)
    unread = sum(samples_in(world.entries[number][offset]) for number, offset in world.unread)
    assert sum(counted.values()) + unread == sum(samples_in(entry) for log in world.entries for entry in log), counted
    gaps = sum(total for (*_, name), total in world.counters.items() if name == Count.GAP_RECORDS)
    assert gaps == len(world.unread)
    # What ends a stream may be deleted unread.
    entries = [[one._replace(end=False) if isinstance(one, Batch) else one for one in log] for log in world.entries]
    most = expect(entries, replace(world.config, lateness_s=NO_LATENESS_S)).rows
    for seconds in (world.config.window_seconds, world.config.rollup_seconds):
        found: Counter[tuple[str, str]] = Counter()
        for key, row in world.rows.items():
            if key.seconds == seconds:
                assert row["count"] <= most[key].count, (key, row)
                found[key.service, key.stream] += row["count"]
        for name, samples in taken.items():
            assert samples - lacking[name] <= found[name] <= samples, (seconds, name, samples, lacking, found)


def _check_rows(world: World, expected: Expected) -> None:
    """The expected rows, each as one of the configurations in use would have it."""
    scales = {config.scale for config in world.used}
    wanted = {scale: rows_of(expected.samples, replace(world.config, scale=scale)) for scale in scales}
    generations = {config.generation for config in world.used}
    assert world.rows.keys() == expected.rows.keys()
    for key, row in world.rows.items():
        scale = world.config.scale if row["scale"] is None else row["scale"]
        generation = row["version"] >> 48
        assert scale in scales, (key, row)
        assert generation in generations, (key, row)
        check_row(key, row, wanted[scale][key], replace(world.config, scale=scale, generation=generation))


@attack(
    name="windows",
    promise="Every sample in Kafka is in exactly one row per resolution, or counted by reason, whatever crashes",
    what="The windows' state machines in virtual worlds: crashes at any step, replays, duplicates, losses, reordering, "
    "late samples, silence, growing topics and new configurations; all rows and counters against exact computation",
    unit="steps",
    short=12_000,
    long=1_000_000,
)
def windows(run: Run) -> Result:
    """Worlds until there are enough steps, and of all seeds that failed before."""
    result = Result()
    done: Counter[str] = Counter()
    for seed in seeds(run, result):
        try:
            steps, found = play(seed)
            if seed % 2:
                more_steps, more = play(seed, OVERTAKEN if seed % 4 == 1 else DELETED)
                steps, found = steps + more_steps, found + more
        except Exception:  # noqa: BLE001 - whatever it is, this seed does it again
            result.failures.append(run.failure(traceback.format_exc(), seed=seed, size=1))
            result.runs += STEPS_OF_A_WORLD
            continue
        result.runs += steps
        done += found
        if len(result.seeds) % 100 == 0:
            run.say(f"  {result.runs:,} steps, {len(result.seeds)} worlds")
    result.figures = {"worlds": len(result.seeds), **dict(sorted(done.items()))}
    return result
