"""A shard and its window tables: single cases, each told as a short log."""

import pytest
from tailrace_schemas.samples import Series

from tests.flows.writing import Writer, run, versions

# -- closing and correcting ------------------------------------------------------------------------------


def test_a_late_correction_is_emitted_before_its_window_is_forgotten() -> None:
    w = Writer()
    # In one poll a late sample arrives, and the watermark passes the end of its minute's lateness.
    machine = run(w.batch((1, 1.0)), w.batch((70, 1.0)), w.batch((5, 2.0), (300, 1.0)))
    assert versions(machine, 10, 0) == [1, 2]
    assert versions(machine, 60, 0) == [1, 2]


@pytest.mark.parametrize("kind", ["distribution", "gauge", "counter", "cumulative", "event"])
def test_late_corrections_of_many_series_are_whole_rows(kind: str) -> None:
    table = tuple(Series("m", kind, "", (("n", f"{number:04d}"),)) for number in range(1500))
    every = [(row, 1.0, float(row)) for row in range(1500)]
    w = Writer()
    run(w.rows(table, *every), w.rows(table, (0, 30.0, 1.0)), w.rows(table, *every[1000::7], *every[::211]))
