"""kill -9 of every process, at random moments, under load, on a real Kafka."""

import random
import threading
from collections import Counter
from signal import SIGTERM

from tailrace_schemas.clock import monotonic_s, now_us

from tests.reliability.attack import Result, Run, attack
from tests.reliability.traffic import CONFIG, S, Traffic
from tests.reliability.world import (
    World,
    alert_events,
    check_alerts,
    check_notifications,
    check_objective,
    check_rollups,
    check_rows,
    configure,
    counters_of_windows,
    delivered,
    notifications,
    python,
    starts_on_window,
    told,
    why_no_kafka,
)  # fmt: skip
from tests.subscribers.receiving import Hook, webhook_server

VICTIMS = {
    "windows": 30,
    "alerts": 24,
    "sender": 12,
    "service": 10,
    "notifier": 10,
    "clickhouse": 6,
    "broker": 6,
    "all": 2,
}
"""How often each is chosen, of a hundred."""
PAUSE_S = (0.2, 4.5)
"""Between kills: some come before a process has begun, most in the middle."""
AHEAD_US = 40 * S
"""The fleet's event times are ahead, so that a standstill on a busy machine changes no decision either."""
PER_KILL_S = 4.0
ROUTING = """
routing:
  receiver: nobody
  flap_damping: null
  routes:
  - {where: {alertname: Busy}, receiver: hook, group_by: [service, host], group_wait: 0s, group_interval: 1s}
receivers:
- {name: nobody}
- {name: hook, webhook: {url: "URL", headers: {Authorization: "Bearer ${env:HOOK_TOKEN}"}}}
"""


@attack(
    name="kills",
    promise="Whatever is killed, whenever: every sample that Kafka has confirmed is in exactly one row, every alert "
    "event is told under one id, the last state of each group reaches its receiver.",
    what="kill -9 of the window flow, the flow of alerts, objectives and health, a sender, a service with the SDK, the "
    "notifier, ClickHouse, the broker, and of all at once, at random moments under load on a real Kafka.",
    unit="kills",
    short=4,
    long=200,
)
def kills(run: Run) -> Result:
    if missing := why_no_kafka():
        return Result(skipped=missing)
    with webhook_server() as hook, World.of(run.directory, "kills") as world:
        return _kill(run, world, hook)


def _kill(run: Run, world: World, hook: Hook) -> Result:
    b = world.bench
    configure(b, CONFIG + ROUTING.replace("URL", hook.url))
    rng = random.Random(run.seed)
    world.add_flow("windows", "windows")
    world.add_flow("alerts", "alerts,slo,health")
    world.add("service", python("-m", "tests.reliability.service", "shop", "kills", "100"))
    world.add("notifier", python("-m", "tailrace_infra.cli", "notify"))
    world.until_judging("alerts,slo,health")
    start_us = starts_on_window(now_us() + AHEAD_US)
    seconds = max(60, int(run.size * PER_KILL_S) // 10 * 10)
    traffic = Traffic(run.seed, start_us, seconds, ahead_us=AHEAD_US)
    world.add_traffic(traffic)
    killed: Counter[str] = Counter()
    rounds = 0
    began_s = monotonic_s()
    while rounds < run.size:
        threading.Event().wait(rng.uniform(*PAUSE_S))
        victim = rng.choices(list(VICTIMS), list(VICTIMS.values()))[0]
        hit = [name for name in (world.parts if victim == "all" else [victim]) if world.parts[name].kill()]
        rounds += bool(hit)
        killed.update(hit)
        killed["all at once"] += victim == "all"
        if rounds % 20 == 0 and hit:
            run.say(f"{rounds} kills in {monotonic_s() - began_s:.0f} s, {world.confirmed()} of {seconds} s sent")
    took_s = monotonic_s() - began_s
    run.say(f"{rounds} kills in {took_s:.0f} s; waiting for the end of the traffic")
    world.until(lambda: world.parts["sender"].done, "the traffic is sent", seconds + 240)
    code = world.parts["service"].stop()
    assert code == 0, world.tails()
    made = delivered(b)
    assert world.confirmed() == seconds
    sent = {(service, at) for service in ("svc-0", "svc-1") for _, at, _ in made.samples[service, ""]}
    assert {(service, (at - start_us) // S) for service, at in sent} == {
        (service, second) for service in ("svc-0", "svc-1") for second in range(seconds)
    }
    world.until(lambda: counters_of_windows(b).get("samples", 0) >= made.counters["samples"], "all is counted")
    world.until(lambda: len(told(alert_events(b)[0])) >= len(traffic.events()), "all alerts are told")
    world.until(lambda: _settled(world, hook), "all notifications are decided and told")
    codes = {name: world.parts[name].stop() for name in ("notifier", "windows", "alerts")}
    # A notifier that was killed last may still be starting, and has then nothing to finish.
    assert not any(code for name, code in codes.items() if (name, code) != ("notifier", -SIGTERM)), world.tails()
    rows = check_rows(b, made)
    events, again = check_alerts(b, traffic)
    statuses = check_objective(b, made, traffic)
    longer = check_rollups(b, made)
    decided, twice = check_notifications(b, "hook", hook.ids())
    assert twice <= killed["notifier"], f"{twice} notifications were told again"
    return Result(
        rounds,
        [run.seed],
        {
            "kills": rounds,
            "processes killed": sum(value for name, value in killed.items() if name != "all at once"),
            **{f"kills of {name}": value for name, value in sorted(killed.items())},
            "minutes of killing": took_s / 60,
            "samples": made.counters["samples"],
            "batches sent again, recognised": made.counters["duplicate_batches"],
            "rows of 10 s equal to the oracle": rows,
            "rows of an hour and a day equal to the oracle": longer,
            "alert events equal to the oracle": events,
            "alert events told again, same id": again,
            "objective statuses equal to the oracle": statuses,
            "notifications": decided,
            "notifications told again, same id": twice,
            "starts again by itself (what it needs was away)": sum(world.ended.values()),
        },
    )


def _settled(world: World, hook: Hook) -> bool:
    """Whether the last notification of every group is that of its calm, and was told."""
    decided = notifications(world.bench, "hook")
    newest = {one.group_key: one for one in decided.values()}
    told = set(hook.ids())
    return bool(newest) and all(one.status == "resolved" and one.id in told for one in newest.values())
