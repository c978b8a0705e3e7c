"""`tailrace exec`: runs a command, measured.

Until the command has ended only what is needed to run it is loaded: it starts at once, no library has threads that
would take its signals, and its peak memory, of which the kernel counts what the forking process held, is its own.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NoReturn

from tailrace_producers.command import CommandRun, run_command

__all__ = ["HELP", "main"]

HELP: Final = "Run a command as it is, and record its duration, exit code, CPU time, peak memory and block I/O."
DELIVERY_TIMEOUT_S: Final = 3.0
NOT_FOUND: Final = 127
NOT_EXECUTABLE: Final = 126
"""As shells and env(1) have it."""

_EPILOG: Final = """\
Its exit code becomes ours (128 + N where signal N ended it), its standard streams are untouched, and signals are passed
on. Its arguments are not recorded. What hinders recording, such as a broker that is away, is told on stderr when the
command has ended, and changes nothing else.

examples:
  tailrace exec -- make test
  tailrace exec --name nightly-backup -- ./backup.sh --full
"""


def main(arguments: Sequence[str]) -> NoReturn:
    """Runs the command of these arguments and exits with its code; 2: the arguments are wrong."""
    parser = argparse.ArgumentParser(
        "tailrace exec",
        usage="tailrace exec [--name NAME] [--service SERVICE] [--data-dir DIR] [--] CMD [ARG]...",
        description=HELP,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--name", help="what it is recorded as; default: its file's name")
    parser.add_argument("--service", default="commands", help="service.name of what is recorded (default: commands)")
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help="directory of an embedded stack")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="CMD [ARG]...", help="the command")
    options = parser.parse_args(arguments)
    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not command:
        parser.error("no command is given")
    try:
        run = run_command(command, options.name)
    except OSError as error:
        _complain(f"{command[0]}: {error.strerror}")
        sys.exit(NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_EXECUTABLE)
    try:
        _record(run, options.service, options.data_dir)
    except KeyboardInterrupt:
        _complain("the run was not recorded: interrupted")
    except Exception as error:  # noqa: BLE001 - whatever becomes of its figures, the command has run
        _complain(f"the run was not recorded: {error}")
    sys.exit(run.exit_code)


def _record(run: CommandRun, service: str, data_dir: Path | None) -> None:
    """Sends a run. Raises what hinders it."""
    import logging
    import platform

    import typer
    from tailrace_producers.command import record_command
    from tailrace_producers.telemetry import Telemetry

    from tailrace_infra.cli import resolved_settings

    try:
        kafka = resolved_settings(data_dir).kafka
    except typer.Exit:  # it has said what is wrong
        return
    logging.getLogger("tailrace.producer").disabled = True  # told below, in a sentence
    properties: dict[str, Any] = {key: value for key, value in kafka.client().items() if key != "bootstrap.servers"}
    telemetry = Telemetry(
        service,
        {"host.name": platform.node()},
        bootstrap_servers=kafka.bootstrap_servers,
        properties=properties,
        topics=kafka.topics,
    )
    record_command(telemetry, run)
    telemetry.close(DELIVERY_TIMEOUT_S)
    if telemetry.stats.dropped:
        _complain(f"the run was not recorded: {kafka.bootstrap_servers} did not confirm it in {DELIVERY_TIMEOUT_S:g} s")


def _complain(message: str) -> None:
    sys.stderr.write(f"tailrace: {message}\n")
