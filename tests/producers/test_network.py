"""Interfaces, connections and probes: beside the kernel's own files and `ss`, and on files as kernels write them."""

import json
import shutil
import socket
import struct
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tailrace_producers.collectors import Reading, network
from tailrace_producers.collectors.network import STATES, Connections, Interfaces, derive_states, parse_tcp
from tailrace_producers.collectors.probes import ERRORS, Probes, Target
from tailrace_producers.collectors.reading import PROC, Collector
from tailrace_producers.collectors.sock_diag import count_sockets, parse_sockets

from tests.infra.waiting import eventually

linux = pytest.mark.skipif(PROC is None, reason="reads Linux's /proc")

Values = dict[tuple[str, ...], float]


def values(collector: Collector, now_s: float = 0.0) -> Values:
    """One pass: (metric, attribute values ...) -> value."""
    found: Values = {}
    for item in collector.collect(now_s):
        assert isinstance(item, Reading), item
        found[item.metric, *item.attributes.values()] = item.value
    return found


# Interfaces


@linux
def test_interfaces_are_those_of_sys() -> None:
    """Counters lie between two readings of the kernel's files; the rest is what they say."""

    def counter(name: str, file: str) -> int:
        return int(Path(f"/sys/class/net/{name}/statistics/{file}").read_text())

    names = [path.name for path in Path("/sys/class/net").iterdir() if path.is_dir()]
    files = {
        ("system.network.io", "receive"): "rx_bytes",
        ("system.network.io", "transmit"): "tx_bytes",
        ("system.network.packet.count", "receive"): "rx_packets",
        ("system.network.packet.count", "transmit"): "tx_packets",
        ("system.network.errors", "receive"): "rx_errors",
        ("system.network.errors", "transmit"): "tx_errors",
        ("system.network.packet.dropped", "transmit"): "tx_dropped",
    }
    before = {(name, file): counter(name, file) for name in names for file in files.values()}
    found = values(Interfaces(ignored=()))
    assert {key[1] for key in found} == set(names)
    for (metric, direction), file in files.items():
        for name in names:
            assert before[name, file] <= found[metric, name, direction] <= counter(name, file)
    for name in names:
        directory = Path(f"/sys/class/net/{name}")
        assert found["system.network.interface.mtu", name] == int((directory / "mtu").read_text())
        state = (directory / "operstate").read_text().strip()
        if state in ("up", "down"):
            assert found["system.network.interface.up", name] == (state == "up")
        for metric, file in (("speed", "speed"), ("full_duplex", "duplex")):
            try:
                told = (directory / file).read_text().strip()
            except OSError:  # EINVAL: it has none
                told = "unknown"
            known = {"unknown": None, "-1": None, "full": 1.0, "half": 0.0}.get(told, told)
            value = found.get((f"system.network.interface.{metric}", name))
            assert value == (known if known is None or metric == "full_duplex" else float(known) * 1e6)


# ruff: noqa: E501 - the kernel's lines are longer than ours
NET_DEV = """\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo: 748310    7018    0    0    0     0          0         0   748310    7018    0    0    0     0       0        0
  eth0:3864897466   79349    1    2    0     0          0         0  3601759   40826    3    4    0     0       0          0
veth1f: 5    5    0    0    0     0          0         0   5   5   0    0    0     0       0          0
"""


@linux
def test_counters_are_read_by_column_and_containers_ends_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "dev").write_text(NET_DEV)
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(tmp_path))
    monkeypatch.setattr(psutil, "net_if_stats", dict)
    found = values(Interfaces())
    assert {key[1] for key in found} == {"lo", "eth0"}
    received = {
        (name, metric.removeprefix("system.network.")): value
        for (metric, name, direction), value in found.items()
        if direction == "receive"
    }
    assert received == {
        ("lo", "io"): 748310, ("lo", "packet.count"): 7018, ("lo", "packet.dropped"): 0, ("lo", "errors"): 0,
        ("eth0", "io"): 3864897466, ("eth0", "packet.count"): 79349, ("eth0", "packet.dropped"): 2, ("eth0", "errors"): 1,
    }  # fmt: skip
    assert found["system.network.packet.dropped", "eth0", "transmit"] == 4
    assert found["system.network.errors", "eth0", "transmit"] == 3
    assert {key[1] for key in values(Interfaces(["e*"]))} == {"lo", "veth1f"}


