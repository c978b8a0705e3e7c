"""Coverage-guided input for everything that decodes: what reaches new code is kept, and damaged further.

It attacks the targets of `inputs`, by atheris (libFuzzer): `pip install 'tailrace[fuzz]'`. What it ever found is in
`found_inputs.txt`, which the tests try with each change.

`python -m tests.reliability.fuzz TARGET DIRECTORY [libFuzzer's options]` is one target's process.
"""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.reliability.attack import Figure, Result, Run, attack

DONE = re.compile(r"Done (\d+) runs in (\d+) second")
COVERED = re.compile(r"\bcov: (\d+) ft: (\d+) corp: (\d+)/")
RSS_MB = 2048
INPUT_S = 20
"""Longer than that for one input is a find, and so is more memory."""


@attack(
    name="fuzz",
    promise="Bad input never stops the good: no bytes crash a decoder, make it hang or take memory without bound",
    what="Coverage-guided fuzzing of every decoder: messages of all topics, configuration, CSV, Parquet, access logs, "
    "bodies and statements over HTTP",
    unit="CPU seconds",
    short=60,
    long=3600,
)
def fuzz(run: Run) -> Result:
    """As many seconds for each target."""
    if importlib.util.find_spec("atheris") is None:
        return Result(skipped="atheris is not installed: pip install 'tailrace[fuzz]'")
    from tests.reliability.inputs import TARGETS

    figures: dict[str, Figure] = {}
    result = Result(seeds=[run.seed], figures=figures)
    each_s = max(2, run.size // len(TARGETS))
    for number, (name, target) in enumerate(TARGETS.items()):
        directory = run.directory / str(number)
        corpus = directory / "corpus"
        corpus.mkdir(parents=True)
        for place, good in enumerate(target.good):
            (corpus / str(place)).write_bytes(good)
        options = [
            f"-seed={run.seed}", f"-max_total_time={each_s}", f"-timeout={INPUT_S}", f"-rss_limit_mb={RSS_MB}",
            f"-artifact_prefix={directory}/", "-max_len=4096", "-print_final_stats=0",
        ]  # fmt: skip
        command = [sys.executable, "-m", "tests.reliability.fuzz", name, str(corpus), *options]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10 * each_s + 300)
        for bad in directory.glob("[a-z]*-*"):
            text = f"{name}: {bad.name.split('-')[0]}: {bad.read_bytes().hex()}\n{done.stderr[-6000:]}"
            result.failures.append(run.failure(text))
        if done.returncode and not result.failures:
            result.failures.append(run.failure(f"{name}: exit code {done.returncode}\n{done.stderr[-6000:]}"))
        runs, covered = DONE.findall(done.stderr), COVERED.findall(done.stderr)
        if runs and covered:
            figures[name] = f"{int(runs[-1][0]):,} inputs, {covered[-1][0]} edges, {covered[-1][2]} kept"
            run.say(f"  {name}: {figures[name]}")
        result.runs += each_s
    return result


def main(argv: list[str]) -> None:
    """One target, until libFuzzer has had enough."""
    import atheris

    name, corpus, *options = argv
    ours = [f"tailrace_{part}" for part in ("schemas", "flows", "producers", "infra")]
    with atheris.instrument_imports(include=ours):
        from tests.reliability.inputs import TARGETS
        from tests.schemas.test_total import check
    target = TARGETS[name]
    with TemporaryDirectory() as directory:
        place = Path(directory)

        def one(data: bytes) -> None:
            if name == "samples":  # shards would take nearly all of the time
                check(data)
            else:
                target.take([target.good[0], data, target.good[0]], place)

        atheris.Setup([sys.argv[0], *options, corpus], one)
        atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1:])
