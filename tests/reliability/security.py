"""Rights taken away, wrong passwords, and a search for every secret: the tests of security, as an attack."""

import subprocess
import sys
import xml.etree.ElementTree as Xml
from pathlib import Path

from tests.reliability.attack import Result, Run, attack

ROOT = Path(__file__).parents[2]
TESTS = ("tests/system/test_security.py", "tests/infra/test_private_files.py", "tests/infra/test_readonly.py")
TIMEOUT_S = 1800


@attack(
    name="security",
    promise="Secrets stay secret, and rights that are taken away lose nothing",
    what="TLS, passwords and ACLs on a real Kafka and on ClickHouse's engine behind TLS; files; statements that write",
    unit="runs of the tests",
    short=1,
    long=3,
)
def security(run: Run) -> Result:
    """Runs the tests as a person would; nothing in them is random."""
    result = Result(seeds=[run.seed])
    for number in range(run.size):
        told = run.directory / f"{number}.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junit-xml={told}"]
        done = subprocess.run(
            [*command, f"--basetemp={run.directory}/{number}", *TESTS],
            cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
        )  # fmt: skip
        result.runs += 1
        cases = list(Xml.parse(told).iter("testcase"))
        why = [one.get("message", "") for case in cases if (one := case.find("skipped")) is not None]
        result.figures = {"tests": len(cases), "skipped": len(why)}
        if why:  # what was not tried did not hold
            result.skipped = f"{len(why)} of {len(cases)} tests: {'; '.join(sorted(set(why)))}"
        if done.returncode:
            result.failures.append(run.failure(done.stdout[-4000:]))
    return result
