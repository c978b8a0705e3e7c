"""Window settings that cannot work are refused, with what contradicts what."""

from typing import Any

import pytest
from tailrace_flows.core.config import WindowConfig


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"window_seconds": 0}, "window_seconds 0"),
        ({"window_seconds": -10}, "window_seconds -10"),
        ({"rollup_seconds": 65}, "rollup_seconds 65 is no multiple of window_seconds 10"),
        ({"rollup_seconds": 0}, "rollup_seconds 0 is no multiple"),
        ({"rollup_seconds": -60}, "rollup_seconds -60 is no multiple"),
        ({"disorder_s": -1.0}, "disorder_s -1.0"),
        ({"disorder_s": 1e300}, r"disorder_s 1e\+300 is not a time of 0 s to 366 days"),
        ({"lateness_s": float("nan")}, "lateness_s nan"),
        ({"lateness_s": float("inf")}, "lateness_s inf"),
        ({"max_future_s": -0.5}, "max_future_s -0.5"),
        ({"idle_s": 0.0}, "idle_s 0.0"),
        ({"lateness_s": 30.0}, "max_future_s 60.0 exceeds lateness_s 30.0"),
        ({"scale": 9}, "scale 9 is not in 0..8"),
        ({"scale": -1}, "scale -1 is not in 0..8"),
        ({"max_series": 0}, "max_series 0"),
        ({"max_shard_series": 0}, "max_shard_series 0"),
        ({"generation": 46}, "generation 46 is not in 0..45"),
    ],
)
def test_settings_that_contradict_each_other_are_refused_by_name(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WindowConfig(**settings)


def test_a_window_is_retired_with_its_minute() -> None:
    config = WindowConfig(lateness_s=30.0, max_future_s=30.0)
    assert config.retired_after_us(0) == 90_000_000
    assert config.retired_after_us(59_999_999) == 90_000_000
    assert config.retired_after_us(60_000_000) == 150_000_000
