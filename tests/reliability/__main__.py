"""Tries to make Tailrace break its promises, and says what held.

Without a name the short form runs: the attacks that every change is tried by, some minutes in all. With --long it is
all attacks, for hours; a name without it is that attack, for minutes at most. Exit code 1: a promise did not hold.
What cannot run here (no Java, no namespaces) is skipped; the last line says what and why, and the exit code stays 0
without `--no-skips`.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from time import monotonic, process_time

from rich.console import Console

from tests.reliability import report
from tests.reliability.attack import SHORT, Run, attacks, perform


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs what the arguments (of the command line) name, and says what came of it; the exit code."""
    say = Console(stderr=True, highlight=False, markup=False, soft_wrap=True).print
    out = Console(highlight=False, markup=False, soft_wrap=True).print
    known = attacks()
    parser = argparse.ArgumentParser(
        prog="python -m tests.reliability",
        description=__doc__,
        epilog="\n".join(f"{one.name:20} {one.what}" for one in known.values()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="attacks to run (" + ", ".join(SHORT) + ")")
    parser.add_argument("--long", action="store_true", help="the long form: hours")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="where all randomness comes from (1)")
    parser.add_argument("--size", type=int, metavar="N", help="how much of it, instead of the short or long form")
    parser.add_argument(
        "--report",
        type=Path,
        metavar="PATH",
        help=f"keep the results in {report.RESULTS.name}, and write all kept ones to PATH.md and PATH.html",
    )
    parser.add_argument(
        "--no-skips", action="store_true", help="exit code 1 if anything was skipped: for CI that has all"
    )
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.names) - set(known))
    if unknown:
        parser.error(f"no such attack: {', '.join(unknown)}; there are {', '.join(known)}")
    failed, skipped, names = False, {}, options.names or (known if options.long else SHORT)
    for name in names:
        one = known[name]
        size = options.size or (one.long if options.long else one.short)
        say(f"{name}: {one.what}; {size:,} {one.unit}, seed {options.seed}")
        with tempfile.TemporaryDirectory(prefix="tailrace-reliability-") as directory:
            began_s, began_cpu_s = monotonic(), process_time()
            result = perform(one, Run(name, size, options.seed, Path(directory), say))
            took_s, took_cpu_s = monotonic() - began_s, process_time() - began_cpu_s
        for failure in result.failures:
            say(f"FAILED {name}: {failure.what}\n  again: {failure.command}")
        state = "did not hold" if result.failures else f"skipped: {result.skipped}" if result.skipped else "held"
        out(f"{name}: {state}; {result.runs:,} {one.unit} in {took_s:.0f} s")
        for figure, value in result.figures.items():
            out(f"  {figure}: {report.shown(value)}")
        failed |= bool(result.failures)
        if result.skipped:
            skipped[name] = result.skipped
        if options.report:
            report.keep(one, size, result, took_s, took_cpu_s)
    if options.report:
        report.write(options.report, known)
    if skipped:
        why = "; ".join(f"{name} ({reason})" for name, reason in skipped.items())
        say(f"{len(skipped)} of {len(names)} attacks skipped: {why}")
    return int(failed or bool(skipped and options.no_skips))


if __name__ == "__main__":
    sys.exit(main())
