"""The clock of evaluation: a line is `wall: service=watermark ... -> reached`, in seconds."""

import pytest
from tailrace_flows.core.alerting.clock import EvaluationClock

S = 1_000_000

SCENARIOS = {
    "the least watermark of all services": """
        100: a=90 -> 90
        101: b=95 -> 90
        102: a=100 -> 95
    """,
    "never back, whatever is sent again": """
        100: a=90 b=90 -> 90
        101: a=50 -> 90
        102: c=20 -> 90
    """,
    "a silent service is left out after 30 s, and does not pull time back when it returns": """
        100: a=90 b=90 -> 90
        129: a=119 -> 90
        130: -> 119
        140: a=130 -> 130
        141: b=95 -> 130
    """,
    "a service whose clock is behind does not hold up the others": """
        100: a=95 b=-3500 -> -3500
        110: a=105 b=-3490 -> -3490
        129: a=124 b=-3471 -> -3471
        130: a=125 b=-3470 -> 125
        140: a=135 b=-3460 -> 135
    """,
    "a backlog that all services share is taken at its own time": """
        1000: a=10 b=12 -> 10
        1001: a=60 b=65 -> 60
        1002: a=300 b=290 -> 290
        1003: b=320 -> 300
    """,
    "one that lagged is waited for again when it has caught up": """
        100: a=95 b=0 -> 0
        130: a=125 b=5 -> 125
        140: a=135 b=130 -> 130
        141: a=136 -> 130
    """,
    "while nobody is heard, wall time moves on": """
        100: a=95 -> 95
        129: -> 95
        130: -> 100
        160: -> 130
        161: a=150 -> 150
    """,
    "a pause in a backlog passes by no more than its own time of it": """
        1000: a=10 b=12 -> 10
        1029: -> 10
        1030: -> 42
        1040: -> 52
        1041: a=60 b=70 -> 60
        1042: a=900 b=900 -> 900
    """,
    "one whose clock is behind does not hold up what is found to be missing": """
        100: a=95 b=-3500 -> -3500
        130: -> 100
        135: -> 105
    """,
    "who was never heard of may have a backlog, for which there is time": """
        29: -> -
        30: -> 0
        50: -> 20
    """,
}


@pytest.mark.parametrize("name", SCENARIOS)
def test_scenario(name: str) -> None:
    clock = EvaluationClock(started_us=0, settle_us=0)
    for line in SCENARIOS[name].split("\n"):
        if not line.strip():
            continue
        wall, _, rest = line.partition(":")
        said, _, wanted = rest.partition("->")
        now_us = int(wall) * S
        for one in said.split():
            service, watermark = one.split("=")
            clock.hear(service, int(watermark) * S, now_us)
        reached_us = clock.advance(now_us)
        assert reached_us == (None if wanted.strip() == "-" else int(wanted) * S), line
        assert clock.next_us(now_us) > now_us


def test_after_a_restart_nobody_is_taken_for_silent() -> None:
    clock = EvaluationClock(0, settle_us=0)
    clock.hear("a", 90 * S, 100 * S)
    clock.hear("b", 80 * S, 100 * S)
    clock.advance(100 * S)
    clock.resume(1000 * S)
    clock.hear("a", 99 * S, 1001 * S)
    assert clock.advance(1001 * S) == 80 * S
    assert clock.stalled(1001 * S) == []
    assert clock.stalled(1030 * S) == ["b"]


def test_after_a_restart_those_who_are_not_known_yet_have_time_to_be_heard_of() -> None:
    clock = EvaluationClock(0, settle_us=0)
    clock.resume(100 * S)
    assert clock.advance(100 * S) is None
    clock.hear("a", 10 * S, 101 * S)
    assert clock.advance(101 * S) == 10 * S


def test_a_restart_after_a_while_puts_off_no_further_what_is_found_to_be_missing() -> None:
    clock = EvaluationClock(0, settle_us=0)
    clock.hear("a", 95 * S, 100 * S)
    clock.resume(1000 * S)
    assert clock.advance(1031 * S) == 1001 * S


def test_a_service_that_was_gone_for_a_day_is_forgotten_by_a_restart() -> None:
    clock = EvaluationClock(0, settle_us=0)
    clock.hear("a", 0, 0)
    clock.resume(24 * 3600 * S)
    assert clock.services == {}


