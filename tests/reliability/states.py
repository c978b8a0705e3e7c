"""Recovery states and files that are damaged or foreign: refused with what to do, never misread."""

from collections.abc import Callable, Iterator
from itertools import count
from random import Random

from bytewax.recovery import init_db_dir
from tailrace_flows.core.alerting.evaluator import Evaluator
from tailrace_flows.core.alerting.responder import Responder
from tailrace_flows.core.config import WindowConfig
from tailrace_flows.core.feed import TopicFeed
from tailrace_flows.core.partition import Partition
from tailrace_flows.core.sealed import StateError, seal
from tailrace_flows.core.shard import Shard
from tailrace_flows.runner import RECOVERY_PARTITIONS, DamagedError, prepare_recovery

from tests.flows.machine import START_US
from tests.reliability.alerts import PLAN, World
from tests.reliability.attack import Result, Run, attack
from tests.reliability.windows import MODES
from tests.reliability.windows import World as Windows

__all__ = ["STATES", "damaged", "states_of"]

Restore = Callable[[bytes], object]
CONFIG = WindowConfig()


def _partition(state: bytes) -> Partition:
    return Partition(0, "samples", CONFIG, START_US, hold=False, cluster_id="one", start=0, state=state)


STATES: dict[str, Restore] = {
    "partition": _partition,
    "windows shard": lambda state: Shard(CONFIG, START_US, state),
    "topic": lambda state: TopicFeed(0, "t", lambda _, value: value, cluster_id="one", start=0, state=state),
    "rules and objectives": lambda state: Evaluator.restored(PLAN, {}, START_US, state),
    "response": lambda state: Responder({}, START_US, state),
}


def states_of(seed: int) -> dict[str, bytes]:
    """A state of each machine, from small worlds."""
    random = Random(seed)
    plan = MODES["scattered"](random)
    plan.live = False
    windows = Windows(plan)
    for number in range(len(windows.logs)):
        windows.poll(number, 30)
    windows.hold = False
    windows.commit()
    partitions, shards = windows.committed
    alerts = World(seed)
    for _ in range(19):
        alerts.window()
    feed = TopicFeed(0, "t", lambda _, value: value, cluster_id="one", start=random.randrange(1 << 40))
    return {
        "partition": partitions[0] or b"",
        "windows shard": next(iter(shards.values())),
        "topic": feed.snapshot(START_US),
        "rules and objectives": alerts.evaluators.every[0].snapshot(),
        "response": alerts.response.responder.snapshot(),
    }


def damaged(random: Random, state: bytes) -> Iterator[bytes]:
    """A flipped bit, a torn end, zeros as of a page that was never written, a part of another place; for ever."""
    while True:
        out = bytearray(state)
        at = random.randrange(len(out))
        match random.randrange(4):
            case 0:
                out[at] ^= 1 << random.randrange(8)
            case 1:
                del out[at:]
            case 2:
                out[at : at + 512] = bytes(len(out[at : at + 512]))
            case _:
                other = random.randrange(len(out))
                out[at : at + 64] = out[other : other + 64]
        if bytes(out) != state:
            yield bytes(out)


@attack(
    name="states",
    promise="State is exact or refused: a recovery file that is torn, truncated, flipped or foreign is never misread",
    what="The states of all machines with flipped bits, torn ends, lost pages and of another format; recovery files "
    "that are truncated, torn or missing",
    unit="damaged states",
    short=5_000,
    long=1_000_000,
)
def states(run: Run) -> Result:
    """Each state as often; a fiftieth of the damage is done to whole files."""
    result = Result(seeds=[run.seed])
    random = Random(run.seed)
    refused = 0
    for name, state in states_of(run.seed).items():
        STATES[name](state)  # itself, it is taken
        for bad, _ in zip(damaged(random, state), range(max(1, run.size // len(STATES))), strict=False):
            result.runs += 1
            if (failure := _refused(STATES[name], bad)) is not None:
                result.failures.append(run.failure(f"{name}: {failure}"))
                break
            refused += 1
        if "this Tailrace reads" not in (_text(STATES[name], seal(99, None)) or ""):
            result.failures.append(run.failure(f"{name}: a state of format 99 is not refused by its format"))
    result.figures = {"damaged states, all refused": refused, **_files(run, random, result)}
    return result


def _text(restore: Restore, state: bytes) -> str | None:
    try:
        restore(state)
    except StateError as error:
        return str(error)
    return None


def _refused(restore: Restore, state: bytes) -> str | None:
    """None: it was, as it should be."""
    try:
        restore(state)
    except StateError as error:
        return None if "recovery directory" in str(error) else f"refused without saying what to do: {error}"
    except Exception as error:  # noqa: BLE001 - it must be refused as damaged, not stumbled over
        return f"{type(error).__name__}: {error}"
    return f"a damaged state of {len(state)} bytes was taken"


def _files(run: Run, random: Random, result: Result) -> dict[str, int]:
    """Files of a recovery directory that lose a part: each is refused by name."""
    refused = 0
    for number in count():
        if number >= max(8, run.size // 50):
            break
        directory = run.directory / f"recovery-{number % 4}"
        if not directory.exists():
            directory.mkdir(mode=0o700)
            init_db_dir(directory, RECOVERY_PARTITIONS)
        path = directory / f"part-{random.randrange(RECOVERY_PARTITIONS)}.sqlite3"
        whole = path.read_bytes()
        if number % 5 == 0:
            path.unlink()
        else:
            size = len(whole)
            path.write_bytes(whole[: random.randrange(size // 4096) * 4096 + random.choice((0, 1, 700))])
        result.runs += 1
        try:
            prepare_recovery(directory)
            result.failures.append(run.failure(f"{path.name}: {path.stat().st_size} of {len(whole)} bytes were taken"))
        except DamagedError as error:
            refused += path.name in str(error)
        path.write_bytes(whole)
        prepare_recovery(directory)  # whole again, it is taken
    return {"damaged files, all refused": refused}
