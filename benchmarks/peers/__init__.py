"""Tailrace beside what one would take instead, on one core: quantiles, count and sum by series and 10 s window.

Each system reads the same samples from a real Kafka, in its own encoding, in a process of its own that is pinned to
core 0; Kafka has the other core. Slow ones get the first part of the samples. The answers of each are compared with
exact ones: wrong counts or sums are an error, and no figure. benchmarks/README.md says how each was tuned.
"""

import argparse
from typing import Any


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--series", action="append", type=int, help="may be repeated (default: 1000 and 100000)")
    parser.add_argument("--samples", type=int, default=20_000_000, help="for the fast ones; slow ones get a part")
    parser.add_argument("--only", action="append", metavar="NAME", help="a system, or a pattern; may be repeated")
    parser.add_argument("--chdb-python", metavar="PYTHON", help="a Python with chDB 3.7.2, whose Kafka engine works")
    parser.add_argument("--plot", metavar="FILE", help="also draw it, as the ending says (.svg, .png)")


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    from benchmarks.peers import together  # the peers' own processes import this package too, and not all it needs

    return together.run(options)