def test_services_that_come_and_go_are_forgotten_after_a_day_and_evaluation_does_not_notice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def reached(clock: EvaluationClock) -> list[int | None]:
        """A job every ten minutes for three days, beside a service that stays and one that comes back each 25 hours."""
        found = []
        for minute in range(3 * 24 * 60):
            now_us = (10_000 + 60 * minute) * S
            clock.hear("stays", now_us - 15 * S, now_us)
            if minute % 10 == 0:
                clock.hear(f"job-{minute}", now_us - 20 * S, now_us)
            if minute % (25 * 60) == 0:
                clock.hear("nightly", now_us - 25 * S, now_us)
            found += [clock.advance(now_us), clock.advance(now_us + 40 * S), clock.behind_us(now_us + 50 * S)]
        clock.advance(now_us + 40 * 24 * 3600 * S)  # while nobody is heard, nobody is forgotten
        return found

    clock = EvaluationClock(0, settle_us=0)
    forgetful = reached(clock)
    assert len(clock.services) == 24 * 6 + 2
    assert None not in forgetful
    monkeypatch.setattr("tailrace_flows.core.alerting.clock.FORGET_US", 1 << 62)
    assert forgetful == reached(EvaluationClock(0, settle_us=0))


def test_a_service_whose_clock_is_ahead_does_not_leave_out_the_others() -> None:
    clock = EvaluationClock(0, settle_us=0)
    for t in range(0, 200, 10):
        clock.hear("right", (t - 2) * S, t * S)
        clock.hear("ahead", (t + 50) * S, t * S)
        assert clock.advance(t * S) == (t - 2) * S
        assert clock.stalled(t * S) == []


def test_the_foremost_service_that_is_not_far_ahead_says_how_far_all_are_behind() -> None:
    clock = EvaluationClock(0, settle_us=0)
    assert clock.behind_us(100 * S) is None
    clock.hear("a", 40 * S, 100 * S)
    clock.hear("b", 70 * S, 100 * S)
    clock.hear("wrong clock", 100_000 * S, 100 * S)
    assert clock.behind_us(100 * S) == 30 * S
    assert clock.behind_us(60 * S) == 0
    clock.advance(100 * S)  # the least of them is waited for
    assert clock.behind_us(100 * S) == 60 * S


def test_who_begins_listens_for_a_while_before_the_first_is_believed() -> None:
    clock = EvaluationClock(100 * S)
    clock.hear("a", 90 * S, 100 * S)
    assert clock.advance(100 * S) is None
    assert clock.next_us(100 * S) <= 101 * S
    clock.hear("b", 20 * S, 102 * S)
    for now_s in (101, 102, 103, 104):
        assert clock.advance(now_s * S) is None
    assert clock.advance(105 * S) == 20 * S


def test_time_in_which_nothing_could_be_heard_does_not_count_as_listening() -> None:
    clock = EvaluationClock(100 * S)
    clock.hear("a", 90 * S, 100 * S)
    assert clock.advance(120 * S) is None
    clock.hear("b", 20 * S, 120 * S)
    assert clock.advance(120 * S) is None
    assert [clock.advance(now_s * S) for now_s in (121, 122, 123, 124)] == [None, None, None, 20 * S]


def test_time_stands_still_while_it_is_listened_who_is_back_after_a_silence_of_all() -> None:
    clock = EvaluationClock(100 * S)
    clock.hear("a", 90 * S, 100 * S)
    for now_s in range(100, 106):
        clock.advance(now_s * S)
    assert clock.advance(140 * S) == 110 * S
    clock.hear("a", 130 * S, 140 * S)
    clock.hear("b", 120 * S, 141 * S)
    assert [clock.advance(now_s * S) for now_s in range(141, 146)] == [110 * S] * 4 + [120 * S]


def test_a_crash_while_it_is_listened_begins_that_anew() -> None:
    clock = EvaluationClock(100 * S)
    clock.hear("a", 90 * S, 100 * S)
    for now_s in range(100, 105):
        clock.advance(now_s * S)
    clock.resume(104 * S)
    assert clock.advance(105 * S) is None


