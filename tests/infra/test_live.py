"""The live view fits its terminal, cuts off no number, and shows what is wrong first."""

import pytest
from rich.console import Console
from tailrace_infra.live import human_rate, human_value, line, screen
from tailrace_infra.overview import Active, Anomaly, Gauge, Lag, Objective, Overview, Top

GAUGES = [
    Gauge("system.cpu.utilization", {}, 0.85),
    *(Gauge("system.cpu.utilization", {"cpu.logical_number": str(number)}, 0.5) for number in range(32)),
    Gauge("system.filesystem.utilization", {"system.filesystem.mountpoint": "/[data]"}, 0.75),
    Gauge("system.memory.utilization", {}, 0.3),
]
TOP = [
    Top("host", "system.process.cpu.utilization", "1", {}, 43.7, 0.0, 0.0199, 0.922),
    *[
        Top(
            "checkout-service-of-the-shop", "http.server.request.duration", "s",
            {"http.route": "/api/[v1]/orders", "host.name": "a"}, 1_234_567, 0.0123, 0.0456, 1.5,
        )
    ] * 7,
]  # fmt: skip
OVERVIEW = Overview(GAUGES, TOP, {"samples": 5_000, "late_samples": 3, "dead_letters.x": 2}, "t", 5, Lag(17, 40))


def drawn(overview: Overview, width: int, height: int, *, styled: bool = False) -> str:
    console = Console(width=width, height=height, force_terminal=True, color_system="standard" if styled else None)
    with console.capture() as captured:
        console.print(screen(overview, 12.3, "http://127.0.0.1:1", height))
    return captured.get()


@pytest.mark.parametrize(("width", "height"), [(80, 24), (100, 30), (120, 40), (200, 60)])
def test_it_fits_the_terminal_and_shows_every_number(width: int, height: int) -> None:
    lines = drawn(OVERVIEW, width, height).splitlines()
    assert len(lines) < height
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    for shown in ("5,000 samples", "lag 17 records", "3 late", "2 dead letters", "85%", "75%", "30%", "/[data]"):
        assert shown in text
    for shown in ("1.2 M/s", "12.3 ms", "45.6 ms", "1.5 s", "0.922"):
        assert shown in text


@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 40), (200, 60)])
def test_alerts_objectives_and_health_fit_too_the_gravest_first(width: int, height: int) -> None:
    alerts = [
        Active("critical", "active", "HostSilent", "web-1 has sent [nothing] for a minute", 75),
        *[Active("warning", "acknowledged", "HostHighCpu", "CPUs of web-2 are busy " * 9, 7_300)] * 20,
    ]
    objectives = [Objective(f"slo-{number}", 0.99, left, 2.5) for number, left in enumerate((0.04, 0.4, 1.0) * 3)]
    health = {"web": "unhealthy", "db": "healthy", **{f"service-{number}": "healthy" for number in range(30)}}
    anomalies = [Anomaly("http-p99", "shop", "p99 of [latency] over 1m is 3, above the expected 1 " * 4, 130)] * 20
    overview = Overview(GAUGES, TOP, {"samples": 5}, "t", 5, Lag(17, 40), alerts, objectives, health, anomalies)
    lines = drawn(overview, width, height).splitlines()
    assert len(lines) < height
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    for shown in (
        "critical HostSilent",
        "1 min",
        "[nothing]",
        "2 h",
        "slo-0",
        "4.0%",
        "burning at 2.5",
        "web unhealthy",
    ):
        assert shown in text
    assert "alert=HostSilent(critical)" in line(overview, 1.0)
    assert ("shop http-p99 2 min p99 of [latency]" in text) == (height > 24)
    assert "anomaly=http-p99(shop)" in line(overview, 1.0)


def test_control_characters_of_names_and_attributes_reach_no_terminal() -> None:
    evil = "evil\x1b]0;owned\x07\x9b2J\u202e\nline"
    overview = Overview(
        [Gauge("system.filesystem.utilization", {"system.filesystem.mountpoint": evil}, 0.5)],
        [Top(evil, evil, "1", {evil: evil}, 1.0, 0.0, 0.0, 0.0)], {}, "t", 5, None,
        [Active("error", "active", "Busy", evil, 5)], [Objective("slo", 0.9, 0.5, 1.0)], {evil: "unhealthy"},
        [Anomaly("det", evil, evil, 5)],
    )  # fmt: skip
    shown = drawn(overview, 900, 60)
    assert not set(shown) & set("\x1b\x07\x9b\u202e")
    assert shown.count("evil\\x1b]0;owned\\x07\\x9b2J\\u202e\\nline") == 9
    logged = line(overview, 1.0)
    assert not set(logged) & set("\x1b\x07\x9b\u202e\n")
    assert "busiest=evil" in logged


def test_text_in_brackets_is_shown_and_a_column_of_nothing_is_not() -> None:
    assert "/api/[v1]/orders" in drawn(OVERVIEW, 200, 60)
    assert "attributes" in drawn(OVERVIEW, 120, 40)
    assert "attributes" not in drawn(Overview(GAUGES, TOP[:1], {}, "t", 5), 80, 24)


def test_a_narrow_terminal_shortens_the_bars_not_the_numbers() -> None:
    gauge = Gauge("system.filesystem.utilization", {"system.filesystem.mountpoint": "/"}, 0.37)
    shown = drawn(
        Overview(
            gauges=[gauge], objectives=[Objective("host-collection", 0.99, 0.8125, 0.0)], newest_window_end=1,
        ), 40, 40,
    )  # fmt: skip
    assert "filesystem /" in shown
    assert " 37%" in shown
    assert " 81.2%" in shown


def test_gauges_are_green_yellow_and_red_by_their_limits() -> None:
    def colours(metric: str, value: float) -> str:
        return drawn(Overview([Gauge(metric, {}, value)], TOP, {}, "t", 5), 80, 24, styled=True)

    assert "\x1b[32m" in colours("system.cpu.utilization", 0.63)
    assert "\x1b[33m" in colours("system.cpu.utilization", 0.65)
    assert "\x1b[31m" in colours("system.cpu.utilization", 0.81)
    assert "\x1b[31m" not in colours("system.filesystem.utilization", 0.89)
    assert "\x1b[31m" in colours("system.filesystem.utilization", 0.9)


def test_before_the_first_window_it_says_how_long_that_takes() -> None:
    assert "12 s" in drawn(Overview(counters={"samples": 3}), 80, 24)


def test_the_line_names_the_worst_of_each_gauge_and_what_is_wrong() -> None:
    found = line(OVERVIEW, 1_500.0)
    assert found.startswith("samples=5000 rate=1.5 k/s lag_records=17 late=3 dead_letters=2 ")
    assert "system.cpu.utilization=0.85 " in found
    assert line(Overview(), 0.0) == "samples=0 rate=0.0 /s"


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.0123, "s", "12.3 ms"), (2e-6, "s", "2 µs"), (5e-9, "s", "5 ns"), (90.0, "s", "90 s"), (0.0, "s", "0 ns"),
        (512, "By", "512 B"), (3 << 20, "By", "3 MiB"), (5 << 30, "By", "5 GiB"), (2048, "By", "2 KiB"),
        (0.5, "1", "0.5"), (3.0, "", "3"), (7.0, "{request}", "7 {request}"),
    ],
)  # fmt: skip
def test_values_are_scaled_to_their_unit(value: float, unit: str, text: str) -> None:
    assert human_value(value, unit) == text


def test_rates() -> None:
    assert [human_rate(rate) for rate in (0.5, 1_234, 5.6e6)] == ["0.5 /s", "1.2 k/s", "5.6 M/s"]
