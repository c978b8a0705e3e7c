"""Ports for servers that are told theirs before they start."""

import socket
from pathlib import Path

import pytest
from tailrace_infra import ports
from tailrace_infra.ports import free_port, free_ports


def test_no_outgoing_connection_takes_a_port_before_its_server_has_started() -> None:
    """A broker takes seconds to start, and the kernel had given its port away meanwhile."""
    given = Path("/proc/sys/net/ipv4/ip_local_port_range")
    if not given.exists():
        pytest.skip("only Linux says which ports it gives to connections")
    first, last = map(int, given.read_text().split())

    assert not [port for port in free_ports(200) if first <= port <= last]


def test_ports_differ_and_a_taken_one_is_not_found(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(set(free_ports(100))) == 100

    port = free_port()
    monkeypatch.setattr(ports, "RANGE", range(port, port + 1))
    with socket.create_server(("127.0.0.1", port)), pytest.raises(OSError, match="no 1 free ports"):
        free_port()
    assert free_port() == port