def test_while_nothing_can_be_read_nobody_is_taken_for_silent() -> None:
    """As while the broker is away, or the process is stopped: what was told meanwhile is still to be heard."""
    clock = EvaluationClock(0, settle_us=0)
    clock.listen(100 * S)
    clock.hear("a", 95 * S, 100 * S)
    assert [clock.advance(now_s * S) for now_s in (130, 700)] == [95 * S] * 2
    clock.listen(700 * S)
    assert clock.advance(701 * S) == 95 * S
    clock.hear("a", 690 * S, 702 * S)
    assert clock.advance(702 * S) == 690 * S


def test_who_is_silent_while_it_is_listened_is_left_out() -> None:
    clock = EvaluationClock(0, settle_us=0)
    reached = []
    for now_s in range(100, 140, 2):
        clock.listen(now_s * S)
        clock.hear("a", (now_s - 5) * S, now_s * S)
        if now_s <= 104:
            clock.hear("b", 90 * S, now_s * S)
        reached.append(clock.advance(now_s * S))
        assert clock.next_us(now_s * S) > now_s * S
    assert reached == [90 * S] * 17 + [(now_s - 5) * S for now_s in (134, 136, 138)]


def test_a_restart_into_an_outage_takes_nobody_for_silent() -> None:
    clock = EvaluationClock(0, settle_us=0)
    clock.listen(100 * S)
    clock.hear("a", 95 * S, 100 * S)
    assert clock.advance(100 * S) == 95 * S
    clock.resume(110 * S)
    assert [clock.advance(now_s * S) for now_s in (110, 145, 700)] == [95 * S] * 3


