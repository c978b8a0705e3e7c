"""Every Python example of docs/producers.md runs as it is written, but for the address of the broker."""

import re
from pathlib import Path

import pytest

from tests.producers.reading import read_topic

DOCUMENT = Path(__file__).parents[2] / "docs" / "producers.md"
TEXT = DOCUMENT.read_text()
EXAMPLES = [
    pytest.param(match[1], id=f"line {TEXT.count(chr(10), 0, match.start()) + 1}")
    for match in re.finditer(r"```python\n(.*?)```", TEXT, re.DOTALL)
]


@pytest.mark.parametrize("example", EXAMPLES)
def test_the_examples_run_and_send(example: str, embedded_broker: str) -> None:
    code = compile(example.replace("localhost:9092", embedded_broker), str(DOCUMENT), "exec")
    namespace = {"__name__": "example"}
    exec(code, namespace)
    tests = [one for name, one in namespace.items() if name.startswith("test_") and callable(one)]
    for test in tests:  # an example of a host's own tests needs no broker
        test()
    assert tests or read_topic(embedded_broker)
