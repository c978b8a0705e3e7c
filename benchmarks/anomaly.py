"""The detector on labelled series (NAB, ms_cloud), false alarms and power on generated ones, forecasts, cost."""

import argparse
import csv
import importlib.util
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tailrace_flows.core.anomaly import Detector, DetectorBank
from tailrace_flows.core.forecast import forecast, predict_linear
from tailrace_infra.series_file import read_series

from benchmarks.anomaly_load import Load, generate
from benchmarks.common import say

DATA = Path(os.environ.get("TAILRACE_TEST_DATA") or Path(__file__).parents[2] / "shared" / "data")
PARTS = ("nab", "curve", "ms_cloud", "alarms", "forecast", "season", "cost")
PROFILES = {"standard": "standard", "low_fp": "reward_low_FP_rate", "low_fn": "reward_low_FN_rate"}
NOISES = (
    ("normal", 0.02), ("normal", 0.05), ("normal", 0.1), ("normal", 0.2),
    ("autocorrelated", 0.05), ("log-normal", 0.1), ("log-normal", 0.2), ("Student t, 4 d.f.", 0.05),
)  # fmt: skip
EPISODE_MINUTES = 60
"""Flags less far apart are one episode."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--part", choices=PARTS, action="append", help="only this; may be repeated")
    parser.add_argument("--data", type=Path, default=DATA, help="folder with nab/, ms_cloud/ and their scorers")
    parser.add_argument("--series", type=int, default=1_000, help="generated series (alarms)")


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    parts = options.part or PARTS
    results: list[dict[str, Any]] = []
    if "nab" in parts or "curve" in parts:
        scored = _nab_scores(options.data)
        results += _nab(scored, options.data) if "nab" in parts else []
        results += _curve(scored, options.data) if "curve" in parts else []
    if "ms_cloud" in parts:
        results += _ms_cloud(options.data)
    if "alarms" in parts:
        results += _alarms(options.series // len(NOISES))
    if "forecast" in parts:
        results += _forecasts(options.data)
    if "season" in parts:
        results += _seasonal_forecasts()
    if "cost" in parts:
        results += _cost()
    return results


def judge(path: Path) -> tuple[list[float], list[bool]]:
    """Scores and flags of a file, at the default setting: what `tailrace detect` writes."""
    series = read_series(path, "value")
    detector = Detector()
    verdicts = [detector.update(*point) for point in zip(series.times_us, series.numbers, strict=True)]
    return [verdict.score for verdict in verdicts], [verdict.flag for verdict in verdicts]


# -- labelled series -------------------------------------------------------------------------------------


def _scorer(data: Path, name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, data / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _nab_scores(data: Path) -> dict[str, list[float]]:
    names = json.loads((data / "nab" / "labels.json").read_text())
    say(f"NAB: {len(names)} files")
    return {name: judge(data / "nab" / "data" / name)[0] for name in sorted(names)}


def _labelled(scorer: Any, data: Path) -> dict[str, tuple[list[Any], list[Any]]]:
    """Times and windows of each file."""
    found = {}
    for name, windows in json.loads((data / "nab" / "labels.json").read_text()).items():
        with (data / "nab" / "data" / name).open(newline="") as file:
            times = [scorer.parse_time(row["timestamp"]) for row in csv.DictReader(file)]
        found[name] = times, [tuple(map(scorer.parse_time, window)) for window in windows]
    return found


def _corpus(
    scorer: Any, labelled: dict[str, Any], scored: dict[str, list[float]], wanted: Callable[[str], bool]
) -> Any:
    """The files of the categories wanted, as the scorer takes them."""
    corpus = scorer.Corpus()
    for name, scores in scored.items():
        if wanted(name.split("/")[0]):
            times, windows = labelled[name]
            corpus.add(name, times, scores, windows)
    return corpus


def _nab(scored: dict[str, list[float]], data: Path) -> list[dict[str, Any]]:
    """Each profile at the threshold that is best on all files, and with each category at that of the others."""
    scorer = _scorer(data, "nab_score")
    labelled = _labelled(scorer, data)
    corpus = _corpus(scorer, labelled, scored, lambda _: True)
    categories = sorted({name.split("/")[0] for name in scored})
    pairs = [
        (_corpus(scorer, labelled, scored, one.__ne__), _corpus(scorer, labelled, scored, one.__eq__))
        for one in categories
    ]
    results = []
    for short, profile in PROFILES.items():
        best = corpus.score_at(corpus.optimise(profile)[0], profile)
        cost = scorer.PROFILES[profile][2]
        left_out = sum(
            part.score_at(others.optimise(profile)[0], profile)["raw"] + cost * len(part.wins) for others, part in pairs
        )
        results.append({
            "benchmark": "anomaly", "part": "nab", "profile": short, "score": round(best["normalised"], 1),
            "left_out_score": round(100 * left_out / ((1 + cost) * best["windows"]), 1),
            "threshold": round(best["threshold"], 5), "windows_found": f"{best['windows_detected']}/{best['windows']}",
            "rows_outside": best["fp"],
        })  # fmt: skip
    return results


def _curve(scored: dict[str, list[float]], data: Path) -> list[dict[str, Any]]:
    scorer = _scorer(data, "nab_score")
    labelled = _labelled(scorer, data)
    corpus = _corpus(scorer, labelled, scored, lambda _: True)
    results = []
    for threshold in (0.9905, 0.993, 0.995, 0.996, 0.997, 0.9975, 0.998, 0.9985, 0.999, 0.9995):
        at = {short: corpus.score_at(threshold, profile) for short, profile in PROFILES.items()}
        results.append(
            {"benchmark": "anomaly", "part": "curve", "threshold": threshold}
            | {short: round(found["normalised"], 1) for short, found in at.items()}
            | {"windows_found": at["standard"]["windows_detected"], "rows_outside": at["standard"]["fp"]}
        )
    return results


def _ms_cloud(data: Path) -> list[dict[str, Any]]:
    scorer = _scorer(data, "kpi_score")
    totals = np.zeros(5)
    for path in sorted((data / "ms_cloud").glob("*/*.csv")):
        label = [value >= 0.5 for value in scorer.column(path, ("label",))]
        totals += scorer.adjust(label, judge(path)[1], 7, int(len(label) * 0.15))
    tp, fp, fn, segments, hit = totals
    return [{
        "benchmark": "anomaly", "part": "ms_cloud", "f1": round(2 * tp / (2 * tp + fp + fn), 3),
        "precision": round(tp / (tp + fp), 3), "recall": round(tp / (tp + fn), 3),
        "segments_found": f"{hit:.0f}/{segments:.0f}", "flags_outside": int(fp),
    }]  # fmt: skip


# -- generated series ------------------------------------------------------------------------------------


def _judged(loads: list[Load]) -> tuple[Any, Iterator[tuple[int, Any]]]:
    """Where shifts begin, and the verdicts on each minute, of all series of the loads one after the other."""
    minutes = loads[0].days * 1_440
    values = np.empty((minutes, sum(load.series for load in loads)))
    begins = []
    at = 0
    for load in loads:
        times_us, made, shifts = generate(load)
        values[:, at : at + load.series] = made.T
        at += load.series
        begins.append(shifts)
    bank = DetectorBank(values.shape[1])
    return np.concatenate(begins), ((i, bank.update(int(times_us[i]), values[i])) for i in range(minutes))


def _alarms(each: int) -> list[dict[str, Any]]:
    """Flagged episodes a series and 28 days; the share of shifts flagged within three windows; shares above scores."""
    say(f"{each * len(NOISES)} series without shifts")
    scores = (0.9, 0.985, 0.999)
    _, verdicts = _judged([Load(each, noise=noise, kind=kind) for kind, noise in NOISES])
    episodes = np.zeros(each * len(NOISES))
    last = np.full(episodes.size, -10 * EPISODE_MINUTES)
    above = np.zeros((len(scores), episodes.size))
    for minute, verdict in verdicts:
        episodes += verdict.flag & (minute - last > EPISODE_MINUTES)
        last[verdict.flag] = minute
        above += [verdict.score > score for score in scores]
    say("the same with shifts")
    begins, verdicts = _judged([Load(each, noise=noise, kind=kind, seed=2, shifts=True) for kind, noise in NOISES])
    found = np.zeros(begins.shape, bool)
    for minute, verdict in verdicts:
        found |= verdict.flag[:, None] & (minute >= begins) & (minute < begins + 3)
    results = []
    for number, (kind, noise) in enumerate(NOISES):
        part = slice(number * each, (number + 1) * each)
        results.append({
            "benchmark": "anomaly", "part": "alarms", "noise": kind, "level": noise,
            "episodes_28d": round(float(episodes[part].mean()), 2),
            "series_without": round(float((episodes[part] == 0).mean()), 3),
            "shifts_found": round(float(found[part].mean()), 3),
            **{f"above_{score}": float(above[i, part].mean() / (minute + 1)) for i, score in enumerate(scores)},
        })  # fmt: skip
    return results


# -- forecasts -------------------------------------------------------------------------------------------


def _forecasts(data: Path) -> list[dict[str, Any]]:
    """Errors of forecasts of real growth every 15 days, beside those of least squares."""
    results = []
    for path in sorted((data / "system" / "storage_growth").glob("*.csv")):
        table = np.loadtxt(path, delimiter=",", skiprows=1)
        for days, ahead in ((90, 30), (90, 90), (365, 90)):
            errors, straight, inside = [], [], []
            for end in range(days, len(table) - ahead, 15):
                times, values = table[end - days : end].T
                actual, ahead_s = table[end - 1 + ahead, 1], ahead * 86_400
                found = forecast(times, values, limit=0)
                errors.append(abs(found.at(ahead_s) - actual))
                straight.append(abs(predict_linear(times, values, times[-1], ahead_s) - actual))
                low, high = (found.at(ahead_s, slope) for slope in (found.slope_low, found.slope_high))
                inside.append(low - 1 <= actual <= high + 1)
            results.append({
                "benchmark": "anomaly", "part": "forecast", "series": path.stem, "history_days": days,
                "ahead_days": ahead,
                "mean_error": float(np.mean(errors)), "least_squares_mean_error": float(np.mean(straight)),
                "median_error": float(np.median(errors)), "least_squares_median_error": float(np.median(straight)),
                "inside_interval": round(float(np.mean(inside)), 2),
            })  # fmt: skip
    return results


def _seasonal_forecasts(each: int = 100, ahead: int = 72) -> list[dict[str, Any]]:
    """Errors three days ahead on generated hourly series, with seasons and by a line alone; noise has deviation 1."""
    random = np.random.default_rng(6)
    results = []
    for days in (3, 7, 30):
        count = days * 24
        times = np.arange(count + 20 * ahead) * 3_600.0
        for wave in (0, 1, 2, 5, 20):
            errors: dict[bool, list[tuple[float, float, bool]]] = {True: [], False: []}
            seasons = 0
            for _ in range(each):
                actual = times / 36_000 + wave * np.sin(times / 86_400 * 2 * np.pi + random.uniform(0, 2 * np.pi))
                seen = actual[:count] + random.normal(size=count)
                then = count - 1 + ahead
                limit = float(actual[count : then + 1].max())
                first_s = float(np.argmax(actual[count:] >= limit) + 1) * 3_600
                # What is over the limit now has nothing to reach.
                over = actual[:count].max() >= limit or seen[-5:].max() >= limit
                for seasonal, found_errors in errors.items():
                    found = forecast(times[:count], seen, limit, seasonal=seasonal)
                    low, high = (found.at(ahead * 3_600, slope) for slope in (found.slope_low, found.slope_high))
                    off_h = np.nan if over else abs(found.reached_in_s - first_s) / 3_600
                    found_errors.append(
                        (abs(found.at(ahead * 3_600) - actual[then]), off_h, low <= actual[then] <= high)
                    )
                    seasons += bool(found.season)
            result: dict[str, Any] = {
                "benchmark": "anomaly", "part": "season", "history_days": days, "wave": wave, "seasons": seasons / each,
            }  # fmt: skip
            for seasonal, name in ((True, ""), (False, "line_")):
                error, off_h, inside = np.array(errors[seasonal], "f8").T
                result |= {
                    f"{name}mean_error": round(float(error.mean()), 2),
                    f"{name}median_error_h": round(float(np.nanmedian(off_h)), 1),
                    f"{name}inside_interval": round(float(inside.mean()), 2),
                }
            results.append(result)
    return results


# -- cost --------------------------------------------------------------------------------------------------


def _cost() -> list[dict[str, Any]]:
    """CPU time a point, the best of five runs: other work on the machine only ever adds."""
    times_us, values, _ = generate(Load(series=20, days=2))
    results = []
    points = [(int(at), float(value)) for at, value in zip(times_us, values[0], strict=True)]

    def one_by_one() -> int:
        detector = Detector()
        for at, value in points:
            detector.update(at, value)
        return len(points)

    results.append({"benchmark": "anomaly", "part": "cost", "what": "Detector, one series",
                    "us_per_point": _best(one_by_one), "bytes_per_series": _size(points)})  # fmt: skip
    for series in (1_000, 100_000):
        bank = DetectorBank(series)
        columns = np.random.default_rng(1).lognormal(0, 0.3, (20, series))
        shuffled = np.random.default_rng(2).permutation(series)
        clock = iter(range(START, START * 2, 60_000_000))

        def together(bank: Any = bank, columns: Any = columns, slots: Any = None, clock: Any = clock) -> int:
            for column in columns:
                bank.update(next(clock), column, slots)
            return int(columns.size)

        for what, slots in (("all", None), ("shuffled slots", shuffled)):
            results.append({
                "benchmark": "anomaly", "part": "cost", "what": f"DetectorBank, {series:,} series, {what}",
                "us_per_point": _best(lambda slots=slots, run=together: run(slots=slots)),  # type: ignore[misc]
                "bytes_per_series": bank.nbytes / series,
            })  # fmt: skip
    return results + list(_others(points))


START = 1_700_000_000_000_000


def _best(run: Callable[[], int]) -> float:
    taken = []
    for _ in range(5):
        begin = time.process_time()
        count = run()
        taken.append((time.process_time() - begin) / count * 1e6)
    return min(taken)


def _size(points: list[tuple[int, float]]) -> int:
    """Memory a detector holds, by what 200 of them allocate."""
    import tracemalloc

    tracemalloc.start()
    detectors = [Detector() for _ in range(200)]
    for detector in detectors:
        for point in points[:300]:
            detector.update(*point)
    size = tracemalloc.get_traced_memory()[0] // len(detectors)
    tracemalloc.stop()
    return size


def _others(points: list[tuple[int, float]]) -> Iterator[dict[str, Any]]:
    """river and scikit-learn, where they are installed (`pip install '.[bench]'`)."""
    values = [value for _, value in points]
    try:
        from river import anomaly

        for what, make in (
            ("river GaussianScorer", anomaly.GaussianScorer),
            ("river HalfSpaceTrees", lambda: anomaly.HalfSpaceTrees(seed=1)),
        ):

            def learn(make: Any = make, trees: bool = "Trees" in what) -> int:
                model = make()
                for value in values[:500]:
                    if trees:
                        model.score_one({"x": value})
                        model.learn_one({"x": value})
                    else:
                        model.score_one(None, value)
                        model.learn_one(None, value)
                return 500

            yield {"benchmark": "anomaly", "part": "cost", "what": what, "us_per_point": _best(learn)}
    except ImportError:
        say("river is not installed: left out")
    try:
        from sklearn.ensemble import IsolationForest

        table = np.array(values)[:, None]

        def fit() -> int:
            IsolationForest(random_state=1).fit(table).score_samples(table)
            return len(table)

        yield {"benchmark": "anomaly", "part": "cost", "what": "scikit-learn IsolationForest, fitted once offline",
               "us_per_point": _best(fit)}  # fmt: skip
    except ImportError:
        say("scikit-learn is not installed: left out")
