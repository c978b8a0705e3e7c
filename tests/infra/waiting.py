"""Polling with a deadline, instead of sleeping and hoping."""

import logging
import threading
from collections.abc import Callable
from types import ModuleType
from typing import TypeVar

import psutil
import pytest
from tailrace_schemas.clock import monotonic_s

T = TypeVar("T")


def eventually(attempt: Callable[[], T], timeout_s: float = 60.0) -> T:
    """The first true answer; an assertion error when there is none in time.

    It asks every 10 ms at first and every 100 ms in the end: most questions are queries, which would take the CPU from
    what they wait for.
    """
    began_s = monotonic_s()
    pause = threading.Event()
    while not (answer := attempt()):
        waited_s = monotonic_s() - began_s
        assert waited_s < timeout_s, f"not within {timeout_s:g} s"
        pause.wait(min(0.01 + waited_s / 20, 0.1))
    return answer


def gone(pid: int) -> bool:
    """Whether a process has ended; one that its parent has not reaped has."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def logged(monkeypatch: pytest.MonkeyPatch, module: ModuleType) -> list[str]:
    """What the module logs from now on, whatever another test has done to logging."""
    said: list[str] = []
    logger, handler = logging.Logger(module.__name__), logging.Handler()
    monkeypatch.setattr(handler, "emit", lambda record: said.append(record.getMessage()))
    logger.addHandler(handler)
    monkeypatch.setattr(module, "log", logger)
    return said
