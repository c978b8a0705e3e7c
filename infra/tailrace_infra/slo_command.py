"""`tailrace slo`: objectives as they stand."""

from pathlib import Path
from typing import Annotated, Final

import typer

from tailrace_infra.alerts_command import ask
from tailrace_infra.output import Format, write_rows

__all__ = ["register"]

slo_app = typer.Typer(help="Objectives: burn rates, and what is left of error budgets.", no_args_is_help=True)

DataDir = Annotated[
    Path | None, typer.Option("--data-dir", help="Directory of an embedded stack.", file_okay=False, show_default=False)
]
FormatOption = Annotated[Format, typer.Option("--format", "-f", help="How rows are printed.")]

_LIST: Final = """
SELECT slo, service, objective, budget_remaining, burn_rate_1h, burn_rate_6h, total AS events, exhausted_at, frozen,
       window_end AS as_of
FROM slo_status WHERE window_end > now() - 86400
ORDER BY slo, window_end DESC LIMIT 1 BY slo
"""
_SHOW: Final = """
SELECT * FROM slo_status WHERE slo = {name:String} ORDER BY window_end DESC LIMIT {limit:UInt32}
"""


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    app.add_typer(slo_app, name="slo")


@slo_app.command("list")
def list_objectives(data_dir: DataDir = None, format: FormatOption = Format.TABLE) -> None:
    """Show each objective as of its last evaluation.

    Examples:

        tailrace slo list
    """
    write_rows(*ask(data_dir, _LIST, {}), format)


@slo_app.command("show")
def show(
    name: Annotated[str, typer.Argument(help="The objective.")],
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="So many of its last evaluations.")] = 10,
    data_dir: DataDir = None,
    format: FormatOption = Format.TABLE,
) -> None:
    """Show the last evaluations of one objective, with all of its burn rates.

    Examples:

        tailrace slo show http-latency --format json
    """
    from tailrace_infra.cli import fail

    columns, rows = ask(data_dir, _SHOW, {"name": name, "limit": limit})
    if not rows:
        fail(f"no objective {name!r} has been evaluated; `tailrace slo list` shows those that were")
    write_rows(columns, rows, format)
