"""`python -m benchmarks NAME`: a table for people, or JSON lines on stdout; appends to benchmarks/history.jsonl.

`compare A B` shows two runs of that history side by side; `all` runs every benchmark.
"""

import argparse
import importlib
import sys

from benchmarks import everything
from benchmarks.common import HISTORY, publish, say, show
from benchmarks.compare import compare, last_results, ratios, record, runs, select

NAMES = {
    "agent": "CPU and memory of the host agent with 500 and 5,000 processes",
    "alerts": "from window end and disorder to the event on the alert topic, 1,000 rules over 10,000 series",
    "anomaly": "the detector on labelled series, its false alarms, power and cost",
    "curves": "what a sample costs as series, batch size, partitions and more grow",
    "freshness": "from record() to the row, by SQL and on the aggregates topic, beyond window end and disorder",
    "middleware": "CPU time that the ASGI and WSGI middleware adds to a request",
    "peers": "Tailrace beside Bytewax, Quix Streams, Pathway, ClickHouse and Kafka Streams on the same samples",
    "pipeline": "samples/s on one core from Kafka to ClickHouse rows, and its limits",
    "producer": "what recording costs a service, beside other libraries",
    "query": "quantiles by SQL over 10 M window rows",
    "processes": "one process of the flow and then two, on a real Kafka",
    "restart": "a kill with 100,000 series and 60 s of backlog: how soon it has caught up",
    "rules": "what evaluating 1,000 alert rules over 10,000 series costs in the core",
    "stages": "where the nanoseconds of a sample go, step by step, in the core",
    "storage": "bytes of a 10 s row with its sketch in ClickHouse, by column, on real data",
    "slo": "what an objective costs: a row, an evaluation, a snapshot",
}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        epilog="; ".join(f"{name}: {what}" for name, what in NAMES.items()),
    )
    commands = parser.add_subparsers(dest="name", required=True)
    modules = {}
    for name, what in NAMES.items():
        modules[name] = importlib.import_module(f"benchmarks.{name}")
        command = commands.add_parser(name, help=what, description=modules[name].__doc__)
        command.add_argument("--json", action="store_true", help="JSON lines on stdout instead of a table")
        command.add_argument("--no-history", action="store_true", help="do not append to benchmarks/history.jsonl")
        command.add_argument("--record", metavar="HOST:PORT", help="also send the figures as samples to this Kafka")
        modules[name].add_arguments(command)
    comparison = commands.add_parser("compare", help="two runs of the history, with ratios", description=select.__doc__)
    comparison.add_argument("a", nargs="?", help="a run; without, the runs are listed")
    comparison.add_argument("b", nargs="?", help="another (default: the last of the same benchmark)")
    everything.add_arguments(
        commands.add_parser("all", help="every benchmark, in less than 20 minutes", description=everything.__doc__),
        tuple(NAMES),
    )
    options = parser.parse_args()
    if options.name == "compare":
        sys.exit(_compare(options.a, options.b))
    if options.name == "all":
        sys.exit(everything.run(options, tuple(NAMES)))
    results = modules[options.name].run(options)
    before = last_results(HISTORY.read_text().splitlines(), options.name)
    publish(results, as_json=options.json, history=not options.no_history)
    if not options.json:
        beside = compare(results, before)
        show(beside, "beside the last run in the history")
        if not beside:
            say("no earlier run of these cases to compare with")
    if options.record and not record(results, options.record):
        sys.exit(f"{options.record} did not take the figures")


def _compare(one: str | None, other: str | None) -> int:
    """Shows the ratios, or the runs there are. The exit code."""
    history = runs(HISTORY.read_text().splitlines())
    if one is None:
        show(
            [
                {"number": str(number), "benchmark": run.benchmark, "time": run.time, "commit": run.commit}
                for number, run in enumerate(history, 1)
            ],
            "runs in the history",
        )
        return 0
    try:
        a = select(history, one)
        b = select(history, other) if other else [select(history, run.benchmark)[0] for run in a]
    except ValueError as error:
        say(str(error))
        return 2
    found = ratios(a, b)
    for benchmark in dict.fromkeys(line["benchmark"] for line in found):
        captions = [
            f"{side}: {run.commit}, {run.time}" for side, chosen in (("a", a), ("b", b)) for run in chosen
            if run.benchmark == benchmark
        ]  # fmt: skip
        show([line for line in found if line["benchmark"] == benchmark], "; ".join(captions))
    if not found:
        say("these runs have no case in common")
    return not found


if __name__ == "__main__":
    main()
