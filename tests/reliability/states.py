"""Recovery states and files that are damaged or foreign: refused with what to do, never misread."""

import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import timedelta
from functools import partial
from pathlib import Path
from random import Random
from shutil import copytree, rmtree

import bytewax.operators as op
from bytewax.dataflow import Dataflow
from bytewax.inputs import FixedPartitionedSource, StatefulSourcePartition
from bytewax.operators import StatefulBatchLogic
from bytewax.testing import TestingSink, run_main
from tailrace_flows.core.alerting.evaluator import Evaluator
from tailrace_flows.core.alerting.responder import Responder
from tailrace_flows.core.config import WindowConfig
from tailrace_flows.core.feed import TopicFeed
from tailrace_flows.core.partition import Partition
from tailrace_flows.core.sealed import StateError, seal, unseal
from tailrace_flows.core.shard import Shard
from tailrace_flows.recovery import DamagedError, prepare_recovery

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
    "that a killed or an ended flow left, and their write-ahead logs, with flipped bits, torn, without a page or gone",
    unit="damaged states",
    short=5_000,
    long=1_000_000,
)
def states(run: Run) -> Result:
    """Each state as often; one in 500 is that of whole files, on which a flow starts: that takes 0.1 s and more."""
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
    """Files of recovery directories of a flow that was killed, or ended: refused, or read for what they hold."""
    templates = _directories(run, random)
    outcomes: Counter[str] = Counter()
    for number in range(max(40, run.size // 500)):
        template, expected = templates[number % len(templates)]
        directory = run.directory / "damaged"
        rmtree(directory, ignore_errors=True)
        copytree(template, directory)
        what, path = _damage(random, directory)
        result.runs += 1
        try:
            found = _read(directory)
        except DamagedError as error:
            if "put back a copy" in str(error) and str(directory) in str(error):
                outcomes[f"{what}: refused"] += 1
                continue
            result.failures.append(run.failure(f"{path.name}, {what}: refused without saying what to do: {error}"))
        except StateError:
            outcomes[f"{what}: refused"] += 1
        except BaseException as error:  # noqa: BLE001 - Bytewax panics
            result.failures.append(run.failure(f"{path.name}, {what}: {type(error).__name__}: {error}"))
        else:
            if found == expected:
                outcomes[f"{what}: no state is touched, exact"] += 1
            else:
                wrong = {key for key in expected.keys() | found if found.get(key) != expected.get(key)}
                result.failures.append(run.failure(f"{path.name}, {what}: taken, other states of {sorted(wrong)}"))
    return {f"files of states, {outcome}": times for outcome, times in sorted(outcomes.items())}


def _damage(random: Random, directory: Path) -> tuple[str, Path]:
    """Does something to a file of the directory, its log if it has one as often as not; what, and to which."""
    path = random.choice(sorted(directory.glob("*.sqlite3")))
    log = path.with_name(f"{path.name}-wal")
    of_log = log.exists() and random.random() < 0.5
    path = log if of_log else path
    whole = path.read_bytes()
    out = bytearray(whole)
    at = random.randrange(len(out))
    match random.randrange(8):
        case 0:
            what = "missing"
            path.unlink()
        case 1 | 2:
            what = "torn"
            del out[at if at % 2 else at // 4096 * 4096 :]
        case 3:
            what = "a lost page"
            at = at // 4096 * 4096
            out[at : at + 4096] = bytes(len(out[at : at + 4096]))
        case _:
            what = "a flipped bit"
            out[at] ^= 1 << random.randrange(8)
    if path.exists():
        path.write_bytes(out)
    return f"{what} {'of its log' if of_log else 'of the file'}", path


# -- a flow that leaves such directories, and reads them -----------------------------------------------------

States = dict[tuple[str, str], bytes]
"""By step and key."""
SOURCES, KEYS, EPOCHS = 3, 60, 120
SIZES_BYTES = (10, 10, 10, 10, 300, 9_000)
"""Of states: SQLite chains pages for the largest."""


class _Flow:
    """A flow of Bytewax whose states are sealed noise; an epoch is a poll, with items for some of its keys.

    `restored` is what it was given as it began, `held` what it then stored last.
    """

    def __init__(self, random: Random, epochs: int, on_epoch: Callable[[int], object]) -> None:
        self.random, self.epochs, self.on_epoch = random, epochs, on_epoch
        self.restored: States = {}
        self.held: States = {}

    def restore(self, step: str, state: bytes | None) -> None:
        if state is not None:
            key, noise = unseal(1, state)
            self.restored[step, key] = noise

    def snapshot(self, step: str, key: str) -> bytes:
        noise = self.held[step, key] = self.random.randbytes(self.random.choice(SIZES_BYTES))
        return seal(1, (key, noise))

    def run(self, directory: Path) -> None:
        dataflow = Dataflow("states")
        sums = op.stateful_batch("keys", op.input("sources", dataflow, _Source(self)), partial(_Logic, self))
        op.output("out", sums, TestingSink([]))
        run_main(dataflow, epoch_interval=timedelta(0), recovery_config=prepare_recovery(directory))


class _Source(FixedPartitionedSource[tuple[str, str], bytes]):
    def __init__(self, flow: _Flow) -> None:
        self._flow = flow

    def list_parts(self) -> list[str]:
        return [f"{number:05d}" for number in range(SOURCES)]

    def build_part(self, step_id: str, for_part: str, resume_state: bytes | None) -> "_Part":
        self._flow.restore("sources", resume_state)
        return _Part(self._flow, for_part)


class _Part(StatefulSourcePartition[tuple[str, str], bytes]):
    def __init__(self, flow: _Flow, key: str) -> None:
        self._flow, self._key, self._epoch = flow, key, 0

    def next_batch(self) -> list[tuple[str, str]]:
        if self._epoch == self._flow.epochs:
            raise StopIteration
        if self._key == "00000":  # the first of each epoch: all before it is stored, and nothing of it
            self._flow.on_epoch(self._epoch)
        self._epoch += 1
        keys = [f"{number:02d}" for number in range(KEYS) if self._epoch == 1 or self._flow.random.random() < 0.1]
        return [(key, key) for key in keys]

    def snapshot(self) -> bytes:
        return self._flow.snapshot("sources", self._key)


class _Logic(StatefulBatchLogic[str, str, bytes]):
    def __init__(self, flow: _Flow, state: bytes | None) -> None:
        flow.restore("keys", state)
        self._flow, self._key = flow, ""

    def on_batch(self, values: list[str]) -> tuple[list[str], bool]:
        self._key = values[0]
        return [], self.RETAIN

    def snapshot(self) -> bytes:
        return self._flow.snapshot("keys", self._key)


def _directories(run: Run, random: Random) -> list[tuple[Path, States]]:
    """What a flow leaves that is killed, at three moments, and one that ends; with what it held."""
    made: list[tuple[Path, States]] = []
    kills = random.sample(range(5, EPOCHS), 3)
    running = run.directory / "running"
    running.mkdir(mode=0o700)

    def on_epoch(epoch: int) -> None:
        if epoch in kills:
            killed = run.directory / f"killed-{epoch}"
            copytree(running, killed)
            made.append((killed, dict(flow.held)))

    flow = _Flow(random, EPOCHS, on_epoch)
    flow.run(running)
    for path in running.glob("*.sqlite3"):
        with closing(sqlite3.connect(path)) as file:
            file.execute("VACUUM")  # so that more of the damage is where a state is
    made.append((running, dict(flow.held)))
    for directory, held in made:
        if _read(copytree(directory, run.directory / "whole", dirs_exist_ok=True)) != held:
            raise AssertionError(f"{directory.name} is not read as it was written")
        rmtree(run.directory / "whole")
    return made


def _read(directory: Path) -> States:
    """The states that a flow is given which starts on the directory.

    Raises:
        DamagedError: it refuses to.
        StateError: a state is refused.
    """
    flow = _Flow(Random(0), 0, lambda _: None)
    try:
        flow.run(directory)
    except BaseException as error:  # noqa: BLE001 - raised below
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, StateError):
            cause = cause.__cause__ or cause.__context__
        raise cause or error from None
    return flow.restored
