"""TCP ports for servers of our own on 127.0.0.1 that are told theirs before they start."""

import random
import socket
from contextlib import suppress
from typing import Final

__all__ = ["free_port", "free_ports"]

RANGE: Final = range(15_000, 32_000)
"""Below what Linux (32768), macOS and Windows (49152) give to outgoing connections, and to servers that ask for any
port: in the seconds that a server takes to start, none of those takes it."""


def free_port() -> int:
    """A port on which nothing listens.

    Raises:
        OSError: none was found.
    """
    (port,) = free_ports(1)
    return port


def free_ports(count: int) -> list[int]:
    """Different ones; otherwise like `free_port`."""
    found: list[int] = []
    for port in random.SystemRandom().sample(
        RANGE, min(1000, len(RANGE))
    ):  # seeded generators would find the same in each process
        if len(found) == count:
            break
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            found.append(port)
    if len(found) < count:
        raise OSError(f"no {count} free ports on 127.0.0.1 among {RANGE.start} to {RANGE.stop - 1}")
    return found
