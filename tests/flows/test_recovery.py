"""The core as the dataflow drives it, against the oracle: any polls, any order, any crashes give the same rows."""

import os
from typing import Any

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from tailrace_flows.core.config import WindowConfig
from tailrace_schemas.topics import shard_of

from tests.flows.machine import Machine, check
from tests.flows.oracle import expect
from tests.flows.strategies import SERVICES, logs

slow = settings(
    max_examples=int(os.environ.get("TAILRACE_TEST_EXAMPLES", "60")),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)

configs = st.builds(
    WindowConfig,
    disorder_s=st.sampled_from([0.0, 2.0]),
    lateness_s=st.just(60.0) | st.sampled_from([20.0, 0.000001]),
    max_future_s=st.just(0.0),
    scale=st.sampled_from([6, 0, 8]),
    generation=st.sampled_from([0, 3]),
)

steps = st.one_of(
    st.tuples(st.just("poll"), st.integers(0, 1), st.integers(1, 4)),
    st.tuples(st.just("poll"), st.integers(0, 1), st.integers(1, 4)),
    st.tuples(st.just("wait"), st.sampled_from([0.01, 0.9, 1.1, 2.5])),
    st.tuples(st.just("commit")),
    st.tuples(st.just("crash"), st.integers(0, 7)),
    st.tuples(st.just("drain")),
)


def test_the_services_of_the_strategies_share_a_shard() -> None:
    assert shard_of(SERVICES[0]) == shard_of(SERVICES[1]) != shard_of(SERVICES[2])


@slow
@given(logs(), configs, st.lists(st.integers(1, 5), min_size=1), st.floats(0, 2))
def test_any_cut_into_polls_gives_the_expected_rows_and_counters(
    records: Any, config: WindowConfig, cuts: list[int], pause: float
) -> None:
    machine = Machine(records, config)
    for number, cut in enumerate(cuts):
        machine.poll(number % 2, cut)
        machine.wait(pause)
    machine.finish(cuts[-1])
    check(machine, expect(records, config))


@pytest.mark.parametrize("hold", [True, False], ids=["replay", "snapshot"])
@slow
@given(records=logs(), config=configs, plan=st.lists(steps, max_size=25), cut=st.integers(1, 4))
def test_any_crashes_and_restarts_give_the_expected_rows_and_counters(
    hold: bool, records: Any, config: WindowConfig, plan: Any, cut: int
) -> None:
    machine = Machine(records, config, hold=hold)
    for name, *arguments in plan:
        getattr(machine, name)(*arguments)
    event(f"crashes: {machine.crashes}")
    machine.finish(cut)
    check(machine, expect(records, config))
