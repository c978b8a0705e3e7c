"""The notifier's loop: the notifications topic in, messages to receivers out.

Guarantee: at least once. What a message was sent for is committed before the same receiver gets its next one, so a
crash repeats at most one message for each receiver, with the same id in it. A notification that the dispatcher sends
again after its own crash is known by its id, also across a restart of the notifier: it reads the last `LOOKBACK` before
its committed offset again, and only to know their ids.

Kafka away: nothing is sent that could not be committed. A receiver away: it alone waits, see `outbox`.
"""

import logging
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, Final, NamedTuple

from confluent_kafka import Consumer, KafkaException, Message, TopicPartition
from tailrace_schemas.clock import monotonic_s
from tailrace_schemas.cloudevents import read_notification
from tailrace_schemas.config.receivers import Receiver

from tailrace_subscribers.notify.ledger import Ledger
from tailrace_subscribers.notify.outbox import SLOW_S, Fate, Finished, Item, Job, Outbox
from tailrace_subscribers.notify.secrets import Masker
from tailrace_subscribers.notify.senders import SendError, send

__all__ = ["GROUP", "Notifier"]

log = logging.getLogger(__name__)

GROUP: Final = "notify"
LOOKBACK: Final = 1_000
IDS_KEPT: Final = 20_000
POLL_S: Final = 0.2
BUSY_POLL_S: Final = 0.02
SAID_EVERY_S: Final = 60.0
"""How often the same trouble of one receiver is logged."""
SAID_MAX: Final = 300
"""Characters of what a server said that are logged."""
STOP_S: Final = 10.0
"""For messages under way when told to stop."""


class _Done(NamedTuple):
    """What a sending thread reports."""

    job: Job
    note: str
    error: SendError | None