def test_speed_and_duplex_are_told_where_they_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    stats = type(next(iter(psutil.net_if_stats().values())))

    def state(up: bool, duplex: Any, speed: int) -> Any:
        return stats(up, duplex, speed, 1500, "")

    known = {
        "fast": state(True, psutil.NIC_DUPLEX_FULL, 10_000),
        "old": state(True, psutil.NIC_DUPLEX_HALF, 10),
        "down": state(False, psutil.NIC_DUPLEX_UNKNOWN, 0),
    }
    monkeypatch.setattr(psutil, "net_if_stats", lambda: known)
    found = {key: value for key, value in values(Interfaces()).items() if "interface" in key[0]}
    prefix = "system.network.interface."
    assert {(key[1], key[0].removeprefix(prefix)): value for key, value in found.items()} == {
        ("fast", "up"): 1, ("fast", "mtu"): 1500, ("fast", "speed"): 1e10, ("fast", "full_duplex"): 1,
        ("old", "up"): 1, ("old", "mtu"): 1500, ("old", "speed"): 1e7, ("old", "full_duplex"): 0,
        ("down", "up"): 0, ("down", "mtu"): 1500,
    }  # fmt: skip


# Connections

SETUP = """
import socket, subprocess, sys
subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
listener = socket.create_server(("127.0.0.1", 0), backlog=50)
listener6 = socket.create_server(("::1", 0), family=socket.AF_INET6, backlog=1)
pairs = []
for _ in range(20):
    client = socket.create_connection(listener.getsockname())
    pairs.append((client, listener.accept()[0]))
pairs += [(socket.create_connection(listener6.getsockname()[:2]), listener6.accept()[0])]
for client, _ in pairs[:3]:
    client.shutdown(socket.SHUT_WR)    # FIN_WAIT_2, held by its program, and CLOSE_WAIT
for client, _ in pairs[3:5]:
    client.close()                     # FIN_WAIT_2 that only waits, and CLOSE_WAIT
for client, server in pairs[5:9]:
    client.close(); server.close()     # TIME_WAIT
waiting = []
for _ in range(6):                     # SYN_SENT: the queue of listener6 is full
    one = socket.socket(socket.AF_INET6); one.setblocking(False); one.connect_ex(listener6.getsockname()[:2])
    waiting.append(one)
bound = socket.socket(); bound.bind(("127.0.0.1", 0))  # neither connected nor listening: no connection
from tailrace_producers.collectors.network import Connections
import json
def count(asks):
    collector = Connections()
    collector._asks_kernel = asks
    return {r.attributes["network.connection.state"]: r.value for r in collector.collect(0.0)}
ss = subprocess.run(["ss", "-tanH"], capture_output=True, text=True).stdout.split("\\n")
print(json.dumps([count(True), count(False), [line.split()[0] for line in ss if line]]))
"""
SS_NAMES = {
    "ESTAB": "established", "SYN-SENT": "syn_sent", "SYN-RECV": "syn_received", "FIN-WAIT-1": "fin_wait_1",
    "FIN-WAIT-2": "fin_wait_2", "TIME-WAIT": "time_wait", "CLOSE-WAIT": "close_wait", "LAST-ACK": "last_ack",
    "LISTEN": "listen", "CLOSING": "closing",
}  # fmt: skip


