"""Reading configuration: what is wrong is told with file, line, key and what is allowed."""

# ruff: noqa: E501 - tables

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from tailrace_schemas.config import ConfigError, duration_text, load, model_of, parse_duration, record_of
from tailrace_schemas.config import source as source_module
from tailrace_schemas.config.sections import SECTIONS
from tailrace_schemas.config.source import read_documents

SECTION_KEYS = ", ".join(section.key for section in SECTIONS)
RULE = """
groups:
- name: host
  rules:
  - alert: HostHighCpu
    metric: system.cpu.utilization
    aggregate: mean
    op: gt
    threshold: 0.8
"""


def problems(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load([("rules.yaml", text)])
    return [str(one) for one in caught.value.problems]


# -- files ---------------------------------------------------------------------------------------------


def test_files_are_one_configuration(tmp_path: Path) -> None:
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    first.write_text(RULE)
    second.write_text("---\n" + RULE.replace("name: host", "name: more") + "---\n---\n")
    config = load([first, second])
    assert [(item.kind, item.name) for item in config.of("rule_group")] == [
        ("rule_group", "host"),
        ("rule_group", "more"),
    ]
    assert load([]).items == ()


def test_the_same_name_in_two_files_is_refused(tmp_path: Path) -> None:
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    for path in (first, second):
        path.write_text(RULE)
    with pytest.raises(ConfigError) as caught:
        load([first, second])
    assert str(caught.value) == f"{second}:3: groups[0]: 'host' is defined already, at {first}:3"


def test_a_file_that_is_no_text_is_told_by_name(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(b"groups: \xff")
    with pytest.raises(ConfigError, match=r"a\.yaml: this is no UTF-8"):
        load([path])


def test_all_that_is_wrong_is_told_at_once_in_order_of_lines() -> None:
    text = """
groups:
- name: host
  intervall: 10s
  rules:
  - alert: HostHighCpu
    severity: bad
    metric: system.cpu.utilization
    aggregate: meen
    where: {code: 500}
    op: gt
    threshold: "80"
grops: []
"""
    assert problems(text) == [
        "rules.yaml:4: groups[0].intervall: there is no such key; did you mean 'interval'? Allowed: interval, name, rules",
        "rules.yaml:7: groups[0].rules[0].severity: must be one of 'info', 'warning', 'error', 'critical'",
        "rules.yaml:9: groups[0].rules[0].aggregate: 'meen' is no aggregate; there are: count, sum, min, max, mean, "
        "last, increase, rate, p50, p99.9, fraction_above(0.3), fraction_below(0.3), predict_linear(4h)",
        "rules.yaml:10: groups[0].rules[0].where.code: must be text; put it in quotes",
        "rules.yaml:12: groups[0].rules[0].threshold: must be a finite number, without quotes, or auto",
        f"rules.yaml:13: grops: there is no such section. Allowed: {SECTION_KEYS}",
    ]


SHAPES = {
    "groups: 5": "rules.yaml:1: groups: must be a list",
    "- a": "rules.yaml:1: must be a mapping; the keys allowed are ",
    "groups: [5]": "rules.yaml:1: groups[0]: must be a mapping of keys to values",
    "groups:\n- rules: []": "rules.yaml:2: groups[0]: 'name' is missing",
    "groups:\n- name: a\n  rules: []": "rules.yaml:3: groups[0].rules: must have at least 1",
    "groups:\n- name: a\n  rules: x": "rules.yaml:3: groups[0].rules: must be a list",
    "groups:\n- name: a b\n  rules: x": "rules.yaml:2: groups[0].name: must match ^[A-Za-z0-9_][A-Za-z0-9_.:-]{0,99}$",
    "apiVersion: v7\nkind: SLO": "rules.yaml:1: apiVersion: 'v7' is not known; there is: ",
    "apiVersion: []": "rules.yaml:1: apiVersion: [] is not known; there is: ",
    "a: 1\na: 2": "rules.yaml:2: a: is given twice, first in line 1",
    "a: {b: 1,\n b: 2}": "rules.yaml:2: a.b: is given twice, first in line 1",
    "a: [1": "rules.yaml:1: this is no YAML: expected ',' or ']', but got '<stream end>', while parsing a flow sequence",
    "\ta: 1": "rules.yaml:1: this is no YAML: found character '\\t' that cannot start any token, "
    "while scanning for the next token",
    "a: *b": "rules.yaml:1: this is no YAML: found undefined alias 'b'",
    "a: &x [*x]": "rules.yaml:1: a[0]: an alias contains itself",
    "a: !!python/name:os.system x": "rules.yaml:1: a: the tag tag:yaml.org,2002:python/name:os.system is not supported",
    "a: .inf": "rules.yaml:1: a: '.inf' cannot be used as a number: it is not finite",
    "a: .nan": "rules.yaml:1: a: '.nan' cannot be used as a number: it is not finite",
    "? [a]\n: b": "rules.yaml:1: a key must be text",
    "a: &b {c: 1}\nd: {<<: *b}": "rules.yaml:2: d: merge keys (<<) are not supported; repeat what is meant",
    "a: \x01": "rules.yaml:1: this is no YAML: the character U+0001 is not allowed",
    "a: " + "[" * 1000: "rules.yaml: this is nested too deeply",
    'a: 1\nb: "\\U00110000"': "rules.yaml:2: this is no YAML: chr() arg",
    'a: "\\UFFFFFFFF"': "rules.yaml:1: this is no YAML: ",
    "%YAML " + "9" * 5000 + ".1\n---\na: 1": "rules.yaml:1: this is no YAML: ",
    "slos: [{name: a, service: b, indicator: {health: x}, objective: 1e999999999999999999%}]": "rules.yaml:1: slos[0].objective: '1e999999999999999999%' is no share",
}


@pytest.mark.parametrize("text", SHAPES)
def test_what_has_the_wrong_shape_is_refused_with_its_line(text: str) -> None:
    (found, *_) = problems(text)
    assert found.startswith(SHAPES[text])


def test_scalars_are_those_of_yaml_1_2() -> None:
    text = "[yes, no, on, true, False, 0o14, 014, 0x1F, 1_000, 12, -3, 1e3, .5, 2026-01-05, 1:30, ~, null, '5', 5m]"
    (document,) = read_documents("f", text)
    assert document.value == [
        "yes", "no", "on", True, False, 12, 14, 31, "1_000", 12, -3, 1000.0, 0.5, "2026-01-05", "1:30", None, None, "5",
        "5m",
    ]  # fmt: skip


def test_aliases_can_be_used_but_not_to_unfold_without_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    (document,) = read_documents("f", "a: &a [1, 2]\nb: *a")
    assert document.value == {"a": [1, 2], "b": [1, 2]}
    monkeypatch.setattr(source_module, "MAX_VALUES", 1000)
    bomb = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 30))
    with pytest.raises(ConfigError, match="unfolds to more than"):
        read_documents("f", bomb)


