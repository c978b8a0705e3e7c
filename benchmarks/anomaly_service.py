"""Several signals of a service: detectors of all of them together, and the probability of an incident, on real faults.

    python -m benchmarks.anomaly_service together     # nezha and PetShop: which statistic tells faults from normal time
    python -m benchmarks.anomaly_service alarms       # false alarms of several signals, generated
    python -m benchmarks.anomaly_service incident     # Brier score of predicting an incident against the base rate

nezha: minutes of one day, with 24 faults injected in its first four hours. The fault-free hours are put first, so that
detectors have something to learn from. PetShop: rows of 5 minutes, two days without incidents, then those of the same
load, one row before each.
"""

import csv
import gzip
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from tailrace_flows.core.anomaly import Detector, DetectorBank, Joint
from tailrace_flows.core.anomaly.config import BAND

from benchmarks import petshop
from benchmarks.anomaly import DATA
from benchmarks.anomaly_load import Load, generate
from benchmarks.common import say

WARM = 300
POD_COLUMNS = (
    "PodServerLatencyP95(s)", "PodWorkload(Ops)", "CpuUsageRate(%)", "MemoryUsageRate(%)", "PodSuccessRate(%)",
)  # fmt: skip
FRONT_COLUMNS = ("LatencyP95(s)", "SuccessRate(%)")
EVENT_ROWS = 5
SIGNALS = "abcdefgh"


class Observed(NamedTuple):
    """Signals of one service."""

    corpus: str
    name: str
    times_s: Any
    values: Any
    """Points by signals."""
    event: Any
    """Number of the fault under way, from 1; 0: none."""
    unclear: Any
    """Of other services' faults: neither normal nor a fault here."""


def nezha() -> Iterator[Observed]:
    faults = json.loads((DATA / "latency/nezha_traces/2022-08-22_faults.json").read_text())
    begins = np.array([int(fault["inject_timestamp"]) for fault in faults])
    for path in sorted((DATA / "latency/nezha_metrics").glob("*.gz")):
        with gzip.open(path, "rt") as file:
            rows = list(csv.DictReader(file))
        front = "front_service" in path.name
        name = "front" if front else path.name.removeprefix("2022-08-22_").split("-")[0]
        times = np.array([int(row["TimeStamp"]) for row in rows])
        columns = FRONT_COLUMNS if front else POD_COLUMNS
        values = np.array([[float(row[column] or 0) for column in columns] for row in rows])
        mine = [at for at, fault in zip(begins, faults, strict=True) if front or fault["inject_pod"].startswith(name)]
        event = np.zeros(times.size, int)
        for number, at in enumerate(mine, 1):
            event[(times > at) & (times <= at + 60 * EVENT_ROWS)] = number
        near = ((times[:, None] > begins) & (times[:, None] <= begins + 600)).any(axis=1)
        first = int(np.searchsorted(times, begins[-1] + 1_200))
        order = np.r_[first : times.size, 0:first]
        shifted = np.r_[times[first:], times[:first] + 86_400]
        yield Observed("nezha", name, shifted, values[order], event[order], (near & (event == 0))[order])


def shop(group: str = "high_traffic") -> Observed:
    rows: list[tuple[int, list[float], int]] = []
    number = 0
    scenarios = [one for one in petshop.read(DATA / "latency/petshop") if one.group == group]
    for one in sorted(scenarios, key=lambda one: (bool(one.target), min(one.rows))):
        number += bool(one.target)
        for start, by_service in sorted(one.rows.items()):
            front = by_service.get(petshop.FRONT, {})
            if petshop.REQUESTS in front:
                under_way = one.target and start + petshop.PERIOD_S > one.onset_s
                values = [front.get(petshop.P95, 0.0), 1 - front.get(petshop.AVAILABILITY, 100) / 100]
                rows.append((start, [*values, front[petshop.REQUESTS]], number if under_way else 0))
    times, values, event = (np.array(column) for column in zip(*rows, strict=True))
    return Observed("PetShop", petshop.FRONT, times, values, event, np.zeros(times.size, bool))


# -- together ------------------------------------------------------------------------------------------------