def listening(seconds: range, clock: EvaluationClock, *, flow: bool, web: bool, shop: bool) -> list[int | None]:
    """What is reached every 2 s. `flow`: the windows flow says that it goes on; `web`, `shop`: they send."""
    reached = []
    for now_s in seconds[::2]:
        if flow:
            clock.go_on(now_s * S, now_s * S)
        if web:
            clock.hear("web", (now_s - 5) * S, now_s * S)
        if shop:
            clock.hear("shop", (now_s - 5) * S, now_s * S)
        clock.listen(now_s * S)
        reached_us = clock.advance(now_s * S)
        reached.append(None if reached_us is None else reached_us // S)
    return reached


def test_while_the_windows_flow_is_away_nobody_is_taken_for_silent() -> None:
    """Nor in the time after it in which it has more to read, as one of them is heard before the other."""
    clock = EvaluationClock(0, settle_us=0)
    assert listening(range(100, 111), clock, flow=True, web=True, shop=True)[-1] == 105
    assert set(listening(range(112, 900), clock, flow=False, web=False, shop=False)) == {105}
    assert set(listening(range(900, 1100), clock, flow=False, web=True, shop=False)) == {105}
    assert listening(range(1100, 1111), clock, flow=True, web=True, shop=False) == [105] * 6
    assert listening(range(1112, 1115), clock, flow=True, web=True, shop=True) == [1107, 1109]


def test_absences_of_the_windows_flow_that_follow_each_other_do_not_add_up() -> None:
    clock = EvaluationClock(0, settle_us=0)
    listening(range(100, 111), clock, flow=True, web=True, shop=True)
    for start_s in range(112, 300, 15):
        assert set(listening(range(start_s, start_s + 11), clock, flow=False, web=False, shop=False)) == {105}
        assert set(listening(range(start_s + 12, start_s + 13), clock, flow=True, web=False, shop=False)) == {105}


def test_who_is_silent_while_the_windows_flow_goes_on_is_left_out() -> None:
    clock = EvaluationClock(0, settle_us=0)
    listening(range(100, 111), clock, flow=True, web=True, shop=True)
    reached = listening(range(112, 160), clock, flow=True, web=True, shop=False)
    assert reached == [105] * 13 + list(range(133, 155, 2))


def test_a_part_of_the_topic_that_cannot_be_read_holds_up_the_others_for_five_minutes() -> None:
    """The windows flow has not read all, but rows come."""
    clock = EvaluationClock(0, settle_us=0)
    listening(range(100, 111), clock, flow=True, web=True, shop=True)
    reached = listening(range(112, 600), clock, flow=False, web=True, shop=False)
    moved = next(number for number, one in enumerate(reached) if one != 105)
    assert 300 <= 2 * moved <= 350
    assert reached[-1] == 593


def test_a_state_of_before_the_windows_flow_said_that_it_goes_on_is_read() -> None:
    clock = EvaluationClock(0, settle_us=0)
    for name in ("read_until_us", "waited_us", "tried_us", "told_us", "newest_us", "lag_us"):
        del clock.__dict__[name]
    clock.listen(100 * S)
    clock.hear("a", 95 * S, 100 * S)
    assert clock.advance(100 * S) == 95 * S


def test_of_a_windows_flow_that_falls_behind_silence_counts_as_of_what_it_has_read() -> None:
    """It reads a fifth as fast as time passes, and has not come to what the shop has sent meanwhile."""
    clock = EvaluationClock(0, settle_us=0)
    listening(range(100, 111), clock, flow=True, web=True, shop=True)
    left_out = 0
    for now_s in range(112, 300, 2):
        until_s = 110 + (now_s - 110) / 5
        clock.go_on(round(until_s * S), now_s * S)
        clock.hear("web", round((until_s - 5) * S), now_s * S)
        clock.listen(now_s * S)
        clock.advance(now_s * S)
        if clock.stalled(now_s * S):
            left_out = left_out or now_s
    assert 110 + 5 * 28 <= left_out <= 110 + 5 * 30


@pytest.mark.parametrize("hosts_s", [-1000, 1000])
def test_the_clock_of_the_windows_flows_host_may_be_another(hosts_s: int) -> None:
    """It says when it has read by its own; a restart does not make it wait until the other one has come so far."""
    clock = EvaluationClock(0, settle_us=0)

    def pass_time(first_s: int, last_s: int, *, shop: bool) -> int | None:
        for now_s in range(first_s, last_s, 2):
            clock.go_on((now_s + hosts_s) * S, now_s * S)
            clock.hear("web", (now_s - 5) * S, now_s * S)
            if shop:
                clock.hear("shop", (now_s - 5) * S, now_s * S)
            clock.listen(now_s * S)
            clock.advance(now_s * S)
        return clock.reached_us

    assert pass_time(10_000, 10_020, shop=True) == 10_013 * S
    clock.resume(10_020 * S)
    assert pass_time(10_020, 10_080, shop=False) == 10_073 * S


def test_a_windows_flow_whose_hosts_clock_was_set_back_is_believed_from_then_on() -> None:
    clock = EvaluationClock(0, settle_us=0)
    listening(range(5000, 5011), clock, flow=True, web=True, shop=True)
    for now_s in range(5012, 5080, 2):
        clock.go_on((now_s - 3600) * S, now_s * S)
        clock.hear("web", (now_s - 5) * S, now_s * S)
        clock.listen(now_s * S)
        clock.advance(now_s * S)
    assert clock.reached_us == 5073 * S


def test_one_service_that_is_ahead_takes_nothing_from_a_pause_in_the_backlog_of_others() -> None:
    clock = EvaluationClock(0, settle_us=0)
    clock.hear("a", 10 * S, 1000 * S)
    clock.hear("ahead", 1_000_000 * S, 1000 * S)
    clock.hear("b", 12 * S, 1000 * S)
    assert clock.advance(1030 * S) == 42 * S


def test_a_windows_flow_that_is_away_again_while_it_reads_a_backlog_is_waited_for() -> None:
    """Also where there is no patience with it any more: nobody comes to be heard meanwhile."""
    clock = EvaluationClock(0, settle_us=0)
    listening(range(100, 111), clock, flow=True, web=True, shop=True)
    for now_s in range(1000, 1400, 2):
        for service in ("web", "shop"):
            clock.hear(service, (now_s - 900 + (now_s - 1000)) * S, now_s * S)
        clock.listen(now_s * S)
        clock.advance(now_s * S)
    reached_us = clock.reached_us
    for now_s in range(1400, 1500, 2):
        clock.listen(now_s * S)
        assert clock.advance(now_s * S) == reached_us
    for now_s in range(1500, 1516, 2):
        clock.hear("web", (now_s - 600) * S, now_s * S)
        clock.listen(now_s * S)
        assert clock.advance(now_s * S) == reached_us
