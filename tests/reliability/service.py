"""A service with the SDK in it, as a process that can be killed: it records until it is stopped."""

import os
import random
import signal
import sys
import threading

from tailrace_producers import Telemetry
from tailrace_schemas.topics import Topics


def main() -> None:
    """Arguments: the service's name, the topic prefix, values a second."""
    name, prefix, rate = sys.argv[1], sys.argv[2], float(sys.argv[3])
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    rng = random.Random()
    with Telemetry(
        name, bootstrap_servers=os.environ["TAILRACE_KAFKA__BOOTSTRAP_SERVERS"], topics=Topics(prefix)
    ) as telemetry:
        timer = telemetry.timer("rpc.server.duration").bind({"rpc.method": "Get"})
        orders = telemetry.counter("shop.orders", "{order}").bind({})
        while not stop.wait(0.1):
            for _ in range(int(rate / 10)):
                timer.record(rng.lognormvariate(-4, 1))
            orders.add(1)


if __name__ == "__main__":
    main()
