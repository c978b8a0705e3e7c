"""The dataflow as Bytewax sees it."""

from pathlib import Path

from tailrace_flows.settings import Settings
from tailrace_flows.windows import build_flow, flow


def test_step_ids_are_part_of_the_recovery_state_and_stay(tmp_path: Path) -> None:
    """A renamed step loses its state: where a change is wanted, operators must drain and start afresh."""
    steps = [step.step_id for step in build_flow(Settings()).substeps]
    assert steps == [
        "tailrace_windows.samples",
        "tailrace_windows.keyed",
        "tailrace_windows.windows",
        "tailrace_windows.side",
        "tailrace_windows.dead_letter_key",
        "tailrace_windows.counter_key",
        "tailrace_windows.rows_and_counters",
        "tailrace_windows.clickhouse",
        "tailrace_windows.aggregates",
        "tailrace_windows.dead_letters",
    ]


def test_bytewax_finds_the_flow_by_its_name() -> None:
    assert flow().flow_id == "tailrace_windows"
