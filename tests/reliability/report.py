"""The report: kept results of all attacks on one Markdown and one HTML page."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from benchmarks.common import environment
from tests.reliability.attack import Attack, Figure, Plot, Result

__all__ = ["RESULTS", "form", "keep", "shown", "write"]

RESULTS = Path(__file__).parent / "results.json"
"""The last result of each attack that was run with `--report`, with the machine it ran on."""
WIDTH, HEIGHT = 640, 200
MOST_SEEDS = 8
MOST_POINTS = 300
"""Of a plot: the page is 640 pixels wide, and the file is kept."""


def keep(attack: Attack, size: int, result: Result, took_s: float, took_cpu_s: float) -> None:
    """Replaces the attack's kept result, of a run of that size."""
    kept = _kept()
    kept[attack.name] = asdict(result) | {
        "figures": dict(result.figures),  # asdict would count the items of a Counter
        "passed": result.passed, "size": size, "took_s": round(took_s), "cpu_s": round(took_cpu_s),
    }  # fmt: skip
    for plot in kept[attack.name]["plots"]:
        step = -(-len(plot["x"]) // MOST_POINTS)
        plot |= {"x": plot["x"][::step], "y": plot["y"][::step]}
    kept[attack.name]["where"] = environment()
    RESULTS.write_text(json.dumps(dict(sorted(kept.items())), indent=1) + "\n")


def write(path: Path, attacks: dict[str, Attack]) -> None:
    """Writes PATH.md and PATH.html of the kept results of the attacks that (still) exist."""
    kept = _kept()
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=select_autoescape(["html.j2"], default=False),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    templates.filters |= {"shown": shown, "cell": _cell, "seeds": _seeds, "line": _line, "ticks": _ticks}
    wheres = [entry["where"] for name, entry in kept.items() if name in attacks]
    for ending in ("md", "html"):
        page = templates.get_template(f"report.{ending}.j2").render(
            attacks=list(attacks.values()), kept=kept, wheres=wheres, form=form, width=WIDTH, height=HEIGHT
        )
        path.with_suffix(f".{ending}").write_text(page)


def shown(value: Figure) -> str:
    """A figure for a person."""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else value


def _kept() -> dict[str, Any]:
    return dict(json.loads(RESULTS.read_text())) if RESULTS.exists() else {}


def form(attack: Attack, entry: dict[str, Any]) -> str:
    """Whether what is kept was the attack's long form, its short one, or how much of the long one."""
    size = entry.get("size", entry["runs"])  # results of before have no size, and ran about so many
    return "long" if size >= attack.long else "short" if size == attack.short else f"{size:,} of {attack.long:,}"


def _cell(text: str) -> str:
    """Text in a cell of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|")


def _seeds(seeds: list[int]) -> str:
    if len(seeds) > MOST_SEEDS:
        return f"{len(seeds):,}, from {min(seeds)} to {max(seeds)}"
    return ", ".join(map(str, seeds))


def _line(plot: dict[str, Any]) -> str:
    """The points of an SVG polyline."""
    at = Plot(**plot)
    left, right, low, high = min(at.x), max(at.x), min(0.0, *at.y), max(at.y)
    return " ".join(
        f"{(x - left) / ((right - left) or 1) * WIDTH:.1f},{HEIGHT - (y - low) / ((high - low) or 1) * HEIGHT:.1f}"
        for x, y in zip(at.x, at.y, strict=True)
    )


def _ticks(values: list[float]) -> str:
    return f"{shown(float(min(values)))} to {shown(float(max(values)))}"
