"""Tries to make Tailrace break its promises, and says what held.

Without a name all attacks run, in their short form: minutes. Exit code 1: a promise did not hold.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from time import monotonic, process_time

from rich.console import Console

from tests.reliability import report
from tests.reliability.attack import Run, attacks, perform

SAY = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
OUT = Console(highlight=False, markup=False, soft_wrap=True)


def main() -> int:
    known = attacks()
    parser = argparse.ArgumentParser(
        prog="python -m tests.reliability",
        description=__doc__,
        epilog="\n".join(f"{one.name:20} {one.what}" for one in known.values()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="attacks to run")
    parser.add_argument("--long", action="store_true", help="the long form: hours")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="where all randomness comes from (1)")
    parser.add_argument("--size", type=int, metavar="N", help="how much of it, instead of the short or long form")
    parser.add_argument(
        "--report",
        type=Path,
        metavar="PATH",
        help=f"keep the results in {report.RESULTS.name}, and write all kept ones to PATH.md and PATH.html",
    )
    options = parser.parse_args()
    unknown = sorted(set(options.names) - set(known))
    if unknown:
        parser.error(f"no such attack: {', '.join(unknown)}; there are {', '.join(known)}")
    failed = False
    for name in options.names or known:
        one = known[name]
        size = options.size or (one.long if options.long else one.short)
        SAY.print(f"{name}: {one.what}; {size:,} {one.unit}, seed {options.seed}")
        with tempfile.TemporaryDirectory(prefix="tailrace-reliability-") as directory:
            began_s, began_cpu_s = monotonic(), process_time()
            result = perform(one, Run(name, size, options.seed, Path(directory), SAY.print))
            took_s, took_cpu_s = monotonic() - began_s, process_time() - began_cpu_s
        for failure in result.failures:
            SAY.print(f"FAILED {name}: {failure.what}\n  again: {failure.command}")
        state = f"skipped: {result.skipped}" if result.skipped else "held" if result.passed else "did not hold"
        OUT.print(f"{name}: {state}; {result.runs:,} {one.unit} in {took_s:.0f} s")
        for figure, value in result.figures.items():
            OUT.print(f"  {figure}: {report.shown(value)}")
        failed |= bool(result.failures)
        if options.report:
            report.keep(one, result, took_s, took_cpu_s)
    if options.report:
        report.write(options.report, known)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
