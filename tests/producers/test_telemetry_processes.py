"""`Telemetry` in servers and pools that fork: each process is a producer of its own, and none loses a sample."""

import os
import signal
import socket
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path
from urllib.request import urlopen

import pytest

from tests.infra.waiting import eventually
from tests.producers.reading import Read, read_topic, samples_of

ROOT = Path(__file__).parents[2]


def by_producer(reads: list[Read]) -> dict[str, list[tuple[str, float]]]:
    """(metric, value) of each producer's samples; its sequence numbers have no gap and no duplicate."""
    found: dict[str, list[tuple[str, float]]] = defaultdict(list)
    sequences: dict[str, list[int]] = defaultdict(list)
    for read in reads:
        found[read.batch.producer_id] += [(one.series.metric, one.value) for one in samples_of(read.batch)]
        sequences[read.batch.producer_id].append(read.batch.sequence)
    assert all(sorted(numbers) == list(range(len(numbers))) for numbers in sequences.values())
    return found


def answers(port: int) -> str:
    """Of one request, on a connection of its own; "" while nobody listens."""
    try:
        with urlopen(f"http://127.0.0.1:{port}/", timeout=10) as response:
            return str(response.read().decode())
    except OSError:
        return ""


@pytest.mark.parametrize("recorded_in_master", [False, True])
def test_gunicorn_forks_its_workers(embedded_broker: str, tmp_path: Path, recorded_in_master: bool) -> None:
    pytest.importorskip("gunicorn")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "gunicorn", "--preload", "--workers", "3", "--bind", f"127.0.0.1:{port}"]
    command += ["--worker-tmp-dir", str(tmp_path), "tests.producers.service_for_gunicorn:app"]
    environment = {**os.environ, "BROKER": embedded_broker, "RECORD_IN_MASTER": "1" if recorded_in_master else ""}
    log = tmp_path / "gunicorn.log"
    with log.open("w") as output:
        server = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=output)
    try:
        eventually(lambda: answers(port), 30)
        pids = Counter(answers(port) for _ in range(120))
        victim = next(iter(pids))
        os.kill(int(victim), signal.SIGTERM)  # a worker that ends, and the one that takes its place
        eventually(lambda: answers(port) not in {"", *pids}, 30)
    finally:
        server.terminate()
        server.wait(30)
    assert "" not in pids
    found = by_producer(read_topic(embedded_broker))
    served = Counter(metric for samples in found.values() for metric, _ in samples)
    assert served.pop("master.starts", 0) == recorded_in_master
    assert set(served) == {"http.server.requests"}
    assert served.total() >= 122, log.read_text()
    workers = [samples for samples in found.values() if ("http.server.requests", 1.0) in samples]
    assert len(workers) >= 2
    assert "Error" not in log.read_text()


POOLS = """
import multiprocessing, os, sys, threading
from concurrent.futures import ProcessPoolExecutor
from tailrace_producers import Telemetry

shop = Telemetry("shop", bootstrap_servers=sys.argv[1])
done = shop.counter("done").bind()

def start():
    global own
    own = Telemetry("own", bootstrap_servers=sys.argv[1]).counter("own")

def work(number):
    done.add(number)
    own.add(number)
    shop.event("worked", number=number)
    return os.getpid()

def child():
    done.add(1000)
    threading.Thread(target=lambda: done.add(2000)).start()

if __name__ == "__main__":
    done.add(5000)
    method = sys.argv[2]
    context = multiprocessing.get_context(method)
    with context.Pool(2, start) as pool:
        pool.map(work, range(20), chunksize=1)
        pool.close()
        pool.join()
    with ProcessPoolExecutor(2, context, start) as executor:
        list(executor.map(work, range(20, 40)))
    process = context.Process(target=child)
    process.start()
    process.join()
    assert process.exitcode == 0
    done.add(6000)
    assert not {"closed", "shutdown"} & shop.stats.dropped.keys()
"""


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_pools_of_processes_lose_nothing(embedded_broker: str, tmp_path: Path, method: str) -> None:
    script = tmp_path / "pools.py"
    script.write_text(POOLS)
    done = subprocess.run(
        [sys.executable, str(script), embedded_broker, method], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    found = by_producer(read_topic(embedded_broker))
    counted = Counter(value for samples in found.values() for metric, value in samples if metric == "done")
    assert counted == Counter([*map(float, range(40)), 1000.0, 2000.0, 5000.0, 6000.0])
    others = Counter(metric for samples in found.values() for metric, _ in samples if metric != "done")
    assert others == {"worked": 40, "own": 40}


LEAKS = """
import gc, os, sys, threading
import psutil
from tailrace_producers import Telemetry

def rss_mb():
    gc.collect()
    return psutil.Process().memory_info().rss / 1e6

shop = Telemetry("shop", bootstrap_servers=sys.argv[1])
latency, queue = shop.timer("latency"), shop.gauge("queue")

def round_():
    def work():
        for number in range(500):
            with latency.time(route="/x", number=number % 50):
                pass
            queue.set(number, {"pool": number % 7})
            shop.event("deploy", version=number)
    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    assert shop.flush(30)

def open_and_close():
    other = Telemetry("other", bootstrap_servers=sys.argv[1])
    other.gauge("g").observe(lambda: 1)
    other.counter("c").add()
    other.close()

for _ in range(10): round_()
before_mb, threads, files = rss_mb(), threading.active_count(), len(os.listdir("/proc/self/fd"))
for _ in range(20): round_()
after_mb = rss_mb()
for _ in range(5): open_and_close()
gc.collect()
assert sum(isinstance(one, Telemetry) for one in gc.get_objects()) == 1
assert shop.stats.dropped == {}, shop.stats
assert (threading.active_count(), len(os.listdir("/proc/self/fd"))) == (threads, files)
sys.stdout.write(f"{before_mb} {after_mb}")
"""


def test_a_long_run_leaks_no_memory_threads_or_files(embedded_broker: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LEAKS, embedded_broker], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    before_mb, after_mb = map(float, done.stdout.split())
    assert after_mb - before_mb < 4, "240,000 samples in 160 threads"


GREENLETS = """
from gevent import monkey
monkey.patch_all()
import sys, threading, time
from tailrace_producers import Telemetry

def requests(telemetry, seconds):
    "As many as a host's only thread gets done."
    done, until_s = 0, time.monotonic() + seconds
    while time.monotonic() < until_s:
        telemetry.counter("requests").add()
        time.sleep(0.001)
        done += 1
    return done

with Telemetry("shop", bootstrap_servers=sys.argv[1]) as shop:
    done = requests(shop, 1)
    assert shop.flush(10)
    assert shop.stats == (done, done, 0, {}), shop.stats
alone = Telemetry("alone", bootstrap_servers="127.0.0.1:1")
requests(alone, 1)  # the first leave, and wait for a broker
sys.stdout.write(f"{requests(alone, 1)}")
alone.close(0)
"""


def test_greenlets_are_not_held_up_while_librdkafka_waits(embedded_broker: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", GREENLETS, embedded_broker], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 100, "with each held up for 20 ms it would be 50"