@settings(deadline=None)
@given(st.text(max_size=40) | st.text(alphabet="ab:-&*[]{}!<>? \n'\"#|%@,", max_size=30))
def test_any_text_is_documents_or_a_config_error(text: str) -> None:
    with suppress(ConfigError):
        load([("f", text)])


VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**9), 10**9)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text("ab: \n5.", max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", min_size=1, max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(deadline=None)
@given(VALUES)
def test_what_a_yaml_library_writes_is_read_as_the_same(value: Any) -> None:
    text = yaml.safe_dump(value)
    found = [document.value for document in read_documents("f", text)]
    assert found == ([] if value is None else [value])


def test_every_line_is_that_of_its_key() -> None:
    (document,) = read_documents("f", "a:\n  b:\n  - 1\n  - c:\n      d: 2\n")
    for key, line in (
        (("a",), 1),
        (("a", "b"), 2),
        (("a", "b", 0), 3),
        (("a", "b", 1, "c"), 4),
        (("a", "b", 1, "c", "d"), 5),
    ):
        assert document.line(key) == line
    assert document.line(("a", "x", "y")) == 1


@pytest.mark.parametrize(
    ("change", "place", "hint"),
    [
        (
            "treshold: 0.8",
            "groups[0].rules[0].treshold",
            "did you mean 'threshold'? Allowed: aggregate, alert, and, by,",
        ),
        ("fro: 5m", "groups[0].rules[0].fro", "did you mean 'for'? Allowed: aggregate, alert, and, by,"),
        (
            "queries: {a: {metrik: m}}",
            "groups[0].rules[0].queries.a.metrik",
            "did you mean 'metric'? Allowed: aggregate, kind, metric, where, window",
        ),
        ("and: [{valu: a}]", "groups[0].rules[0].and[0].valu", "did you mean 'value'? Allowed: op, threshold, value"),
        ("xyz: 1", "groups[0].rules[0].xyz", "there is no such key. Allowed: aggregate, alert,"),
    ],
)
def test_a_slip_of_the_key_is_told_with_what_is_allowed_there(change: str, place: str, hint: str) -> None:
    (found,) = [one for one in problems(f"{RULE}    {change}\n") if place in one]
    assert found.startswith(f"rules.yaml:10: {place}: there is no such key")
    assert hint in found


# -- records -------------------------------------------------------------------------------------------


def test_a_record_holds_what_was_written_and_becomes_the_same_again() -> None:
    (item,) = load([("f", RULE.replace("threshold: 0.8", "threshold: 0.8\n    for: 300s"))]).items
    record = record_of(item)
    assert record.key == "rule_group/host"
    assert record.value == {
        "name": "host",
        "rules": [
            {
                "alert": "HostHighCpu", "metric": "system.cpu.utilization", "aggregate": "mean", "op": "gt",
                "threshold": 0.8, "for": "5m",
            }
        ],
    }  # fmt: skip
    assert model_of(record.key, record.value) == item.model


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("rulegroup/a", "{}", "rulegroup/a: there is no kind 'rulegroup'; there is: "),
        ("rule_group/a", "{", "rule_group/a: : Invalid JSON"),
        ("rule_group/a", {"name": "a"}, "rule_group/a: rules: Field required"),
        (
            "rule_group/a",
            '{"rules": [{"threshold": ' + "9" * 400 + "}]}",
            "threshold.float: Input should be a valid number",
        ),
        ("rule_group/a", record_of(load([("f", RULE)]).items[0]).value, "rule_group/a: the value is named 'host'"),
    ],
)
def test_a_record_that_cannot_be_used_is_a_value_error(key: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model_of(key, value)


# -- durations -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0s", 0),
        ("30s", 30),
        ("5m", 300),
        ("1h30m", 5400),
        ("250ms", 0.25),
        ("7d", 604800),
        ("2w", 1209600),
        ("1.5h", 5400),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "5", "m", "5 m", "-5m", "5y", "5m3", "1h-30m", "٣m"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no duration; write"):
        parse_duration(text)


@settings(deadline=None)
@given(st.integers(0, 10**9))
def test_a_duration_s_text_says_the_same(milliseconds: int) -> None:
    assert parse_duration(duration_text(milliseconds / 1000)) == pytest.approx(milliseconds / 1000)
