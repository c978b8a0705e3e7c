"""The dataflow as Bytewax sees it."""

from importlib import import_module
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


def test_the_alert_flows_steps_stay_too() -> None:
    def topic(name: str) -> list[str]:
        return [name, *(f"{name}_{step}" for step in ("counts", "counted", "good", "letter_key"))]

    judged = [*topic("config"), *topic("commands"), *topic("rows"), "judged", "every_evaluator", "evaluate", "alerts"]
    response = [*topic("events"), "heard", "responder_key", "respond", "notifications", "answers"]
    ends = ["all_findings", "findings", "all_letters", "letters"]
    flows = {
        "alerts": judged + response + ends,
        "slo": judged + ends,
        "health": judged + ends,
        "anomaly": [*judged, "scores", *ends],
    }
    for name, steps in flows.items():
        built = import_module(f"tailrace_flows.{name}").flow()
        assert [step.step_id for step in built.substeps] == [f"tailrace_{name}.{step}" for step in steps]
    every = [step.step_id for step in import_module("tailrace_flows.all").flow().substeps]
    windows = [step.step_id.replace("windows.", "all.", 1) for step in build_flow(Settings()).substeps]
    assert every == windows + [f"tailrace_all.{step}" for step in [*judged, "scores", *response, *ends]]
