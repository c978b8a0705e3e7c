"""What follows from alert events: notifications, incidents, and answers to commands that no evaluator knows.

A plain state machine of one key; time is wall time, given by the caller. Give it all at hand, then call `on_time`:

    responder.on_event(event, now_us)
    response = responder.on_time(now_us)

Guarantee: a notification is given out when a state that has it is stored, and not before. Decided again after a crash
it could be another one: what fired may be over by then, and a receiver that was told so would never hear of its end.
The price is the time until then, one to two epochs.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from tailrace_schemas.alerts import ABOUT_LEARNING, AlertEvent, Command, CommandKind, Transition, event_id
from tailrace_schemas.config import ConfigModel
from tailrace_schemas.config.dispatch import DispatchConfig
from tailrace_schemas.incidents import Incident
from tailrace_schemas.notifications import Notification

from tailrace_flows.core.alerting.dispatch import Dispatcher
from tailrace_flows.core.alerting.incidents import Incidents
from tailrace_flows.core.sealed import seal, unseal

__all__ = ["Responder", "Response"]

UNANSWERED_US: Final = 2_000_000
"""An evaluator answers a command about an alert that it knows, well within this time."""
SNAPSHOTS: Final = 2
"""So many later a state is stored. Bytewax begins an epoch while the one before it is being stored, but no third."""
LOOK_US: Final = 100_000
"""While something waits to be stored, it is looked after so often: each epoch then has a snapshot."""
STATE_VERSION: Final = 2


class Response(NamedTuple):
    """What is to be sent."""

    notifications: Sequence[Notification] = ()
    events: Sequence[AlertEvent] = ()
    incidents: Sequence[Incident] = ()

    def __bool__(self) -> bool:
        return bool(self.notifications or self.events or self.incidents)


class Responder:
    """See the module.

    Raises:
        ValueError: the state was written by another version of this format.
    """

    def __init__(self, config: Mapping[str, ConfigModel], now_us: int, state: bytes | None = None) -> None:
        self._config = dict(config)
        self._waiting: dict[str, tuple[int, Command]] = {}
        """Cause -> when it is answered here, and the command: nobody else has answered it so far."""
        self._events: list[AlertEvent] = []
        self._answers: list[AlertEvent] = []
        """What came since the last `on_time`; a snapshot is never taken in between."""
        self._snapshots = 0
        self._decided: deque[tuple[int, Notification]] = deque()
        """What is to be given out, and after how many snapshots."""
        self._look_us = now_us
        dispatcher = incidents = None
        if state is not None:
            dispatcher, incidents, self._waiting, decided = unseal(STATE_VERSION, state)
            self._decided += ((0, Notification.model_validate_json(one)) for one in decided)
        self._dispatcher = Dispatcher(DispatchConfig.of(self._config.values()), dispatcher, now_us)
        self._incidents = Incidents(incidents)

    def on_change(self, key: str, model: ConfigModel | None, now_us: int) -> None:
        """A record of the configuration changed; None: it was removed."""
        if self._config.get(key) == model:
            return
        if model is None:
            del self._config[key]
        else:
            self._config[key] = model
        self._dispatcher.on_config(DispatchConfig.of(self._config.values()), now_us)

    def on_event(self, event: AlertEvent, now_us: int) -> None:
        """An event of the alerts topic."""
        self._waiting.pop(event.cause, None)
        self._dispatcher.on_event(event, now_us)
        self._events.append(event)

    def on_command(self, command: Command, now_us: int) -> None:
        """A person's command: silences are carried out here, others are looked after."""
        if command.kind in ABOUT_LEARNING:
            return
        answer = self._dispatcher.on_command(command, now_us)
        if answer is None:
            self._waiting[f"command:{command.id}"] = (now_us + UNANSWERED_US, command)
        else:
            self._answers.append(answer)

    def on_time(self, now_us: int) -> Response:
        """What is due, and what follows from all that came since the last call."""
        unanswered = [cause for cause, (due_us, _) in self._waiting.items() if due_us <= now_us]
        answers = self._answers + [_unknown(cause, self._waiting.pop(cause)[1]) for cause in unanswered]
        events, self._events, self._answers = self._events, [], []
        self._decided += ((self._snapshots + SNAPSHOTS, one) for one in self._dispatcher.on_time(now_us))
        self._look_us = now_us + LOOK_US
        stored = []
        while self._decided and self._decided[0][0] <= self._snapshots:
            stored.append(self._decided.popleft()[1])
        return Response(stored, answers, self._incidents.on_events(events))

    def next_us(self) -> int | None:
        """When `on_time` is wanted."""
        due = [due_us for due_us, _ in self._waiting.values()]
        if (of_dispatcher := self._dispatcher.next_us()) is not None:
            due.append(of_dispatcher)
        if self._decided:
            due.append(self._look_us)
        return min(due, default=None)

    def snapshot(self) -> bytes:
        """The state for recovery; to be called once an epoch."""
        self._snapshots += 1
        decided = [one.model_dump_json() for _, one in self._decided]
        return seal(STATE_VERSION, (self._dispatcher.snapshot(), self._incidents.snapshot(), self._waiting, decided))


def _unknown(cause: str, command: Command) -> AlertEvent:
    assert command.kind not in (CommandKind.SILENCE, CommandKind.UNSILENCE)
    return AlertEvent(
        id=event_id(command.alert_id, Transition.REJECTED, cause),
        transition=Transition.REJECTED,
        time=command.time,
        cause=cause,
        sequence=0,
        reason="no alert has this id, or it ended long ago",
        alert=None,
    )
