"""`tailrace verify`: the attacks on what Tailrace promises, which are in its source tree."""

import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["register"]

SUITE = "tests.reliability"
MISSING = (
    "the suite is in the source tree, not in the package: go there, run `pip install -e '.[dev]'`, "
    "and then `tailrace verify` again"
)


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("verify", context_settings={"ignore_unknown_options": True})(verify)


def verify(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME|OPTION]...",
            help="Attacks to run, none: the short form; --long, --seed N, --size N, --report PATH, --no-skips.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Attack what Tailrace promises, on real processes, and say what held: `python -m tests.reliability`.

    It runs in a checkout of the sources. Without a name the short form runs, some minutes; with --long all attacks, for
    hours. What they are and what the options mean: `python -m tests.reliability -h`; what is promised:
    docs/reliability.md. Exit code 1: a promise did not hold.

    Examples:

        tailrace verify kills --seed 7

        tailrace verify --long --report docs/reliability-report
    """
    from tailrace_infra.cli import fail

    if not Path(*SUITE.split("."), "__main__.py").is_file() or find_spec("pytest") is None:
        fail(MISSING)
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", SUITE, *(arguments or ())])  # noqa: S606 - no shell is wanted
