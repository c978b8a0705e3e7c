"""What an attack is, what it gives, and which there are."""

import importlib
import pkgutil
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import tests.reliability
from tests.infra.canaries import showing, shows_canary

__all__ = ["SHORT", "Attack", "Failure", "Figure", "Plot", "Result", "Run", "attack", "attacks", "perform"]

Figure = int | float | str
SHORT = ("alerts", "broker_topic", "host_clock", "inputs", "kills", "states", "windows")
"""What the short form of the suite is: what every change can wait for."""


@dataclass(frozen=True)
class Plot:
    """A line over points, for the report."""

    title: str
    x_label: str
    y_label: str
    x: list[float]
    y: list[float]


@dataclass(frozen=True)
class Failure:
    """A promise that did not hold."""

    what: str
    seed: int
    command: str
    """Does it again."""


@dataclass
class Result:
    """What an attack found. It has passed if nothing failed and it could run at all."""

    runs: int = 0
    """How often it was tried: steps, kills, messages, as the attack's `unit` says."""
    seeds: list[int] = field(default_factory=list)
    figures: Mapping[str, Figure] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    plots: list[Plot] = field(default_factory=list)
    skipped: str = ""
    """Why it cannot run on this machine."""

    @property
    def passed(self) -> bool:
        return not self.failures and not self.skipped


@dataclass(frozen=True)
class Run:
    """What an attack is given."""

    name: str
    size: int
    """How many of the attack's units to do: at least about so many."""
    seed: int
    """All randomness comes from it."""
    directory: Path
    """Empty, on a disk; it is deleted afterwards."""
    say: Callable[[str], None]
    """Progress, for a person."""

    def failure(self, what: str, *, seed: int | None = None, size: int | None = None) -> Failure:
        """Something that a run with this seed (and size) does again."""
        seed = self.seed if seed is None else seed
        command = f"python -m tests.reliability {self.name} --seed {seed} --size {size or self.size}"
        return Failure(what.replace(f"{Path.cwd()}/", ""), seed, command)  # the report is for other machines too


@dataclass(frozen=True)
class Attack:
    """One way to break a promise.

    `short` and `long` are sizes in `unit`s: minutes at most on one core, and hours at most.
    """

    name: str
    promise: str
    what: str
    """What is attacked, and how."""
    unit: str
    short: int
    long: int
    perform: Callable[[Run], Result]


_attacks: dict[str, Attack] = {}


def attack(
    *, name: str, promise: str, what: str, unit: str, short: int, long: int
) -> Callable[[Callable[[Run], Result]], Callable[[Run], Result]]:
    """Makes a function an attack."""

    def register(perform: Callable[[Run], Result]) -> Callable[[Run], Result]:
        if name in _attacks:
            raise ValueError(f"two attacks are called {name}")
        _attacks[name] = Attack(name, promise, what, unit, short, long, perform)
        return perform

    return register


def attacks() -> dict[str, Attack]:
    """All attacks by name, of all modules of this package."""
    for module in pkgutil.iter_modules(tests.reliability.__path__):
        if not module.name.startswith(("test_", "__")):
            importlib.import_module(f"{tests.reliability.__name__}.{module.name}")
    return dict(sorted(_attacks.items()))


def perform(attack: Attack, run: Run) -> Result:
    """Runs it; an exception is a failure, and so is a secret in what it says or its processes leave."""
    said: list[str] = []

    def say(text: str) -> None:
        said.append(text)
        run.say(text)

    try:
        result = attack.perform(replace(run, say=say))
    except Exception:  # noqa: BLE001 - whatever it is, it is what the report is for
        where = f"{Path(__file__).parents[2]}/"  # which directory it was is nothing to a reader
        result = Result(seeds=[run.seed], failures=[run.failure(traceback.format_exc().replace(where, ""))])
    shown = showing(run.directory)
    shown += ["what the attack says"] if shows_canary(repr((said, result)).encode()) else []
    return replace(result, failures=[*result.failures, *(run.failure(f"a secret is in {one}") for one in shown)])