class Notifier:
    """One process of the consumer group. Receivers are asked for by name at each message, so they may change."""

    def __init__(
        self,
        client: Mapping[str, Any],
        topic: str,
        group: str,
        receivers: Callable[[], Mapping[str, Receiver]],
        masker: Masker,
        stopped: Callable[[], bool],
    ) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()
        """(receiver, fate) -> notifications; also `retried`, `duplicate`, `invalid`, `messages`."""
        self._topic = topic
        self._receivers = receivers
        self._masker = masker
        self._stopped = stopped
        self._outbox = Outbox(lambda name: self._receivers().get(name))
        self._ledgers: dict[int, Ledger] = {}
        self._committed: dict[int, tuple[int, str]] = {}
        self._ids: dict[str, None] = {}
        self._done: SimpleQueue[_Done] = SimpleQueue()
        self._flying = 0
        self._said_s: dict[tuple[str, str], float] = {}
        self._consumer = Consumer(
            {
                "auto.offset.reset": "earliest",
                "session.timeout.ms": 10_000,
                "logger": logging.getLogger("tailrace.librdkafka"),
                **client,
                "group.id": group,
                "enable.auto.commit": False,
                "enable.partition.eof": False,
            }
        )

    def run(self) -> None:
        """Until told to stop; then what is under way is finished, as far as `STOP_S` goes."""
        try:
            self._consumer.subscribe(
                [self._topic], on_assign=self._assigned, on_revoke=self._revoked, on_lost=self._lost
            )
            while not self._stopped():
                for message in self._consumer.consume(500, BUSY_POLL_S if self._flying else self._pause_s()):
                    self._take(message)
                self._finish(self._outbox.sweep(monotonic_s()))
                self._keep_narrow()
                self._collect()
                for name in self._outbox.slow(monotonic_s()):
                    self._say(
                        name, f"a message has been sent to it for {SLOW_S:.0f} s: it gets no other until that ends"
                    )
                if self._commit():
                    self._start()
            self._drain()
        finally:
            self._consumer.close()

    def _pause_s(self) -> float:
        now_s = monotonic_s()
        next_s = self._outbox.next_s(now_s)
        return POLL_S if next_s is None else min(max(next_s - now_s, 0.0), POLL_S)

    # -- reading -----------------------------------------------------------------------------------------

    def _assigned(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        places = []
        for place in consumer.committed(partitions, timeout=STOP_S):
            if place.error is not None:  # not as if nothing were committed: all would be told again
                raise KafkaException(place.error)
            low, high = consumer.get_watermark_offsets(place, timeout=STOP_S)
            known = low if place.offset < 0 or place.offset > high else place.offset
            if place.offset > high:
                log.warning("%s[%d] is shorter than what was committed: it is read anew", place.topic, place.partition)
            self._ledgers[place.partition] = Ledger.read(known, place.metadata if known == place.offset else None)
            self._committed.pop(place.partition, None)
            places.append(TopicPartition(place.topic, place.partition, max(low, known - LOOKBACK)))
            log.info("reading %s[%d] from %d", place.topic, place.partition, known)

        consumer.assign(places)

    def _revoked(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self._collect()
        with suppress(KafkaException):
            self._commit()
        self._lost(consumer, partitions)

    def _lost(self, _consumer: Consumer, partitions: list[TopicPartition]) -> None:
        for place in partitions:
            self._ledgers.pop(place.partition, None)
            for item in self._outbox.forget(place.partition):
                self._ids.pop(item.notification.id, None)

    def _take(self, message: Message) -> None:
        error = message.error()
        if error is not None:
            self._say("", f"Kafka: {error.str()}")
            return
        partition, offset = message.partition(), message.offset()
        ledger = self._ledgers.get(partition)
        if ledger is None:
            return
        fresh = ledger.begin(offset)
        try:
            notification = read_notification(message.value() or b"")
        except ValueError as wrong:
            if fresh:
                self.counts["", "invalid"] += 1
                why = str(wrong).splitlines()[0]
                self._say("", f"{self._topic}[{partition}] at {offset} holds no notification: {why}")
                ledger.finish(offset)
            return
        known = notification.id in self._ids
        self._ids[notification.id] = None
        if len(self._ids) > IDS_KEPT:
            del self._ids[next(iter(self._ids))]
        if not fresh:
            return
        if known:
            self.counts[notification.receiver, "duplicate"] += 1
            ledger.finish(offset)
            return
        self._outbox.add(Item(partition, offset, notification), monotonic_s())

    # -- sending -----------------------------------------------------------------------------------------

    def _start(self) -> None:
        for job in self._outbox.take(monotonic_s()):
            self._flying += 1
            threading.Thread(target=self._send, args=(job,), name=f"send-{job.receiver.name}", daemon=True).start()

    def _send(self, job: Job) -> None:
        """In a thread of its own: nothing but the message and the report of it. Secrets may be files that hang."""
        note, error = "", None
        try:
            self._masker.learn(job.receiver)
            note = send(job.receiver, [item.notification for item in job.items])
        except SendError as why:
            error = why
        except Exception as bug:  # noqa: BLE001 - a library's surprise must not stop everybody else's messages
            error = SendError(f"{type(bug).__name__}: {bug}", retry=True)
        self._done.put(_Done(job, note, error))

    def _collect(self) -> None:
        with suppress(Empty):
            while True:
                job, note, error = self._done.get_nowait()
                self._flying -= 1
                name = job.receiver.name
                if note:
                    self._say(name, note)
                if error is None:
                    self.counts[name, "messages"] += 1
                    log.info("told %s: %s", name, ", ".join(item.notification.id for item in job.items[:20]))
                else:
                    self.counts[name, "retried" if error.retry else "refused_messages"] += 1
                    why = self._masker.mask(str(error))[:SAID_MAX]  # cut after: half a secret is not known as one
                    self._say(name, f"{why}{'; it is tried again' if error.retry else '; it is given up'}")
                again = error is not None and error.retry and self._ours(job)
                after_s = error.after_s if error else None
                self._finish(self._outbox.finish(job, monotonic_s(), sent=error is None, retry=again, after_s=after_s))

    def _ours(self, job: Job) -> bool:
        """Whether any of it is still to be sent by this process."""
        return any(item.partition in self._ledgers for item in job.items)

    def _finish(self, finished: list[Finished]) -> None:
        for item, fate in finished:
            name = item.notification.receiver
            self.counts[name, fate.value] += 1
            if fate in (Fate.GIVEN_UP, Fate.UNKNOWN_RECEIVER):
                self._say(name, f"not told of notification {item.notification.id}: {fate.value.replace('_', ' ')}")
            ledger = self._ledgers.get(item.partition)
            if ledger is not None:
                ledger.finish(item.offset)

    def _keep_narrow(self) -> None:
        for partition, ledger in self._ledgers.items():
            while (offset := ledger.too_wide()) is not None:
                finished = self._outbox.give_up(partition, offset)
                if not finished:  # it is being sent
                    break
                self._finish(finished)

    # -- committing --------------------------------------------------------------------------------------

    def _commit(self) -> bool:
        """Whether everything that is finished is committed: only then may more be sent."""
        wanted = {partition: (ledger.position, ledger.metadata) for partition, ledger in self._ledgers.items()}
        places = [
            TopicPartition(self._topic, partition, position, metadata)
            for partition, (position, metadata) in wanted.items()
            if self._committed.get(partition) != (position, metadata)
        ]
        if not places:
            return True
        try:
            for place in self._consumer.commit(offsets=places, asynchronous=False):
                if place.error is not None:
                    raise KafkaException(place.error)
        except KafkaException as error:
            self._say("", f"what was sent cannot be committed, so nothing is sent: {error.args[0].str()}")
            return False
        self._committed |= wanted
        return True

    def _drain(self) -> None:
        """Waits for what is under way, so that it is not sent again after the restart."""
        until_s = monotonic_s() + STOP_S
        while self._flying and monotonic_s() < until_s:
            with suppress(Empty):
                self._done.put(self._done.get(timeout=POLL_S))
            self._collect()
        if not self._commit():
            log.warning("what was sent last could not be committed: it is sent again after the restart")

    def _say(self, name: str, what: str) -> None:
        """A warning; the same about the same receiver once a minute."""
        key = (name, what[:40])
        now_s = monotonic_s()
        if now_s - self._said_s.get(key, -SAID_EVERY_S) < SAID_EVERY_S:
            return
        self._said_s[key] = now_s
        if len(self._said_s) > IDS_KEPT:
            self._said_s.clear()
        log.warning("%s", self._masker.mask(f"{name}: {what}" if name else what))
