"""What Tailrace keeps on disk is its user's alone, and what listens does so on loopback, whatever the umask says."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from tailrace_flows.private_files import ExposedError, check_owned, open_private, private_directory, write_private
from tailrace_flows.recovery import prepare_recovery

from tests.infra.command import tailrace, up


@pytest.fixture(params=[0o000, 0o077], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def exposed(directory: Path) -> list[str]:
    """What under a directory, itself included, others could read or write."""
    found = [one for one in (directory, *directory.rglob("*")) if one.exists()]
    return [f"{one.relative_to(directory)} {mode(one):04o}" for one in found if mode(one) & 0o077]


def test_what_is_made_is_private(umask: int, tmp_path: Path) -> None:
    made = private_directory(tmp_path / "a" / "b" / "c")
    with open_private(made / "log", "ab") as file:
        file.write(b"x")
    write_private(made / "file", "é")
    write_private(made / "file", "new")
    assert (made / "file").read_text() == "new"
    assert sorted(one.name for one in made.iterdir()) == ["file", "log"]
    assert not exposed(tmp_path / "a")
    prepare_recovery(private_directory(made / "state"))


def test_what_exists_stays_as_it_is(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    assert private_directory(tmp_path) == tmp_path
    assert mode(tmp_path) == 0o755
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError):
        private_directory(tmp_path / "file")


def test_state_that_others_can_write_is_refused(tmp_path: Path) -> None:
    for one in (0o770, 0o707, 0o777, 0o1777):
        tmp_path.chmod(one)
        with pytest.raises(ExposedError, match=rf"others can write into {tmp_path} \(mode {one:04o}\).*chmod go-w"):
            check_owned(tmp_path)
    tmp_path.chmod(0o755)
    check_owned(tmp_path)
    if os.geteuid() == 0:
        os.chown(tmp_path, 12345, -1)
        with pytest.raises(ExposedError, match="belongs to user 12345"):
            check_owned(tmp_path)


def test_a_flow_does_not_run_on_such_state(embedded_broker: str, tmp_path: Path) -> None:
    (tmp_path / "windows").mkdir()
    (tmp_path / "windows").chmod(0o777)
    environment = {
        "TAILRACE_KAFKA__BOOTSTRAP_SERVERS": embedded_broker,
        "TAILRACE_RECOVERY__DIRECTORY": str(tmp_path),
    }
    assert tailrace("topics", environment=environment).returncode == 0
    done = tailrace("run", "windows", environment=environment)
    assert done.returncode == 1
    assert f"others can write into {tmp_path}/windows (mode 0777)" in done.stderr
    assert not list(tmp_path.rglob("*.sqlite3"))


def test_a_stack_keeps_its_files_and_its_sockets_to_itself(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with up(tmp_path / "data") as running:
            running.endpoints()
            parts = running.all_parts()
            listening = {
                (name, one.laddr.ip)
                for name, process in parts.items()
                for one in process.net_connections("all")
                if one.laddr and one.status in (psutil.CONN_LISTEN, psutil.CONN_NONE) and not isinstance(one.laddr, str)
            }
            assert {name for name, _ in listening} == {"broker", "clickhouse"}
            assert {ip for _, ip in listening} == {"127.0.0.1"}
            applied = tailrace("apply", "--data-dir", str(running.data_dir), str(_rules(tmp_path)))
            assert applied.returncode == 0, applied.stderr
            assert not exposed(running.data_dir)
        asked = tailrace("sql", "--data-dir", str(tmp_path / "data"), "SELECT count() FROM windows")
        assert asked.returncode == 0, asked.stderr
        assert not exposed(tmp_path / "data")
        assert (tmp_path / "data" / "config.json").exists()
    finally:
        os.umask(before)


def _rules(directory: Path) -> Path:
    path = directory / "config.yaml"
    path.write_text("receivers: [{name: a, webhook: {url: 'http://127.0.0.1:9/'}}]\n")
    return path
