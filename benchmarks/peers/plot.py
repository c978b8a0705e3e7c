"""The results as bars on a logarithmic axis."""

from pathlib import Path
from typing import Any

from benchmarks.common import say

LIMITS = ("memory", "consume", "consume_decode")


def draw(results: list[dict[str, Any]], path: Path) -> None:
    """Samples/s by system, one panel for each number of series. Without matplotlib it says so and draws nothing."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        say("no plot: matplotlib is not installed: pip install -e '.[dev,peers]'")
        return
    counts = sorted({result["series"] for result in results})
    figure = Figure(figsize=(6 * len(counts), 4.5), layout="constrained")
    for axes, series in zip(figure.subplots(1, len(counts), squeeze=False)[0], counts, strict=True):
        shown = [one for one in results if one["series"] == series and "samples_per_second" in one][::-1]
        colors = [
            "tab:gray" if one["system"] in LIMITS else "tab:blue" if one["system"] == "tailrace" else "tab:orange"
            for one in shown
        ]
        bars = axes.barh([one["system"] for one in shown], [one["samples_per_second"] for one in shown], color=colors)
        axes.bar_label(bars, [_label(one) for one in shown], padding=3, fontsize=8)
        axes.set(xscale="log", xlabel="samples/s on one core", title=f"{series:,} series")
        axes.margins(x=0.35)
        axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    say(f"plotted to {path}")


def _label(result: dict[str, Any]) -> str:
    rate = result["samples_per_second"]
    text = f"{rate / 1e6:.3g} M" if rate >= 1e5 else f"{rate / 1e3:.3g} k"
    error = result.get("error_max_percent")
    return text if error is None else f"{text}, error <= {error:.2g} %"
