"""Which clock a process goes by when the host's is set, in seconds: told second by second, as records come."""

import pytest
from tailrace_flows.core.steady import SteadyClock

S = 1_000_000
START_S = 1_700_000_000


def verdicts(errors_s: list[float], heard_s: list[float | None]) -> tuple[list[float], list[float]]:
    """(by how much it starts anew, by how much the time it goes by is wrong) after each second.

    `errors_s`: of the host's clock in each second, `heard_s`: how old the record is that is heard in it.
    """
    steady = SteadyClock((START_S + round(errors_s[0])) * S, 0)
    told, wrong = [], []
    for second, (error_s, age_s) in enumerate(zip(errors_s, heard_s, strict=True)):
        true_s = START_S + second
        if age_s is not None:
            steady.hear(round((true_s - age_s) * S), second * S)
        told.append(steady.set_by_us(round((true_s + error_s) * S), second * S) / S)
        wrong.append(steady.now_us(second * S) / S - true_s)
    return told, wrong


@pytest.mark.parametrize("step_s", [60.0, 3600.0, 86_400.0, -1.5, 1.5])
def test_a_clock_that_is_wrongly_set_ahead_or_by_little_changes_nothing(step_s: float) -> None:
    told, wrong = verdicts([0.0] * 5 + [step_s] * 60, [0.2] * 65)
    assert not any(told)
    assert not any(wrong)


@pytest.mark.parametrize("step_s", [-3.0, -3600.0, -86_400.0])
def test_a_clock_that_is_set_back_makes_the_process_start_anew_at_once(step_s: float) -> None:
    told, wrong = verdicts([0.0] * 5 + [step_s], [0.2] * 6)
    assert told == [0.0] * 5 + [step_s]
    assert wrong[-1] == step_s


def test_a_clock_that_was_ahead_and_is_put_right_makes_the_process_start_anew_by_the_time_it_went_by() -> None:
    # What the engine planned meanwhile it planned by the clock that was ahead.
    told, wrong = verdicts([0.0, 3600.0, 3600.0, 0.0], [0.2] * 4)
    assert told == [0.0, 0.0, 0.0, -3600.0]
    assert wrong == [0.0] * 4


def test_a_clock_that_is_still_ahead_after_it_was_set_back_is_not_believed() -> None:
    told, wrong = verdicts([0.0, 3600.0, 1800.0], [0.2] * 3)
    assert told[-1] == -1800.0
    assert wrong[-1] == 0.0


def test_a_clock_that_was_behind_is_believed_once_all_records_of_ten_seconds_agree() -> None:
    told, wrong = verdicts([-3600.0] * 5 + [0.0] * 16, [0.2] * 21)
    assert told.index(3600.0) in range(15, 17)
    assert wrong[told.index(3600.0)] == 0.0


def test_one_that_is_older_makes_it_wait() -> None:
    # As while a backlog is read, after the machine slept.
    told, _ = verdicts([-3600.0] * 5 + [0.0] * 26, [0.2] * 10 + [1800.0] + [0.2] * 20)
    assert told.index(3600.0) in range(25, 27)


def test_nothing_heard_confirms_nothing() -> None:
    told, wrong = verdicts([0.0] + [3600.0] * 100, [None] * 101)
    assert not any(told)
    assert not any(wrong)


def test_a_process_that_starts_anew_goes_on_with_the_time_of_the_one_before_but_not_ahead_of_the_clock() -> None:
    ahead = SteadyClock((START_S + 3600) * S, 0, offset_us=START_S * S)
    assert ahead.now_us(7 * S) == (START_S + 7) * S
    behind = SteadyClock((START_S - 3600) * S, 0, offset_us=START_S * S)
    assert behind.now_us(7 * S) == (START_S - 3600 + 7) * S
