"""Linux's list of TCP sockets by state, over netlink: it leaves out what is not asked for before it is copied.

Source: man 7 sock_diag; include/uapi/linux/inet_diag.h, netlink.h; net/ipv4/inet_diag.c.
"""

import os
import socket
import struct
from collections import Counter
from collections.abc import Iterable
from typing import Final

__all__ = [
    "CLOSE", "ESTABLISHED", "FIN_WAIT_2", "SYN_RECEIVED", "TIME_WAIT", "count_sockets", "parse_sockets",
]  # fmt: skip

ESTABLISHED: Final = 1
SYN_RECEIVED: Final = 3
FIN_WAIT_2: Final = 5
TIME_WAIT: Final = 6
CLOSE: Final = 7

_NETLINK_SOCK_DIAG: Final = 4
_SOCK_DIAG_BY_FAMILY: Final = 20
_REQUEST_DUMP: Final = 0x301
"""NLM_F_REQUEST | NLM_F_ROOT | NLM_F_MATCH"""
_ERROR: Final = 2
_DONE: Final = 3
_HEADER: Final = struct.Struct("=IHHII")
_REQUEST: Final = struct.Struct("=BBBxI48x")
"""inet_diag_req_v2: family, protocol, extensions, states; no address."""
_SOCKET: Final = struct.Struct("=IHHIIBBB")
"""nlmsghdr; of inet_diag_msg the family, the state, the timer."""
_TIMER_WAITING: Final = 3
"""Its timer is that of a socket that has ended and is kept for TIME_WAIT's sake, in whatever state it is told."""
_TIMEOUT_S: Final = 1.0
_RECEIVE_BYTES: Final = 1 << 16


def count_sockets(states: Iterable[int]) -> Counter[tuple[int, bool]]:
    """TCP sockets of both versions of IP in these states, by (state, whether it only waits to be forgotten).

    Raises:
        OSError: the kernel, or the sandbox around this process, does not offer it.
    """
    wanted = sum(1 << state for state in states)
    found: Counter[tuple[int, bool]] = Counter()
    with socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG) as netlink:
        netlink.settimeout(_TIMEOUT_S)
        for family in (socket.AF_INET, socket.AF_INET6):
            request = _REQUEST.pack(family, socket.IPPROTO_TCP, 0, wanted)
            size = _HEADER.size + len(request)
            netlink.send(_HEADER.pack(size, _SOCK_DIAG_BY_FAMILY, _REQUEST_DUMP, 0, 0) + request)
            while not parse_sockets(netlink.recv(_RECEIVE_BYTES), found):
                pass
    return found


def parse_sockets(data: bytes, found: Counter[tuple[int, bool]]) -> bool:
    """Counts the sockets of one netlink datagram. Whether it was the last one.

    Raises:
        OSError: the datagram says so, or is not one.
    """
    offset = 0
    while offset + _HEADER.size <= len(data):
        size, kind, _, _, _ = _HEADER.unpack_from(data, offset)
        if kind == _DONE:
            return True
        if kind == _ERROR:
            (code,) = struct.unpack_from("=i", data, offset + _HEADER.size)
            raise OSError(-code, os.strerror(-code))
        if size < _SOCKET.size or offset + size > len(data):
            break
        *_, state, timer = _SOCKET.unpack_from(data, offset)
        found[state, timer == _TIMER_WAITING] += 1
        offset += (size + 3) & ~3
    if offset != len(data) or not data:
        raise OSError("the kernel's list of sockets is cut short")
    return False
