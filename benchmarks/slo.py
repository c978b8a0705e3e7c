"""What an objective costs: a row, an evaluation, a snapshot. CPU time of one core, no I/O."""

import argparse
import pickle
import time
from typing import Any

from tailrace_flows.core.alerting.slo import Slo
from tailrace_schemas import clock
from tailrace_schemas.config.slo import SloSpec

from benchmarks.common import say

STEP_US = 10_000_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--slos", type=int, default=200, help="objectives (default %(default)s)")
    parser.add_argument("--windows", type=int, default=360, help="10 s windows evaluated (default %(default)s)")


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    fields = {"service": "shop", "objective": 0.999, "indicator": {"latency": {"metric": "a", "below": 0.3}}}
    slos = [Slo(SloSpec.model_validate({"name": f"slo-{n}", **fields})) for n in range(options.slos)]
    at_us = clock.now_us() // STEP_US * STEP_US
    say(f"{options.slos} objectives, {options.windows} windows")
    put_s = evaluate_s = 0.0
    for _ in range(options.windows):
        at_us += STEP_US
        begin_s = time.process_time()
        for one in slos:
            one.put(at_us, 1, 1000)
        between_s = time.process_time()
        for one in slos:
            one.evaluate(at_us)
        put_s, evaluate_s = put_s + between_s - begin_s, evaluate_s + time.process_time() - between_s
    begin_s = time.process_time()
    sizes = [len(pickle.dumps(one.snapshot(), protocol=5)) for one in slos]
    snapshot_s = time.process_time() - begin_s
    evaluations = options.slos * options.windows
    return [
        {
            "benchmark": "slo",
            "put_us": put_s / evaluations * 1e6,
            "evaluate_us": evaluate_s / evaluations * 1e6,
            "evaluations_per_s": evaluations / evaluate_s,
            "snapshot_us": snapshot_s / options.slos * 1e6,
            "snapshot_bytes": max(sizes),
        }
    ]
