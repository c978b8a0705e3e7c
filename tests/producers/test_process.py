"""What a process takes, beside what psutil and the sockets themselves say."""

import os
import socket
import sys
import tracemalloc
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest
from tailrace_producers.process import ProcessMetrics, connections_at

from tests.producers.http_recording import Recorder, recorder

__all__ = ["recorder"]  # a fixture

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's /proc")


def test_memory_and_cpu_time(recorder: Recorder) -> None:
    metrics = ProcessMetrics(recorder.telemetry)
    before = psutil.Process().cpu_times()
    sum(range(3_000_000))
    tracemalloc.start()
    try:
        held = bytearray(5_000_000)
        metrics.observe()
        memory = psutil.Process().memory_info()
    finally:
        tracemalloc.stop()
    after = psutil.Process().cpu_times()
    found = {(one.metric, one.attributes.get("cpu.mode")): one.value for one in recorder.samples(*NAMES)}
    spent = found["process.cpu.time", "user"] + found["process.cpu.time", "system"]
    assert 0 < spent <= sum(after[:2]) - sum(before[:2]) + 0.05
    assert found["process.memory.usage", None] == pytest.approx(memory.rss, rel=0.05)
    assert found["process.memory.virtual", None] == pytest.approx(memory.vms, rel=0.05)
    assert len(held) <= found["cpython.memory.traced", None] < len(held) + 1_000_000
    assert found["cpython.memory.allocated_blocks", None] == pytest.approx(sys.getallocatedblocks(), rel=0.1)
    assert all(
        one.attributes == {"process.pid": str(os.getpid())}
        for one in recorder.samples(*NAMES)
        if one.metric != "process.cpu.time"
    )


NAMES = ("process.cpu.time", "process.memory.usage", "process.memory.virtual", "process.memory.anonymous",
         "cpython.memory.traced", "cpython.memory.allocated_blocks")  # fmt: skip


@linux
def test_anonymous_memory_is_the_kernels(recorder: Recorder) -> None:
    ProcessMetrics(recorder.telemetry).observe()
    (found,) = recorder.samples("process.memory.anonymous")
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    assert found.value == pytest.approx(1024 * int(lines["RssAnon"].split()[0]), rel=0.05)


@linux
@pytest.mark.parametrize(
    ("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")], ids=["IPv4", "IPv6"]
)
def test_connections_are_those_accepted_at_the_port(family: socket.AddressFamily, host: str) -> None:
    with ExitStack() as stack:
        try:
            server = stack.enter_context(socket.create_server((host, 0), family=family))
        except OSError as error:
            pytest.skip(str(error))
        port = server.getsockname()[1]
        assert connections_at(port) == 0
        for number in range(1, 4):
            stack.enter_context(socket.create_connection((host, port)))
            accepted = stack.enter_context(server.accept()[0])
            assert connections_at(port) == number
        accepted.close()
        assert connections_at(port) == 2
        with_client_ends = psutil.Process().net_connections("tcp")
        assert len([one for one in with_client_ends if one.status == "ESTABLISHED" and one.laddr.port == port]) == 2


@linux
def test_connections_of_another_process_are_not_ours() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        accepted = server.accept()[0]
        pid = os.fork()
        if pid == 0:
            client.close()
            accepted.close()
            os._exit(connections_at(server.getsockname()[1]) or 0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert connections_at(server.getsockname()[1]) == 1
        accepted.close()