def judged(one: Observed) -> tuple[Any, Any]:
    """Of each point and signal: how far off it is in usual errors, and its score."""
    off, scores = np.zeros(one.values.shape), np.zeros(one.values.shape)
    for signal in range(one.values.shape[1]):
        detector = Detector()
        points = zip(one.times_s.tolist(), one.values[:, signal].tolist(), strict=True)
        for number, (time_s, value) in enumerate(points):
            verdict = detector.update(int(time_s) * 1_000_000, value)
            usual = (verdict.high - verdict.expected) / BAND
            off[number, signal] = (value - verdict.expected) / usual if usual > 0 else 0.0
            scores[number, signal] = verdict.score
    return off, scores


def statistics(one: Observed) -> dict[str, Any]:
    """What each way to judge all signals says of each point."""
    off, scores = judged(one)
    rarity = -np.log(np.maximum(1e-6, 1 - scores))
    joint = Joint()
    evidence = [joint.update(dict(zip(SIGNALS, row, strict=False))).evidence for row in scores.tolist()]
    logs = np.sign(one.values) * np.log1p(np.abs(one.values) * 100)
    found = {
        "evidence (shipped)": np.array(evidence),
        "Fisher's sum of surprises": rarity.sum(axis=1),
        "the most surprised signal": rarity.max(axis=1),
        "sum of squared deviations": (np.clip(off, -30, 30) ** 2).sum(axis=1),
        "Mahalanobis of deviations, learned correlation": mahalanobis(np.clip(off, -8, 8)),
    }
    found |= forests(logs, int(np.flatnonzero((one.event > 0) | one.unclear)[0]))
    return found


def mahalanobis(values: Any) -> Any:
    """From an exponentially weighted covariance of the points before."""
    signals = values.shape[1]
    covariance = np.eye(signals)
    found = np.zeros(len(values))
    for number, value in enumerate(values):
        found[number] = value @ np.linalg.solve(covariance + 0.05 * np.eye(signals), value)
        covariance += max(0.002, 1 / (number + 2)) * (np.outer(value, value) - covariance)
    return found


def forests(values: Any, normal: int) -> dict[str, Any]:
    """river's and scikit-learn's; the offline one is fitted to the first `normal` points, which have no faults."""
    from river import anomaly, preprocessing
    from sklearn.ensemble import IsolationForest

    trees = preprocessing.MinMaxScaler() | anomaly.HalfSpaceTrees(seed=1, n_trees=25, height=8, window_size=100)
    online = []
    for value in values.tolist():
        signals = dict(enumerate(value))
        online.append(trees.score_one(signals))
        trees.learn_one(signals)
    refitted = np.zeros(len(values))
    for begin in range(WARM, len(values), 50):
        forest = IsolationForest(random_state=1).fit(values[max(0, begin - 1_000) : begin])
        refitted[begin : begin + 50] = -forest.score_samples(values[begin : begin + 50])
    offline = IsolationForest(random_state=1, n_estimators=200).fit(values[:normal])
    return {
        "HalfSpaceTrees (river)": np.array(online),
        "IsolationForest, refitted every 50 points": refitted,
        "IsolationForest, fitted offline": -offline.score_samples(values),
    }


