"""What waits, for whom, and when it goes out: one in flight for each receiver, whatever happens."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tailrace_schemas.config.receivers import AppriseTarget, RateLimit, Receiver, Webhook
from tailrace_schemas.notifications import Notification, NotifiedAlert, Reason
from tailrace_subscribers.notify.ledger import WINDOW, Ledger
from tailrace_subscribers.notify.outbox import (
    ALERTS_MAX,
    BACK_OFF_S,
    GIVE_UP_S,
    SLOW_S,
    UNKNOWN_S,
    Fate,
    Finished,
    Item,
    Job,
    Outbox,
)

from tests.subscribers.receiving import EXAMPLE, notification

HOOK = Webhook(url="http://x")
LIMIT = RateLimit.model_validate({"messages": 2, "per": "10s"})
RECEIVERS = {
    "hook": Receiver(name="hook", webhook=HOOK),
    "slow": Receiver(name="slow", webhook=HOOK, rate_limit=LIMIT),
    "text": Receiver(name="text", apprise=AppriseTarget(url="x://"), rate_limit=LIMIT),
    "none": Receiver(name="none"),
}


def outbox() -> Outbox:
    return Outbox(RECEIVERS.get)


def item(number: int, receiver: str = "hook", group: str = "") -> Item:
    return Item(0, number, notification(number, receiver, group_key=group or f"group-{number}"))


def ends(finished: list[Finished]) -> list[tuple[int, Fate]]:
    return [(one.item.offset, one.fate) for one in finished]


def offsets(jobs: list[Job]) -> list[list[int]]:
    return [[one.offset for one in job.items] for job in jobs]


def test_one_in_flight_for_each_receiver_in_order() -> None:
    box = outbox()
    for number in range(3):
        box.add(item(number), 0)
    box.add(item(3, "text"), 0)
    jobs = box.take(0)
    assert offsets(jobs) == [[0], [3]]
    assert box.take(0) == []
    assert [one.fate for one in box.finish(jobs[0], 1, sent=True)] == [Fate.SENT]
    assert offsets(box.take(1)) == [[1]]


def test_a_message_that_does_not_end_is_told_of() -> None:
    box = outbox()
    box.add(item(1), 0)
    box.add(item(2, "text"), 0)
    hook, _text = box.take(5)
    assert box.slow(5 + SLOW_S - 0.1) == []
    assert box.finish(hook, 5 + SLOW_S - 0.1, sent=True)
    assert box.slow(5 + SLOW_S) == ["text"]


def test_failures_back_off_and_only_there() -> None:
    box = outbox()
    box.add(item(1), 0)
    now = 0.0
    for wait in (*BACK_OFF_S, BACK_OFF_S[-1]):
        (job,) = box.take(now)
        assert box.finish(job, now, sent=False, retry=True) == []
        assert box.take(now + wait - 0.01) == []
        assert box.next_s(now) == now + wait
        now += wait
    box.add(item(2, "text"), now)
    jobs = box.take(now)
    assert [job.receiver.name for job in jobs] == ["hook", "text"]
    assert box.finish(jobs[0], now, sent=True)[0].fate is Fate.SENT
    box.add(item(3), now)
    assert offsets(box.take(now)) == [[3]]


def test_a_receiver_may_say_when_to_come_back() -> None:
    box = outbox()
    box.add(item(1), 0)
    (job,) = box.take(0)
    box.finish(job, 0, sent=False, retry=True, after_s=120)
    assert box.next_s(0) == 120


def test_a_newer_notification_of_a_group_supersedes_what_waits() -> None:
    box = outbox()
    box.add(item(1), 0)
    box.add(item(2, group="g"), 0)
    box.add(item(3, group="g"), 1)
    (job,) = box.take(1)
    box.add(item(4, group="group-1"), 1)
    assert box.finish(job, 1, sent=False, retry=True) == []
    (job,) = box.take(2)
    assert ends(box.finish(job, 2, sent=True)) == [(2, Fate.SUPERSEDED), (3, Fate.SENT)]
    # The failed one has been overtaken while it was sent.
    (job,) = box.take(2)
    assert ends(box.finish(job, 2, sent=True)) == [(1, Fate.SUPERSEDED), (4, Fate.SENT)]


def told(number: int, firing: str, over: str = "", reason: Reason = Reason.CHANGED) -> Item:
    """A notification of one group about alerts of one letter each."""
    alerts = tuple(
        NotifiedAlert(
            firing=name in firing, alert=EXAMPLE.alerts[0].alert.model_copy(update={"labels": {"name": name}})
        )
        for name in firing + over
    )
    changes = {"reason": reason, "alerts": alerts, "firing": len(firing), "resolved": len(over), "group_key": "g"}
    changes |= {
        "status": "firing" if firing else "resolved",
        "common_labels": {"severity": "warning", "n": str(number)},
    }
    return Item(0, number, notification(number, **changes))


def said(message: Notification) -> tuple[str, str]:
    names = ["".join(one.alert.labels["name"] for one in message.alerts if one.firing is it) for it in (True, False)]
    assert (message.firing, message.resolved) == (len(names[0]), len(names[1]))
    assert message.status == ("firing" if names[0] else "resolved")
    assert list(message.alerts) == sorted(message.alerts, key=lambda one: not one.firing)
    return names[0], names[1]


@pytest.mark.parametrize(
    ("waiting", "expected"),
    [
        ([told(1, "ab"), told(2, "b", "a"), told(3, "bc")], ("bc", "a")),
        ([told(1, "b", "a"), told(2, "c", "b"), told(3, "d", "c")], ("d", "cba")),
        ([told(1, "b", "a"), told(2, "ab")], ("ab", "")),  # it fires again
        ([told(1, "b", "a"), told(2, "", "b", Reason.RESOLVED)], ("", "ba")),
        ([told(1, "a", "", Reason.ESCALATION), told(2, "b", "", Reason.ESCALATION)], ("ba", "")),
        ([told(1, "ab", "", Reason.FIRST), told(2, "a", "", Reason.ESCALATION)], ("ab", "")),
        ([told(1, "a", "", Reason.ESCALATION), told(2, "b")], ("b", "")),  # it is held back now
    ],
)
@pytest.mark.parametrize("flying", [False, True])
def test_what_only_a_superseded_notification_says_is_said(
    waiting: list[Item], expected: tuple[str, str], flying: bool
) -> None:
    box = outbox()
    for number, one in enumerate(waiting):
        box.add(one, 0)
        if not number and flying:
            (job,) = box.take(0)
    if flying:
        box.finish(job, 0, sent=False, retry=True)
    (job,) = box.take(10)
    message = job.items[0].notification
    assert said(message) == expected
    assert message.id == waiting[-1].notification.id
    assert set(message.common_labels) <= {"severity", "n"}
    assert ends(box.finish(job, 10, sent=True)) == [
        *((one.offset, Fate.SUPERSEDED) for one in waiting[:-1]),
        (waiting[-1].offset, Fate.SENT),
    ]


def test_what_is_superseded_can_be_ended_by_itself_and_what_it_said_is_bounded() -> None:
    box = outbox()
    letters = [chr(0x4E00 + number) for number in range(ALERTS_MAX + 50)]
    for number, letter in enumerate(letters):
        box.add(told(number, "z", letter), 0)
    assert ends(box.give_up(0, 7)) == [(7, Fate.SUPERSEDED)]
    (job,) = box.take(0)
    message = job.items[0].notification
    assert (len(message.alerts), message.truncated) == (ALERTS_MAX, 51)
    assert (message.firing, message.resolved) == (1, len(letters))
    assert all(not one.notification.alerts for one in job.items[0].behind)
    assert [one.offset for one in box.forget(0)] == [number for number in range(len(letters)) if number != 7]


def test_what_fails_for_too_long_or_for_good_is_ended() -> None:
    box = outbox()
    box.add(item(1), 0)
    box.add(item(2), GIVE_UP_S / 2)
    (job,) = box.take(0)
    box.finish(job, 0, sent=False, retry=True)
    (job,) = box.take(GIVE_UP_S)
    assert [(one.item.offset, one.fate) for one in box.finish(job, GIVE_UP_S, sent=False, retry=True)] == [
        (1, Fate.GIVEN_UP)
    ]
    (job,) = box.take(GIVE_UP_S + 60)
    assert [one.fate for one in box.finish(job, GIVE_UP_S + 60, sent=False)] == [Fate.REFUSED]
    assert len(box) == 0


def test_one_failure_ends_nothing_that_waited_for_the_rate_limit() -> None:
    limit = RateLimit.model_validate({"messages": 1, "per": "2h"})
    receiver = Receiver(name="mail", apprise=AppriseTarget(url="x://"), rate_limit=limit)
    box = Outbox({"mail": receiver}.get)
    box.add(item(1, "mail"), 0)
    (job,) = box.take(0)
    box.finish(job, 0, sent=True)
    box.add(item(2, "mail"), 1)
    box.add(item(3, "mail"), 7200 - GIVE_UP_S / 2)
    (job,) = box.take(7200)
    assert offsets([job]) == [[2, 3]]
    assert box.finish(job, 7200, sent=False, retry=True) == []
    (job,) = box.take(14400)
    assert ends(box.finish(job, 14400, sent=False, retry=True)) == [(2, Fate.GIVEN_UP), (3, Fate.GIVEN_UP)]


def test_more_than_the_rate_limit_waits_as_webhooks_and_is_a_digest_as_text() -> None:
    box = outbox()
    for number in range(4):
        box.add(item(number, "slow"), 0)
        box.add(item(10 + number, "text"), 0)
    jobs = box.take(0)
    assert offsets(jobs) == [[0], [10, 11, 12, 13]]
    for job in jobs:
        box.finish(job, 0, sent=True)
    (job,) = box.take(1)
    box.finish(job, 1, sent=True)
    assert box.take(9.9) == []
    assert box.next_s(2) == 10
    assert offsets(box.take(10)) == [[2]]


def test_nobody_waits_for_receivers_that_do_not_exist() -> None:
    box = outbox()
    box.add(item(1, "stranger"), 0)
    box.add(item(2, "none"), 0)
    assert box.take(0) == []
    assert [(one.item.offset, one.fate) for one in box.sweep(0)] == [(2, Fate.DISCARDED)]
    assert box.sweep(UNKNOWN_S - 0.1) == [], "it may be in a configuration that is being read"
    assert [(one.item.offset, one.fate) for one in box.sweep(UNKNOWN_S)] == [(1, Fate.UNKNOWN_RECEIVER)]
    assert len(box) == 0


def test_what_is_somebody_elses_is_forgotten() -> None:
    box = outbox()
    box.add(item(1), 0)
    box.add(item(2), 0)
    box.take(0)
    assert sorted(one.offset for one in box.forget(0)) == [1, 2]
    assert len(box) == 0
    assert box.give_up(0, 2) == []


def test_what_is_read_again_while_it_is_being_sent_still_waits_when_that_fails() -> None:
    """Or its offset would be committed as finished before it is sent."""
    box = outbox()
    box.add(item(1), 0)
    (job,) = box.take(0)
    box.forget(0)
    box.add(item(1), 1)
    assert box.finish(job, 1, sent=False, retry=True) == []
    assert offsets(box.take(10)) == [[1]]


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["add", "finish", "fail", "wait"]),
            st.sampled_from(["hook", "slow", "text"]),
            st.integers(0, 4),
        ),
        max_size=60,
    )
)
def test_every_notification_has_one_fate(acts: list[tuple[str, str, int]]) -> None:
    box, now, number = outbox(), 0.0, 0
    flying: dict[str, Job] = {}
    fates: Counter[int] = Counter()
    for act, receiver, group in [*acts, *[("wait", "", 4), ("finish", "", 0)] * 300]:
        finished = []
        if act == "add":
            box.add(item(number, receiver, f"{receiver}-{group}"), now)
            number += 1
        elif act == "wait":
            now += 5 * group
        else:
            for name, job in list(flying.items()):
                if receiver in ("", name):
                    finished += box.finish(flying.pop(name), now, sent=act == "finish", retry=True)
                    assert job.receiver.name == name
        fates.update(one.item.offset for one in finished)
        for job in box.take(now):
            assert job.receiver.name not in flying
            flying[job.receiver.name] = job
    assert fates == Counter(range(number))


# -- the ledger ----------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 40)), st.sets(st.integers(0, 40)), st.lists(st.integers(0, 40)))
def test_a_restart_knows_exactly_what_was_finished(order: list[int], holes: set[int], reading: list[int]) -> None:
    offsets = [100 + number for number in range(41) if number not in holes]
    ledger = Ledger(100)
    assert all(ledger.begin(offset) for offset in offsets)
    finished = {100 + number for number in order} & set(offsets)
    for number in order:
        if 100 + number in offsets:
            ledger.finish(100 + number)
    again = Ledger.read(ledger.position, ledger.metadata)
    assert len(ledger.metadata) < 4096
    assert {offset for offset in offsets if not again.begin(offset)} == finished
    # It goes on from there as the first one would.
    for offset in sorted(set(offsets) - finished):
        again.finish(offset)
    assert again.position == max(offsets, default=99) + 1
    assert again.metadata == ""


def test_the_metadata_fits_however_wide_it_gets() -> None:
    ledger = Ledger(0)
    for offset in range(WINDOW + 1):
        assert ledger.too_wide() is None
        ledger.begin(offset)
        if offset:
            ledger.finish(offset)
    assert len(ledger.metadata) < 4096
    assert ledger.too_wide() == 0
    ledger.finish(0)
    assert (ledger.position, ledger.metadata, ledger.too_wide()) == (WINDOW + 1, "", None)


def test_the_metadata_fits_while_one_message_takes_for_ever() -> None:
    """Or nothing could be committed, and nobody be told."""
    ledger = Ledger(0)
    for offset in range(3 * WINDOW):
        ledger.begin(offset)
    for offset in range(1, 3 * WINDOW):
        ledger.finish(offset)
    assert len(ledger.metadata) < 4096
    again = Ledger.read(ledger.position, ledger.metadata)
    assert [again.begin(offset) for offset in (0, 1, 2 * WINDOW - 1, 2 * WINDOW)] == [True, False, False, True]


def test_metadata_of_others_is_as_good_as_none() -> None:
    for text in (None, "", "x", "tailrace-1:", "tailrace-1:***", "tailrace-1:" + "A" * 30_000):
        ledger = Ledger.read(5, text)
        assert ledger.position == 5
        assert ledger.begin(5)
