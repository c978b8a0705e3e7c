"""Real data and reference results, kept outside the repository; tests skip, saying so, where they are absent."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

__all__ = ["DATA", "data_file", "reference"]

DATA = Path(os.environ.get("TAILRACE_TEST_DATA") or Path(__file__).parents[2] / "shared" / "data")


def data_file(name: str) -> Path:
    """A file or folder of the test data, for use inside a test; skips the test where it is absent."""
    path = DATA / name
    if not path.exists():
        pytest.skip(f"no {path}; TAILRACE_TEST_DATA names the folder of test data")
    return path


def reference(name: str) -> list[Any]:
    """The cases of `reference/NAME.json` as parameters of a test, by id; one skipped case where the file is absent.

    @pytest.mark.parametrize("case", reference("iostat"))
    """
    path = DATA / "reference" / f"{name}.json"
    if not path.exists():
        why = f"no {path}; TAILRACE_TEST_DATA names the folder of test data"
        return [pytest.param({}, id=name, marks=pytest.mark.skip(reason=why))]
    cases = json.loads(path.read_text())["cases"]
    return [pytest.param(case, id=str(case.get("id", number))) for number, case in enumerate(cases)]
