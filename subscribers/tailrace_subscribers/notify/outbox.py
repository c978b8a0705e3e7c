"""What waits to be sent, by receiver: one in flight each, back-off, rate limits, digests. Pure: time is an argument.

A receiver that fails blocks nobody else. Of one group only the newest notification waits: it has the state of the whole
group, so an older one would say less, later. But that an alert is over is said by one notification only, so what takes
its place says it too, and ends together with it. What has waited for `GIVE_UP_S` at a receiver that has failed for as
long is given up.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, NamedTuple

from tailrace_schemas.config.receivers import RateLimit, Receiver
from tailrace_schemas.notifications import Notification, NotifiedAlert, Reason

__all__ = ["Fate", "Finished", "Item", "Job", "Outbox"]

BACK_OFF_S: Final = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0)
"""After the first failure in a row, the second, and so on; the last stays."""
GIVE_UP_S: Final = 3600.0
UNKNOWN_S: Final = 10.0
"""How long a receiver that is not known is waited for: the dispatcher may have read a new configuration first."""
SLOW_S: Final = 60.0
"""A message that is sent for longer is told of: each step of it has a timeout, but a server that sends a byte every few
seconds keeps to them all."""
DIGEST_MAX: Final = 1000
"""Notifications in one digest."""
ALERTS_MAX: Final = 200
"""In one notification, as many as the dispatcher has; further ones are counted as `truncated`."""


class Fate(StrEnum):
    """How a notification ended; the counters have these names."""

    SENT = "sent"
    SUPERSEDED = "superseded"
    """A newer one of its group came before it could be sent, and has ended: with what only this one said."""
    REFUSED = "refused"
    """The receiver will never take it."""
    GIVEN_UP = "given_up"
    """The receiver failed for too long."""
    UNKNOWN_RECEIVER = "unknown_receiver"
    DISCARDED = "discarded"
    """By a receiver that is there to tell nobody."""


class Item(NamedTuple):
    """A notification, and where it was read."""

    partition: int
    offset: int
    notification: Notification
    behind: tuple["Item", ...] = ()
    """Those whose place it took, without their alerts."""


class Finished(NamedTuple):
    """An item that needs nothing more."""

    item: Item
    fate: Fate


class Job(NamedTuple):
    """One message to be sent now."""

    receiver: Receiver
    items: tuple[Item, ...]


@dataclass
class _Queue:
    """One receiver's."""

    waiting: dict[str, tuple[Item, float]] = field(default_factory=dict)
    """Group key -> item, and since when it waits; oldest first."""
    flying: dict[str, tuple[Item, float]] = field(default_factory=dict)
    """The message that is being sent."""
    flying_since_s: float = 0.0
    failures: int = 0
    """In a row."""
    failing_since_s: float = 0.0
    """The first of these."""
    not_before_s: float = 0.0
    sent_s: deque[float] = field(default_factory=deque)
    """Attempts within the rate limit's time."""


