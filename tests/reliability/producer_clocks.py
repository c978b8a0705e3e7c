"""A producer's clock goes wrong: how soon the shipped rule tells of it, from its records to the alert; and the rows."""

from itertools import count
from random import Random

from tailrace_flows.core.alerting.evaluator import Evaluator
from tailrace_flows.core.alerting.units import plan
from tailrace_flows.core.config import WindowConfig
from tailrace_flows.core.misdated import MISDATED
from tailrace_flows.core.shard import Output
from tailrace_infra.config_command import default_config
from tailrace_schemas.config import model_of
from tailrace_schemas.rows import WindowRows

from tests.flows.machine import START_US, Machine, S, check_rows
from tests.flows.oracle import Batch, expect
from tests.flows.writing import LATENCY
from tests.reliability.attack import Result, Run, attack

__all__ = ["RIGHT_S", "Told", "check", "world"]

RIGHT_S = 120
GOAL_S = 30


class Told(Machine):
    """A machine whose aggregates an evaluator with the shipped rules reads."""

    def __init__(self, logs: list[list[Batch]], now_us: int) -> None:
        self.began_us = now_us
        self.sent = [batch for log in logs for batch in log]
        config = {record.key: model_of(record.key, record.value) for record in default_config() if record.value}
        self.evaluator = Evaluator(None, lambda config: plan(("rules",), config), config, now_us)
        self.alerts: list[tuple[float, str, str, str]] = []
        self.shares: dict[tuple[str, str], float] = {}
        super().__init__(logs, WindowConfig(), now_us=now_us)

    def tell(self) -> None:
        found = [self.evaluator.on_time(self.now_us)]
        for output in self._emitted:
            if isinstance(output, Output):
                for block in (*output.aside, *output.blocks):
                    for row in block.rows.to_pylist():
                        if row["metric"] == MISDATED:
                            self.shares[block.service, dict(row["attributes"])["tailrace.samples.time"]] = row["last"]
                    found.append(self.evaluator.on_rows(WindowRows(*block), self.now_us))
        self._write(self._emitted)
        self._emitted = []
        for one in found:
            for event in one.events:
                if event.alert is not None and event.alert.name == "ProducerClockWrong":
                    labels = dict(event.alert.labels)
                    name = (event.transition, labels["service"], labels["tailrace.samples.time"])
                    self.alerts.append(((self.now_us - self.began_us) / S, *map(str, name)))


def world(
    error_s: int, *, own_time: bool, others: bool, wrong_s: int = 60, every_us: int = S // 2, shift_us: int = 0
) -> Told:
    """A service that sends each `every_us`, and whose clock is wrong from RIGHT_S on for `wrong_s`.

    `shift_us`: after a window's begin, when everything begins. `own_time`: Kafka's timestamps are the producer's own.
    `others`: another service's clock is right.
    """
    log: list[Batch] = []
    for number in range((RIGHT_S + wrong_s + 120) * S // every_us):
        now_us = START_US + shift_us + number * every_us
        wrong = RIGHT_S * S <= now_us - START_US - shift_us < (RIGHT_S + wrong_s) * S
        time_us = now_us + (error_s * S if wrong else 0)
        for service in ("cart", "search") if others else ("cart",):
            at_us = time_us if service == "cart" else now_us
            record_us = at_us if own_time else now_us
            log.append(Batch(service, "", service, number, (LATENCY,), ((0, at_us, 1.0),), record_us))
    told = Told([log], START_US + shift_us)
    told.hide()
    each = 2 if others else 1
    for _ in range(len(log) // each):
        told.send(0, each)
        while told.poll(0, 100):
            pass
        told.wait(every_us / S)
        told.tell()
    told.finish()
    return told


def check(told: Told) -> None:
    """Rows of the service whose clock is right are exact; each sample of the other is in one of 10 s, or counted."""
    right = [batch for batch in told.sent if batch.service != "cart"]
    rows = {key: row for key, row in told.rows.items() if key.service != "cart"}
    check_rows(rows, expect([right], told.config).rows, told.config)
    in_rows = sum(row["count"] for key, row in told.rows.items() if key.service == "cart" and key.seconds == 10)
    counts = {name: value for (_, service, _, name), value in told.counters.items() if service == "cart"}
    left_out = sum(
        value for name, value in counts.items() if name == "late_samples" or name.startswith("dead_letters.")
    )
    sent = sum(len(batch.samples) for batch in told.sent if batch.service == "cart")
    assert in_rows == counts["samples"], f"{in_rows} samples are in rows, {counts['samples']} counted so"
    assert in_rows + left_out == sent, f"of {sent} samples {in_rows} are in rows and {left_out} counted: {counts}"


@attack(
    name="producer_clock",
    promise="A producer's clock that goes wrong by an hour or a day is alarmed within 30 s, and no other service is, "
    "whose rows are exact; what cannot be in a row of its own is counted.",
    what="The windows' and rules' state machines, with the rules that are shipped: a service whose clock is set ahead "
    "or back, by ten minutes to a day, Kafka's timestamps being its own or the broker's, alone or beside one that is "
    "right.",
    unit="clocks",
    short=20,
    long=1_000,
)
def producer_clock(run: Run) -> Result:
    """One clock after the other, each from its own seed."""
    result = Result()
    after_s = []
    for seed in count(run.seed):
        if result.runs >= run.size:
            break
        result.runs += 1
        result.seeds.append(seed)
        random = Random(f"producer {seed}")
        error_s = random.choice((-86_400, -3600, -600, 600, 3600, 86_400))
        own_time = random.random() < 0.5
        others = random.random() < 0.5 or (own_time and error_s > 0)
        told = world(
            error_s, own_time=own_time, others=others, every_us=random.choice((S // 4, S, 3 * S)),
            shift_us=random.randrange(10 * S),
        )  # fmt: skip
        first_s = told.alerts[0][0] - RIGHT_S if told.alerts else float("inf")
        services = {service for _, _, service, _ in told.alerts}
        if not 0 <= first_s <= GOAL_S or services != {"cart"}:
            what = f"clock {error_s:+d} s, own time {own_time}, others {others}: alerts {told.alerts}"
            result.failures.append(run.failure(what, seed=seed, size=1))
        else:
            after_s.append(first_s)
        try:
            check(told)
        except AssertionError as error:
            result.failures.append(run.failure(f"rows: {error}", seed=seed, size=1))
    if after_s:
        ordered = sorted(after_s)
        result.figures = {
            "seconds to the alarm, median": round(ordered[len(ordered) // 2], 1),
            "seconds to the alarm, most": round(ordered[-1], 1),
        }
    return result
