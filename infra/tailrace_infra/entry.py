"""The `tailrace` command's first step: says what to install where only the base package is."""

import sys

__all__ = ["main"]


def main() -> None:
    """Runs the command."""
    if sys.argv[1:2] == ["exec"]:
        from tailrace_infra.exec_command import main as run_and_exit

        run_and_exit(sys.argv[2:])
    try:
        from tailrace_infra.cli import run_app
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("tailrace"):
            raise
        sys.stderr.write(
            f"tailrace: the command needs the package {error.name}, which the base install leaves out: "
            "pip install 'tailrace[embedded]' (or [flows], without ClickHouse)\n"
        )
        sys.exit(1)
    except KeyboardInterrupt:  # while modules are loaded; afterwards the command itself deals with it
        sys.exit(130)
    run_app()
