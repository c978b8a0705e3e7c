"""What is installed where: the wheel, the base install that services embed, and who may import whom."""

import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from email.parser import Parser
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = sorted(path.parent for path in ROOT.glob("*/tailrace_*/py.typed"))
HEAVY = (
    "bytewax", "chdb", "clickhouse_connect", "numpy", "orjson", "pandas", "pyarrow", "pydantic", "pydantic_settings",
    "rich", "structlog", "typer", "yaml",
)  # fmt: skip
"""What the base install leaves out: 30 to 260 MB each, or seconds."""
IMPORT_CPU_S_MAX = 0.150
"""Of the fastest of ten, in CPU time: a machine busy with other work takes longer by the clock, and says nothing."""
OFFLINE = re.compile(
    r"No matching distribution found for|Temporary failure in name resolution|Connection(Error| refused)"
)

IMPORT = f"""
import json, sys, time
start = time.process_time()
import tailrace_producers
cpu_s = time.process_time() - start
print(json.dumps({{"cpu_s": cpu_s, "loaded": sorted(set(sys.modules) & {set(HEAVY) | {"confluent_kafka"}!r})}}))
"""


def pip(python: str, *arguments: str) -> None:
    """Runs pip; skips, saying why, where it is missing or cannot reach its index. On CI that is a failure."""
    if find_spec("pip") is None:
        pytest.skip("there is no pip beside this Python")
    command = [python, "-m", "pip", "--disable-pip-version-check", "--retries", "1", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode and OFFLINE.search(done.stderr) and os.environ.get("CI") != "true":
        pytest.skip(f"pip {arguments[0]} needs its package index, which cannot be reached here")
    assert done.returncode == 0, done.stderr


def run(python: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs an interpreter that does not see this checkout, nor coverage's tracing."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH" and not key.startswith("COV")}
    return subprocess.run([python, *arguments], capture_output=True, text=True, env=environment, cwd="/")


def imports(python: str, options: Sequence[str] = ()) -> list[dict[str, Any]]:
    """What `import tailrace_producers` took and loaded, ten times."""
    results = []
    for _ in range(10):
        done = run(python, *options, "-c", IMPORT)
        assert done.returncode == 0, done.stderr
        results.append(json.loads(done.stdout))
    return results


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, as a release would be built."""
    directory = tmp_path_factory.mktemp("wheel")
    pip(sys.executable, "wheel", "--quiet", "--no-deps", "--wheel-dir", str(directory), str(ROOT))
    (built,) = directory.iterdir()
    return built


@pytest.fixture(scope="session")
def base_python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A Python with the base install alone, as in a service."""
    directory = tmp_path_factory.mktemp("base")
    subprocess.run([sys.executable, "-m", "venv", str(directory)], check=True)
    python = str(directory / "bin" / "python")
    pip(python, "install", "--quiet", str(wheel))
    return python


# -- the wheel -----------------------------------------------------------------------------------------


def test_there_are_six_packages() -> None:
    assert [path.relative_to(ROOT).as_posix() for path in PACKAGES] == [
        "flows/tailrace_flows",
        "infra/tailrace_infra",
        "producers/tailrace_producers",
        "schemas/tailrace_schemas",
        "sinks/tailrace_sinks",
        "subscribers/tailrace_subscribers",
    ]


def test_wheel_has_our_packages_and_nothing_else(wheel: Path) -> None:
    """A plain `schemas` or `producers` beside others in site-packages would overwrite theirs, or be overwritten."""
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not re.fullmatch(r"tailrace-.*\.dist-info", top)} == {one.name for one in PACKAGES}


def test_wheel_has_every_file_of_the_packages(wheel: Path) -> None:
    """The schemas, examples, migrations and type markers too."""
    in_wheel = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    in_source = {
        path.relative_to(package.parent).as_posix()
        for package in PACKAGES
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert in_wheel == in_source
    for pattern in (
        r"tailrace_schemas/avro/\w+\.avsc",
        r"tailrace_schemas/examples/\w+\.json",
        r"tailrace_sinks/migrations/.*\.sql",
        r"tailrace_infra/kafka_files/pom\.xml",
    ):
        assert any(re.fullmatch(pattern, name) for name in in_wheel), pattern


def test_wheel_names_what_a_service_needs(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as content:
        (metadata_name,) = [name for name in content.namelist() if name.endswith(".dist-info/METADATA")]
        metadata = Parser().parsestr(content.read(metadata_name).decode())
        entry_points = content.read(metadata_name.replace("METADATA", "entry_points.txt")).decode()
        assert content.read(metadata_name.replace("METADATA", "licenses/LICENSE"))
    base = [one for one in metadata.get_all("Requires-Dist", []) if "extra ==" not in one]
    assert sorted(re.split(r"[<>=]", one)[0] for one in base) == ["confluent-kafka", "fastavro", "psutil"]
    assert set(metadata.get_all("Provides-Extra", [])) == {
        "bench", "dev", "embedded", "flows", "fuzz", "notify", "peers",
    }  # fmt: skip
    assert metadata["License-Expression"] == "Apache-2.0"
    assert re.search(r"^tailrace = tailrace_infra\.", entry_points, re.MULTILINE)


# -- what a service embeds -----------------------------------------------------------------------------


def test_base_install_imports_quickly(base_python: str) -> None:
    results = imports(base_python, ["-I"])
    assert all(one["loaded"] == [] for one in results)
    assert min(one["cpu_s"] for one in results) < IMPORT_CPU_S_MAX


def test_base_install_records_without_the_extras(base_python: str) -> None:
    """Everything that a service calls is there, down to the encoded message."""
    code = """
from tailrace_producers.packing import Packer
from tailrace_schemas.samples import Series, decode, encode_sample
print(decode(encode_sample("s", Series("m", "gauge"), 0, 1.0)).samples, Packer.__name__)
"""
    done = run(base_python, "-I", "-c", code)
    assert (done.stdout, done.stderr) == ("1 Packer\n", "")


def test_base_install_says_what_the_command_needs(base_python: str) -> None:
    done = run(base_python, str(Path(base_python).with_name("tailrace")), "--help")
    assert done.returncode == 1
    assert "pip install 'tailrace[embedded]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_producers_load_nothing_heavy_where_it_is_installed() -> None:
    """Beside all extras too: here they could be loaded, and are not."""
    assert find_spec("numpy") is not None
    paths = json.dumps([str(package.parent) for package in PACKAGES])
    code = f"import sys; sys.path[:0] = {paths}\n{IMPORT}"
    done = run(sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["loaded"] == []


# -- what the README promises --------------------------------------------------------------------------


def test_readme_names_the_commands_that_are_tested() -> None:
    readme = (ROOT / "README.md").read_text()
    assert "python3 -m venv .venv && .venv/bin/pip install -q -e '.[dev]' && .venv/bin/pytest\n" in readme
    assert re.search(r"^.*pip install .*\[embedded\].* && .*tailrace up\b", readme, re.MULTILINE)


# -- who may import whom -------------------------------------------------------------------------------


def test_imports_keep_to_the_contracts() -> None:
    # A process of its own: it disables every logger that there is.
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache", "--no-logo"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