class Outbox:
    """Costs a few microseconds a notification; state: what waits, one for each receiver and group."""

    def __init__(self, receiver_of: Callable[[str], Receiver | None]) -> None:
        self._receiver_of = receiver_of
        self._queues: dict[str, _Queue] = {}

    def __len__(self) -> int:
        return sum(len(queue.waiting) for queue in self._queues.values())

    def add(self, item: Item, now_s: float) -> None:
        """Takes a notification, which supersedes one of its group that waits."""
        queue = self._queues.setdefault(item.notification.receiver, _Queue())
        key = item.notification.group_key
        old = queue.waiting.get(key)
        queue.waiting[key] = (_superseding(old[0], item), old[1]) if old else (item, now_s)

    def take(self, now_s: float) -> list[Job]:
        """What can be sent now; each receiver is busy until `finish`."""
        return [job for name, queue in self._queues.items() for job in self._take(name, queue, now_s)]

    def _take(self, name: str, queue: _Queue, now_s: float) -> Iterator[Job]:
        receiver = self._receiver_of(name)
        if queue.flying or not queue.waiting or receiver is None or receiver.kind == "none":
            return
        if now_s < self._due_s(queue, receiver.limit, now_s):
            return
        limit = receiver.limit
        left = len(queue.waiting) if limit is None else limit.messages - len(queue.sent_s)
        several = len(queue.waiting) > left and receiver.kind != "webhook"
        keys = list(queue.waiting)[: DIGEST_MAX if several else 1]
        if limit is not None:
            queue.sent_s.append(now_s)
        queue.flying, queue.flying_since_s = {key: queue.waiting.pop(key) for key in keys}, now_s
        yield Job(receiver, tuple(item for item, _ in queue.flying.values()))

    def slow(self, now_s: float) -> list[str]:
        """The receivers to which a message has been sent for `SLOW_S`: they get no other meanwhile."""
        return [name for name, one in self._queues.items() if one.flying and now_s - one.flying_since_s >= SLOW_S]

    def finish(
        self, job: Job, now_s: float, *, sent: bool, retry: bool = False, after_s: float | None = None
    ) -> list[Finished]:
        """The message was sent, or not. What is tried again comes first, unless something newer of its group waits."""
        queue = self._queues[job.receiver.name]
        flying, queue.flying = queue.flying, {}
        if sent or not retry:
            queue.failures = 0
            return _ended(job.items, Fate.SENT if sent else Fate.REFUSED)
        if not queue.failures:  # what waited for the rate limit, or behind a slow message, has not been tried
            queue.failing_since_s = now_s
        queue.failures += 1
        wait_s = BACK_OFF_S[min(queue.failures, len(BACK_OFF_S)) - 1]
        queue.not_before_s = now_s + max(wait_s, after_s or 0.0)
        again = {}
        for key, (item, since_s) in flying.items():
            newer = queue.waiting.get(key)
            if newer is None:
                again[key] = item, since_s
            elif (newer[0].partition, newer[0].offset) > (item.partition, item.offset):  # else read again, see `forget`
                queue.waiting[key] = _superseding(item, newer[0]), newer[1]
        queue.waiting = again | queue.waiting
        late = [
            key
            for key, (_, since_s) in queue.waiting.items()
            if now_s - max(since_s, queue.failing_since_s) >= GIVE_UP_S
        ]
        return _ended([queue.waiting.pop(key)[0] for key in late], Fate.GIVEN_UP)

    def sweep(self, now_s: float) -> list[Finished]:
        """Ends what waits for receivers that tell nobody, or that do not exist for `UNKNOWN_S`."""
        finished: list[Finished] = []
        for name, queue in self._queues.items():
            receiver = self._receiver_of(name)
            if queue.waiting and (receiver is None or receiver.kind == "none"):
                fate, wait_s = (Fate.UNKNOWN_RECEIVER, UNKNOWN_S) if receiver is None else (Fate.DISCARDED, 0.0)
                ended = [key for key, (_, since_s) in queue.waiting.items() if now_s - since_s >= wait_s]
                finished += _ended([queue.waiting.pop(key)[0] for key in ended], fate)
        return finished

    def give_up(self, partition: int, offset: int) -> list[Finished]:
        """Ends one item now, if it waits: so many were read after it that their fates cannot be kept."""
        for queue in self._queues.values():
            for key, (item, since_s) in queue.waiting.items():
                if (item.partition, item.offset) == (partition, offset):
                    del queue.waiting[key]
                    return _ended([item], Fate.GIVEN_UP)
                for one in item.behind:  # what it said is still said, unless this process ends before
                    if (one.partition, one.offset) == (partition, offset):
                        left = tuple(other for other in item.behind if other is not one)
                        queue.waiting[key] = item._replace(behind=left), since_s
                        return [Finished(one, Fate.SUPERSEDED)]
        return []

    def forget(self, partition: int) -> list[Item]:
        """The partition may be somebody else's now, who reads again what is not finished: that is returned."""
        forgotten: list[Item] = []
        for queue in self._queues.values():
            waiting = [key for key, (item, _) in queue.waiting.items() if item.partition == partition]
            forgotten += [queue.waiting.pop(key)[0] for key in waiting]
            forgotten += [item for item, _ in queue.flying.values() if item.partition == partition]
        return [one for item in forgotten for one in (*item.behind, item)]

    def next_s(self, now_s: float) -> float | None:
        """When `take` has something, as far as is known now."""
        due = [
            self._due_s(queue, receiver.limit, now_s)
            for name, queue in self._queues.items()
            if queue.waiting and not queue.flying and (receiver := self._receiver_of(name)) is not None
        ]
        return min(due, default=None)

    @staticmethod
    def _due_s(queue: _Queue, limit: RateLimit | None, now_s: float) -> float:
        if limit is None:
            return queue.not_before_s
        while queue.sent_s and queue.sent_s[0] <= now_s - limit.per:
            queue.sent_s.popleft()
        free_s = queue.sent_s[-limit.messages] + limit.per if len(queue.sent_s) >= limit.messages else 0.0
        return max(queue.not_before_s, free_s)


def _ended(items: Iterable[Item], fate: Fate) -> list[Finished]:
    """These, and what they superseded."""
    finished = []
    for item in items:
        finished += [Finished(one, Fate.SUPERSEDED) for one in item.behind]
        finished.append(Finished(item._replace(behind=()), fate))
    return finished


def _superseding(old: Item, new: Item) -> Item:
    """The newer of two items of one group and receiver, with what only the older one says."""
    silent = old._replace(notification=old.notification.model_copy(update={"alerts": ()}), behind=())
    return new._replace(
        notification=_with_what_is_over(old.notification, new.notification),
        behind=(*old.behind, silent, *new.behind),
    )


def _with_what_is_over(old: Notification, new: Notification) -> Notification:
    """The newer notification, and those alerts of the older one of which it says nothing: that are over, since nothing
    later says so. What fires is all in the newer one, unless that is a step of an escalation, for some of the alerts.
    """
    told = {_identity(one) for one in new.alerts}
    partial = new.reason is Reason.ESCALATION
    kept = [one for one in old.alerts if (partial or not one.firing) and _identity(one) not in told]
    unseen = max(0, old.resolved - sum(not one.firing for one in old.alerts))  # for which there was no room
    if not kept and not unseen:
        return new
    alerts = sorted((*new.alerts, *kept), key=lambda one: not one.firing)
    firing = new.firing + sum(one.firing for one in kept)
    return new.model_copy(
        update={
            "status": "firing" if firing else "resolved",
            "firing": firing,
            "resolved": new.resolved + sum(not one.firing for one in kept) + unseen,
            "truncated": new.truncated + unseen + max(0, len(alerts) - ALERTS_MAX),
            "alerts": tuple(alerts[:ALERTS_MAX]),
            "common_labels": dict(sorted(new.common_labels.items() & old.common_labels.items())),
        }
    )


def _identity(one: NotifiedAlert) -> tuple[str, tuple[tuple[str, str], ...]]:
    """What makes an alert the same one when it fires again, as the dispatcher has it: then the newer says how it is."""
    return one.alert.source, tuple(sorted(one.alert.labels.items()))