@linux
@pytest.mark.skipif(not shutil.which("ss"), reason="compares with ss, of iproute2")
def test_connections_agree_with_ss_and_with_the_slow_files() -> None:
    """In a network of its own, where nothing else comes and goes."""
    if subprocess.run(["unshare", "-n", "true"], capture_output=True).returncode:
        pytest.skip("needs to make a network namespace")
    done = subprocess.run(["unshare", "-n", sys.executable, "-c", SETUP], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    kernel, files, ss = json.loads(done.stdout)
    expected = Counter(SS_NAMES[state] for state in ss)
    assert Counter(kernel) == expected
    assert Counter(files) == expected
    assert set(kernel) == set(SS_NAMES.values()), "states without connections are told as 0"
    assert kernel["established"] >= 24
    assert (kernel["fin_wait_2"], kernel["close_wait"], kernel["time_wait"], kernel["listen"]) == (5, 5, 4, 2)


TCP = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1 0000000000000000 100 0 0 10 0
   1: 0100007F:1F90 0100007F:D431 01 00000000:00000000 02:000AFC80 00000000     0        0 2 2 0000000000000000 20 4 30 10 -1
   2: 0100007F:1F90 0100007F:D432 06 00000000:00000000 03:00001500 00000000     0        0 0 3 0000000000000000
"""
TCP6 = """\
  sl  local_address                         remote_address                        st tx_queue rx_queue tr tm->when retrnsmt
   0: 00000000000000000000000001000000:1F90 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000
"""


def test_files_are_read_where_the_kernel_cannot_be_asked(tmp_path: Path) -> None:
    assert values(Connections(None)) == {}
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "tcp").write_text(TCP)
    expected = {("system.network.connection.count", "tcp", state): 0.0 for state in STATES.values()}
    for state, listening in (("", 1), (TCP6, 2)):  # a kernel without IPv6, and one with it
        if state:
            (tmp_path / "net" / "tcp6").write_text(state)
        told = {"established": 1, "time_wait": 1, "listen": listening}
        found = values(Connections(tmp_path))
        assert found == expected | {("system.network.connection.count", "tcp", key): n for key, n in told.items()}


@linux
def test_a_kernel_that_refuses_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = 0

    def refuse(_states: object) -> Any:
        nonlocal asked
        asked += 1
        raise PermissionError("no netlink in here")

    monkeypatch.setattr(network, "count_sockets", refuse)
    collector = Connections()
    with socket.create_server(("127.0.0.1", 0)):
        for _ in range(2):
            assert values(collector)["system.network.connection.count", "tcp", "listen"] >= 1
    assert asked == 1


def test_states_that_are_not_listed_follow_from_the_totals() -> None:
    listed = Counter({(10, False): 2, (8, False): 3, (5, False): 1, (5, True): 4, (3, False): 7})
    sockstat = {("TCP", "inuse"): 20, ("TCP6", "inuse"): 5, ("TCP", "tw"): 9}
    counts = {STATES[state]: count for state, count in derive_states(listed, sockstat).items() if count}
    assert counts == {
        "listen": 2, "close_wait": 3, "fin_wait_2": 5, "syn_received": 7, "established": 19, "time_wait": 5,
    }  # fmt: skip
    gone = derive_states(listed, {})  # closed between the two looks
    assert (gone[1], gone[6]) == (0, 0)


def datagram(*messages: tuple[int, bytes]) -> bytes:
    """Netlink messages: kind and what follows the header."""
    parts = [struct.pack("=IHHII", 16 + len(rest), kind, 2, 0, 0) + rest for kind, rest in messages]
    return b"".join(part + b"\0" * (-len(part) % 4) for part in parts)


def test_netlinks_answers() -> None:
    one = bytes([2, 8, 0, 0]) + bytes(68) + b"\x05\0\x08\0\0\0\0\0"
    found: Counter[tuple[int, bool]] = Counter()
    assert not parse_sockets(datagram((20, one), (20, bytes([10, 5, 3, 0]) + bytes(68))), found)
    assert found == {(8, False): 1, (5, True): 1}
    assert parse_sockets(datagram((20, one), (3, bytes(4))), found)
    with pytest.raises(FileNotFoundError):
        parse_sockets(datagram((2, struct.pack("=i", -2))), found)
    for damaged in (b"", b"\1", datagram((20, one))[:-4], datagram((20, b""))):
        with pytest.raises(OSError, match="cut short"):
            parse_sockets(damaged, found)


@given(st.binary(max_size=200))
def test_any_datagram_is_an_answer_or_an_error(data: bytes) -> None:
    with suppress(OSError):
        parse_sockets(data, Counter())


@linux
def test_a_listener_is_seen() -> None:
    before = count_sockets([10])[10, False]
    with socket.create_server(("127.0.0.1", 0)), socket.create_server(("::1", 0), family=socket.AF_INET6):
        assert count_sockets([10])[10, False] >= before + 1  # others may have ended meanwhile
    assert parse_tcp(b"head\n") == {}


# Probes


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as made:
        yield made


def port_of(listener: socket.socket) -> int:
    return int(listener.getsockname()[1])


def rounds(probes: Probes, enough: Any) -> tuple[list[tuple[str, float]], Counter[tuple[str, str]]]:
    """Passes until `enough(durations, errors)`: durations by host, and errors by host and kind."""
    durations: list[tuple[str, float]] = []
    now_s = 0.0

    def once() -> Counter[tuple[str, str]] | None:
        nonlocal now_s
        now_s += 1.0
        errors: Counter[tuple[str, str]] = Counter()
        for item in probes.collect(now_s):
            assert isinstance(item, Reading)
            host = item.attributes["server.address"]
            if item.metric == "network.probe.duration":
                durations.append((host, item.value))
            else:
                errors[host, item.attributes["error.type"]] = round(item.value)
        return errors if enough(durations, errors) else None

    errors = eventually(once)
    assert errors is not None
    return durations, errors


def test_a_probe_measures_the_handshake(listener: socket.socket) -> None:
    port = port_of(listener)
    probes = Probes([Target("127.0.0.1", port), Target("localhost", port)])
    durations, errors = rounds(probes, lambda found, _: {host for host, _ in found} == {"127.0.0.1", "localhost"})
    assert all(0 < seconds < 1 for _, seconds in durations)
    assert not +errors
    assert set(errors) == {(host, error) for host in ("127.0.0.1", "localhost") for error in ERRORS}, "0 is told too"


def test_what_goes_wrong_is_counted_by_kind_and_hinders_no_other(listener: socket.socket) -> None:
    with socket.create_server(("127.0.0.2", 0), backlog=0) as full, socket.socket() as closed:
        closed.bind(("127.0.0.3", 0))
        waiting = []
        for _ in range(4):  # its queue is full: further handshakes are not answered
            one = socket.socket()
            one.setblocking(False)
            one.connect_ex(full.getsockname())
            waiting.append(one)
        targets = [
            Target("127.0.0.1", port_of(listener)),
            Target("127.0.0.2", port_of(full)),
            Target("127.0.0.3", port_of(closed)),
            Target("name.invalid", 80),
            Target("255.255.255.255", 80),
        ]
        kinds = {
            ("127.0.0.2", "timeout"), ("127.0.0.3", "connection_refused"), ("name.invalid", "name_resolution"),
        }  # fmt: skip
        probes = Probes(targets, timeout_s=0.05)
        durations, errors = rounds(probes, lambda found, errors: found and kinds <= (+errors).keys())
        for one in waiting:
            one.close()
    assert {host for host, _ in durations} == {"127.0.0.1"}
    assert {key for key in +errors if key[0] != "255.255.255.255"} == kinds
    assert {key[1] for key in +errors if key[0] == "255.255.255.255"} <= {"unreachable", "other"}


def test_rounds_do_not_overlap_and_leave_no_files_open(listener: socket.socket) -> None:
    probes = Probes([Target("127.0.0.1", port_of(listener))], timeout_s=0.2)
    before = len(psutil.Process().open_files()) + len(psutil.Process().net_connections())
    list(probes.collect(0.0))
    first = probes._round
    assert first is not None
    first.join()
    assert len(probes._results) == 1
    list(probes.collect(1.0))
    second = probes._round
    assert second is not None
    second.join()
    assert len(psutil.Process().open_files()) + len(psutil.Process().net_connections()) <= before


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("db.internal:5432", Target("db.internal", 5432)),
        ("192.0.2.1:1", Target("192.0.2.1", 1)),
        ("[2001:db8::1]:65535", Target("2001:db8::1", 65535)),
    ],
)
def test_targets(text: str, target: Target) -> None:
    assert Target.parse(text) == target


@pytest.mark.parametrize("text", ["", "db", "db:", ":80", "db:0", "db:65536", "db:x", "::1:80", "[]:80", "db:8 0"])
def test_what_is_no_target_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no target: write host:port"):
        Target.parse(text)


def test_limits_of_probes() -> None:
    with pytest.raises(ValueError, match="65 probe targets; at most 64"):
        Probes([Target("127.0.0.1", port) for port in range(1, 66)])
    with pytest.raises(ValueError, match="must be positive"):
        Probes([], 0)