def area(statistic: Any, one: Observed) -> float:
    """The chance that a fault's highest value exceeds that of as many normal points; ties count half (ROC area)."""
    use = (np.arange(statistic.size) >= WARM) & ~one.unclear
    normal = statistic[use & (one.event == 0)]
    normal = normal[: normal.size // EVENT_ROWS * EVENT_ROWS].reshape(-1, EVENT_ROWS).max(axis=1)
    faults = np.array([statistic[one.event == number].max() for number in range(1, one.event.max() + 1)])
    above = (faults[:, None] > normal).mean() + 0.5 * (faults[:, None] == normal).mean()
    return float(above)


def together() -> None:
    observed = [*nezha(), shop()]
    table: dict[str, list[float]] = {}
    for one in observed:
        say(f"{one.corpus} {one.name}: {one.event.max()} faults")
        for name, statistic in statistics(one).items():
            table.setdefault(name, []).append(area(statistic, one))
    print("| statistic | " + " | ".join(f"{one.name} ({one.event.max()})" for one in observed) + " |")
    print("|---" * (len(observed) + 1) + "|")
    for name, areas in table.items():
        print(f"| {name} | " + " | ".join(f"{one:.2f}" for one in areas) + " |")


def alarms(services: int = 12, days: int = 28) -> None:
    """Flagged episodes a service of four independent signals without anything to find."""
    for kind, noise in (("normal", 0.05), ("autocorrelated", 0.05), ("log-normal", 0.2), ("Student t, 4 d.f.", 0.05)):
        times_us, values, _ = generate(Load(series=4 * services, days=days, noise=noise, kind=kind, seed=7))
        bank, joints = DetectorBank(4 * services), [Joint() for _ in range(services)]
        flags = np.zeros(services)
        for number, column in enumerate(values.T):
            scores = bank.update(int(times_us[number]), column).score.reshape(services, 4).tolist()
            flags += [
                joint.update(dict(zip(SIGNALS, one, strict=False))).flag
                for joint, one in zip(joints, scores, strict=True)
            ]
        print(f"| {kind} | {noise:.0%} | {flags.mean():.2f} |", flush=True)


# -- incident ------------------------------------------------------------------------------------------------


def features(one: Observed) -> Any:
    """What is known at each point: the scores now and lately, all of them together, and the trend."""
    off, scores = judged(one)
    rarity = -np.log(np.maximum(1e-6, 1 - scores))
    columns = [rarity.max(axis=1), rarity.sum(axis=1), np.clip(off[:, 0], -8, 8), np.clip(off[:, 1], -8, 8)]
    lately = [np.convolve(column, np.ones(5) / 5)[: len(column)] for column in columns[:2]]
    return np.column_stack([*columns, *lately])


def incident() -> None:
    """Rows before a fault's onset are what an incident within the next minutes looks like; rows in one are left out.

    In nezha's hours of faults each row is minutes after a fault, so telling these hours from the others would be taken
    for a prediction: the second line is of these hours alone. In PetShop the rows before incidents are of another month
    than the normal ones.
    """
    front = next(each for each in nezha() if each.name == "front")
    for one, ahead, within in ((front, 5, False), (front, 2, True), (shop(), 1, False)):
        begins = np.array([int(np.flatnonzero(one.event == number)[0]) for number in range(1, one.event.max() + 1)])
        rows = np.arange(one.event.size)
        coming = ((rows[:, None] < begins) & (rows[:, None] >= begins - ahead)).any(axis=1)
        use = (rows >= WARM) & (one.event == 0) & (within | ~one.unclear | coming)
        use &= (rows > begins[0] - 30) | (not within)
        known = features(one)
        folds = np.array([int(np.abs(begins - row).argmin()) for row in rows])
        folds[rows < begins[0] - 100] = rows[rows < begins[0] - 100] // 50 % begins.size
        predicted = np.full(rows.size, np.nan)
        base = np.full(rows.size, np.nan)
        for fold in range(begins.size):
            fit, held = use & (folds != fold), use & (folds == fold)
            base[held] = coming[fit].mean()
            predicted[held] = logistic(known[fit], coming[fit])(known[held])
        brier, of_base = (float(((p[use] - coming[use]) ** 2).mean()) for p in (predicted, base))
        where = f"{one.corpus}{', hours of faults' if within else ''}, {ahead} rows ahead"
        print(
            f"{where}: {begins.size} incidents, {use.sum()} rows, {coming[use].sum()} before one; Brier {brier:.4f}, "
            f"base rate {of_base:.4f}, skill {1 - brier / of_base:+.3f}"
        )
        for low, high in ((0, 0.05), (0.05, 0.1), (0.1, 0.2), (0.2, 0.4), (0.4, 1.01)):
            inside = use & (predicted >= low) & (predicted < high)
            if inside.any():
                print(
                    f"| {low:g} to {min(high, 1):g} | {inside.sum()} | {predicted[inside].mean():.3f} "
                    f"| {coming[inside].mean():.3f} |"
                )


def logistic(values: Any, labels: Any) -> Callable[[Any], Any]:
    """A logistic regression with a penalty of 1, by Newton's method."""
    mean, spread = values.mean(axis=0), values.std(axis=0) + 1e-9

    def design(rows: Any) -> Any:
        return np.column_stack([np.ones(len(rows)), (rows - mean) / spread])

    x = design(values)
    weights = np.zeros(x.shape[1])
    penalty = np.diag([0.0] + [1.0] * (x.shape[1] - 1))
    for _ in range(30):
        p = 1 / (1 + np.exp(-x @ weights))
        slope = x.T @ (labels - p) - penalty @ weights
        curve = (x * (p * (1 - p))[:, None]).T @ x + penalty + 1e-9 * np.eye(len(weights))
        weights = weights + np.linalg.solve(curve, slope)
    return lambda rows: 1 / (1 + np.exp(-design(rows) @ weights))


if __name__ == "__main__":
    {"together": together, "alarms": alarms, "incident": incident}[sys.argv[1]]()
