"""Starting and stopping child processes: what goes wrong is said, and nothing is left behind."""

import os
from pathlib import Path

import pytest
from tailrace_infra.child import Child, ChildError, start_child

from tests.infra.waiting import gone

READY = 'print(\'{"ready": true, "answer": 42}\', flush=True)\n'


def start(tmp_path: Path, code: str, timeout_s: float = 20.0) -> Child:
    """Run `code` as a child; its pid is left in the file `pid`."""
    (tmp_path / "someone.py").write_text(
        f"import os, pathlib, signal, sys\npathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(os.getpid()))\n{code}"
    )
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    return start_child("someone", timeout_s=timeout_s, log=tmp_path / "log", environment={"PYTHONPATH": path})


def test_the_ready_line_is_returned(tmp_path: Path) -> None:
    child = start(tmp_path, READY + "signal.pause()")
    assert child.ready == {"ready": True, "answer": 42}
    assert child.stop() == -15
    assert child.stop() == -15  # again: harmless


def test_a_child_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    child = start(tmp_path, "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + READY + "while True: signal.pause()")
    assert child.stop(0.1) == -9


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("sys.exit('no disk')", r"ended before it was ready \(exit code 1\)\nno disk"),
        ("print('hello', flush=True); signal.pause()", r"said b'hello\\n' where its ready line was expected"),
        ("print('[1]', flush=True); signal.pause()", "where its ready line was expected"),
        ("signal.pause()", r"not ready within 5 s \(exit code -15\)"),
        ("os.close(1); signal.pause()", r"ended before it was ready \(exit code -15\)"),
    ],
)
def test_a_child_that_is_not_ready_is_an_error_and_ends(tmp_path: Path, code: str, message: str) -> None:
    with pytest.raises(ChildError, match=message):
        start(tmp_path, code, timeout_s=5.0 if "not ready within" in message else 60.0)
    assert gone(int((tmp_path / "pid").read_text()))


def test_a_module_that_does_not_exist() -> None:
    with pytest.raises(ChildError, match=r"no\.such\.module: ended before it was ready \(exit code 1\)$"):
        start_child("no.such.module")
