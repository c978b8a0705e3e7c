"""Alert rules as users write them: what is refused, and what a rule means."""

# ruff: noqa: E501 - tables

from math import inf
from operator import eq, ge, gt, le, lt, ne
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tailrace_schemas.alerts import Operator
from tailrace_schemas.config import ConfigError, load
from tailrace_schemas.config import rules as rules_module
from tailrace_schemas.config.aggregate import Aggregate, How
from tailrace_schemas.config.expression import Expression
from tailrace_schemas.config.matcher import matchers_of
from tailrace_schemas.config.rules import Rule, RuleGroup


def rule_of(text: str) -> Rule:
    """One rule, given as the flow mapping of its keys."""
    (item,) = load([("f", f"groups: [{{name: g, rules: [{{alert: R, {text}}}]}}]")]).items
    assert isinstance(item.model, RuleGroup)
    return item.model.rules[0]


SIMPLE = "metric: m, aggregate: mean"
REFUSED = {
    "op: gt, threshold: 1": "needs a `metric`, or `queries` and a `value`",
    "metric: m, op: gt, threshold: 1": ".metric: needs an `aggregate`; there are: count, sum,",
    f"{SIMPLE}, op: gt": ".op: `op: gt` needs a `threshold`",
    f"{SIMPLE}, op: above, threshold: 1": ".op",
    f"{SIMPLE}, op: gt, threshold: .inf": ".threshold: '.inf' cannot be used as a number",
    f"{SIMPLE}, op: gt, threshold: 1, clear_threshold: 1": ".clear_threshold: must be below `threshold`, which is 1",
    f"{SIMPLE}, op: gte, threshold: 1, clear_threshold: 2": ".clear_threshold: must be below `threshold`",
    f"{SIMPLE}, op: lt, threshold: 1, clear_threshold: 0.5": ".clear_threshold: must be above `threshold`",
    f"{SIMPLE}, op: eq, threshold: 1, clear_threshold: 0.5": ".clear_threshold: has no meaning with `op: eq`",
    f"{SIMPLE}, op: gt, threshold: 1, window: 15s": ".window: 15s is no multiple of 10s",
    f"{SIMPLE}, op: gt, threshold: 1, window: 0s": ".window: 0s is no multiple of 10s",
    f"{SIMPLE}, op: gt, threshold: 1, window: 2d": ".window: a rule looks back 1d at most; an SLO looks back further",
    f"{SIMPLE}, op: gt, threshold: 1, window: 60": ".window: a duration has a unit; write \"30s\",",
    f"{SIMPLE}, op: gt, threshold: 1, window: 1 minute": ".window: '1 minute' is no duration",
    f"{SIMPLE}, op: gt, threshold: 1, for: -5m": ".for: '-5m' is no duration",
    f"{SIMPLE}, op: gt, threshold: 1, for: 0.4ms": ".for: '0.4ms' is no whole number of milliseconds",
    f"{SIMPLE}, op: gt, threshold: 1, for: {'9' * 400}s": ".for: Input should be a finite number",
    f"{SIMPLE}, op: gt, threshold: 1, for: 400d": ".for: Input should be less than or equal to 31622400",
    f"{SIMPLE}, op: gt, threshold: 1, by: [a, a]": ".by: names a label twice",
    f"{SIMPLE}, op: gt, threshold: 1, where: {{a: '=~['}}": ".where.a: '[' is no regular expression",
    f"{SIMPLE}, op: gt, threshold: 1, value: m": ".value: is for `queries`",
    f"{SIMPLE}, op: gt, threshold: 1, no_data: resolve": ".no_data: must be one of 'keep', 'ok', 'alert'",
    f"{SIMPLE}, op: gt, threshold: 1, kind: counter": ".aggregate: a counter has no mean; it is for distribution, gauge",
    "metric: m, aggregate: p99, kind: counter, op: gt, threshold: 1": ".aggregate: a counter has no p99",
    "metric: m, aggregate: p101, op: gt, threshold: 1": ".aggregate: 'p101' is no aggregate",
    "metric: m, aggregate: p, op: gt, threshold: 1": ".aggregate: 'p' is no aggregate",
    "metric: m, aggregate: fraction_above(), op: gt, threshold: 1": ".aggregate: 'fraction_above()' is no aggregate",
    "metric: m, aggregate: predict_linear(4), op: gt, threshold: 1": ".aggregate: '4' is no duration",
    "metric: m, aggregate: predict_linear(4h), op: lt, threshold: 0": ".window: predict_linear needs two points",
    "metric: system.cpu.utilization, aggregate: mean, op: gt, threshold: 80": ".threshold: never fires: the value lies in 0..1",
    "metric: system.memory.utilization, aggregate: max, op: lte, threshold: 1": ".threshold: always fires",
    "metric: m, aggregate: fraction_above(3), op: gt, threshold: 1": ".threshold: never fires: the value lies in 0..1",
    "metric: m, aggregate: count, op: lt, threshold: 0": ".threshold: never fires: the value lies in 0..inf",
    "metric: m, aggregate: rate, op: gte, threshold: 0": ".threshold: always fires: the value lies in 0..inf",
    "value: '0', op: gt, threshold: 0": ".value: never fires: 0 is not above 0",
    "value: 1 / 0, op: gt, threshold: 0": ".value: divides by zero",
    "metric: m, op: absent, threshold: 1": ".threshold: has no meaning with `op: absent`",
    "metric: m, op: absent, no_data: ok": ".no_data: has no meaning with `op: absent`",
    "metric: m, op: absent, and: []": ".and: has no meaning with `op: absent`",
    "metric: m, op: absent, aggregate: mean": ".aggregate: has no meaning with `op: absent`",
    "op: absent": ".op: `op: absent` needs a `metric`",
    f"{SIMPLE}, op: gt, threshold: 1, description: '{{host}}'": ".description: there is no {host}; there is: value",
    SIMPLE + ", op: gt, threshold: 1, description: '{value:%'": ".description: ",
    SIMPLE + ", op: gt, threshold: 1, description: '{value:zz}'": ".description: ",
    SIMPLE + ", op: gt, threshold: 1, description: '{value:1000000000}'": ".description: {value:1000000000} is wider than 1000 characters",
    SIMPLE + ", op: gt, threshold: 1, tags: [" + ", ".join(["x"] * 101) + "]": ".tags: Tuple should have at most 100 items",
    SIMPLE + ", op: gt, threshold: 1, description: '{value:.1001f}'": ".description: {value:.1001f} is wider than 1000 characters",
    SIMPLE + ", op: gt, threshold: 1, description: '{value!r}'": ".description: !r has no meaning",
    SIMPLE + ", op: gt, threshold: 1, and: [{value: value + 1/(2-2), op: gt, threshold: 1}]": ".and[0].value: divides by zero",
    SIMPLE + ", op: gt, threshold: 1, and: [{value: value + " + "9" * 400 + ", op: gt, threshold: 1}]": ".and[0].value: has a number that is too",
    SIMPLE + ", op: gt, threshold: 1, where: {a: '=~a{1001}'}": ".where.a: 'a{1001}' is no regular expression",
    SIMPLE + ", op: gt, threshold: 1, where: {a: '!~(?!b).*'}": "(?!b).*' is no regular expression of RE2",
    SIMPLE + ", op: gt, threshold: 1, where: {a: '=~" + "(" * 5000 + "'}": " is no regular expression",
    SIMPLE + ", op: gt, threshold: " + "9" * 400: ".threshold: '999",
    SIMPLE + ", op: gt, threshold: 0x" + "9" * 5000: ".threshold: '0x999",
}  # fmt: skip


@pytest.mark.parametrize("text", REFUSED)
def test_what_is_wrong_or_cannot_fire_is_refused_at_its_key(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        rule_of(text)
    assert any(REFUSED[text] in str(one) for one in caught.value.problems), str(caught.value)


QUERIES = "queries: {a: {metric: m, aggregate: increase}, b: {metric: n, aggregate: increase}}"
REFUSED_QUERIES = {
    f"{QUERIES}, value: a / c, op: gt, threshold: 1": ".value: there is no query 'c'; there is: a, b",
    f"{QUERIES}, value: a, op: gt, threshold: 1": ".queries.b: is used neither by `value` nor by `and`",
    f"{QUERIES}, value: a +, op: gt, threshold: 1": ".value: 'a +' is no expression: invalid syntax",
    f"{QUERIES}, value: a ** b, op: gt, threshold: 1": ".value: 'a ** b': an expression has + - * /",
    f"{QUERIES}, value: a / b, op: gt, threshold: 1, and: [{{value: d, op: gt, threshold: 1}}]": ".and[0].value: there is no",
    f"{QUERIES}, value: a / b, metric: m, op: gt, threshold: 1": ".queries: give one `metric`, or several `queries`",
    f"{QUERIES}, value: a / b, aggregate: mean, op: gt, threshold: 1": ".aggregate: belongs to a `metric`",
    f"{QUERIES}, value: a / b, kind: gauge, op: gt, threshold: 1": ".kind: belongs to a `metric`",
    f"{QUERIES}, op: gt, threshold: 1": "needs a `metric`, or `queries` and a `value`",
    "queries: {a: {metric: m, aggregate: increase, where: {x: '1'}}}, where: {x: '2'}, value: a, op: gt, threshold: 1":
        ".queries.a.where.x: contradicts the rule's own `where`",
    "queries: {a-b: {metric: m, aggregate: increase}}, value: a, op: gt, threshold: 1": ".queries.a-b",
    "queries: {a: {metric: m, aggregate: p50, kind: gauge}}, value: a, op: gt, threshold: 1": ".queries.a.aggregate: a gauge",
}  # fmt: skip


@pytest.mark.parametrize("text", REFUSED_QUERIES)
def test_queries_that_contradict_each_other_are_refused(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        rule_of(text)
    assert any(REFUSED_QUERIES[text] in str(one) for one in caught.value.problems), str(caught.value)


def test_two_rules_of_a_group_with_one_name_are_refused() -> None:
    rule = "{alert: R, metric: m, op: absent}"
    with pytest.raises(
        ConfigError, match=r"f:3: groups\[0\]\.rules\[1\]\.alert: another rule of the group is named 'R'"
    ):
        load([("f", f"groups:\n- {{name: g, rules: [{rule},\n {rule}]}}")])


MEANINGS = {
    "metric: cpu, aggregate: mean, window: 1m, where: {service: host, state: '!=idle'}, by: [service, host.name], op: gt, "
    "threshold: 0.8, clear_threshold: 0.7, for: 5m, no_data: ok":
        "R (warning) fires when the mean of cpu over 1m where service is host and state is not idle, for each service and "
        "host.name, is above 0.8 for 5m; it ends when the value is not above 0.7; without data it ends.",
    "metric: lat, aggregate: p99.9, op: gte, threshold: 2, keep_firing_for: 90s, severity: critical":
        "R (critical) fires when the p99.9 of lat over 10s is at least 2; it stays for 1m30s after its condition ended; "
        "without data it stays as it is.",
    "queries: {bad: {metric: req, aggregate: rate, where: {code: '=~5..'}}, all: {metric: req, aggregate: rate, window: 5m}},"
    "value: bad / all, window: 1m, op: gt, threshold: 0.05, and: [{value: all, op: gt, threshold: 1}], no_data: alert":
        "R (warning) fires when bad / all (bad is the rate of req per second over 1m where code matches 5..; all is the "
        "rate of req per second over 5m) is above 0.05 and all is above 1; it fires without data too.",
    "metric: up, op: absent, window: 1m, where: {service: web}": "R (warning) fires when up where service is web has no "
        "data over 1m.",
    "metric: free, aggregate: predict_linear(4d), window: 6h, op: lt, threshold: 0":
        "R (warning) fires when what free will be in 4d, by its trend over 6h is below 0; without data it stays as it is.",
    "metric: lat, aggregate: fraction_above(0.3), window: 5m, op: gt, threshold: 0.1":
        "R (warning) fires when the share of lat above 0.3 over 5m is above 0.1; without data it stays as it is.",
    "value: '1', op: gt, threshold: 0": "R (warning) fires when 1 is above 0.",
}  # fmt: skip


@pytest.mark.parametrize("text", MEANINGS)
def test_a_rule_says_what_it_means(text: str) -> None:
    assert rule_of(text).sentence() == MEANINGS[text]


# -- parts ---------------------------------------------------------------------------------------------

OPERATORS = {
    Operator.GT: gt, Operator.GTE: ge, Operator.LT: lt, Operator.LTE: le, Operator.EQ: eq, Operator.NE: ne,
}  # fmt: skip
LIMITS = st.sampled_from((-inf, -1.0, 0.0, 0.5, 1.0, 2.0, inf))


@settings(deadline=None)
@given(st.sampled_from(list(Operator)), st.sampled_from((-1.0, 0.0, 0.25, 0.5, 0.75, 1.0, 2.0)), LIMITS, LIMITS)
def test_reachable_and_certain_are_what_values_of_the_range_say(
    op: Operator, threshold: float, one: float, other: float
) -> None:
    low, high = min(one, other), max(one, other)
    if low == high:
        return
    values = [value for value in (low, low + 1e-9, threshold - 1e-9, threshold, threshold + 1e-9, high - 1e-9, high, 0.3)
              if low <= value <= high]  # fmt: skip
    fulfilled = [OPERATORS[op](value, threshold) for value in values]
    assert rules_module._reachable(op, threshold, low, high) == any(fulfilled)
    assert rules_module._certain(op, threshold, low, high) == all(fulfilled)


@pytest.mark.parametrize(
    ("text", "aggregate"),
    [
        ("mean", Aggregate(How.MEAN)),
        ("p50", Aggregate(How.QUANTILE, 0.5)),
        ("p99.9", Aggregate(How.QUANTILE, 0.999)),
        ("p100", Aggregate(How.QUANTILE, 1)),
        ("p0", Aggregate(How.QUANTILE, 0)),
        ("fraction_above(0.3)", Aggregate(How.FRACTION_ABOVE, 0.3)),
        ("fraction_below(-1e3)", Aggregate(How.FRACTION_BELOW, -1000)),
        ("fraction_above(1234567.25)", Aggregate(How.FRACTION_ABOVE, 1234567.25)),
        ("fraction_above(1e22)", Aggregate(How.FRACTION_ABOVE, 1e22)),
        ("p99.9999999999999", Aggregate(How.QUANTILE, 0.999999999999999)),
        ("predict_linear(4d)", Aggregate(How.PREDICT_LINEAR, 345600)),
    ],
)
def test_aggregates(text: str, aggregate: Aggregate) -> None:
    assert Aggregate.parse(text) == aggregate
    assert Aggregate.parse(str(aggregate)) == aggregate


@pytest.mark.parametrize(
    ("text", "matching", "others"),
    [
        ("a", ["a"], ["b", "", "aa"]),
        ("!=a", ["b", "", "aa"], ["a"]),
        ("=~a+", ["a", "aa"], ["", "ab", "ba"]),
        ("!~a+", ["", "ab", "ba"], ["a", "aa"]),
        ("", [""], ["a"]),
        ("=~a.b", ["a\nb", "aéb", "a\0b"], ["aéob"]),
        ("=~(?i)é|ß", ["É", "ß"], ["e"]),
        ("=~(a+)+b", ["a" * 30_000 + "b"], ["a" * 30_000]),  # 2**30_000 ways to fail, one after the other
    ],
)
def test_matchers(text: str, matching: list[str], others: list[str]) -> None:
    (matcher,) = matchers_of({"label": text})
    assert all(matcher.matches(value) for value in matching)
    assert not any(matcher.matches(value) for value in others)


NUMBERS = st.integers(0, 1000).map(str) | st.floats(0, 1e6).map(repr)
EXPRESSIONS = st.recursive(
    NUMBERS | st.sampled_from(("a", "b_2")),
    lambda inner: (
        st.tuples(inner, st.sampled_from("+-*/"), inner).map(" ".join)
        | inner.map(lambda text: f"({text})")
        | inner.map(lambda text: f"-({text})")
    ),
    max_leaves=8,
)


@settings(deadline=None)
@given(EXPRESSIONS)
def test_an_expression_means_what_it_means_in_python(text: str) -> None:
    values = {"a": 3.0, "b_2": 0.25}
    try:
        expected = eval(text, {}, values)
    except ZeroDivisionError:
        return
    assert Expression(text).evaluate(values) == pytest.approx(expected, nan_ok=True)


HOSTILE = (
    "__import__('os')", "a.b", "a[0]", "a()", "a if b else c", "lambda: 1", "[1]", "'x'", "True", "None", "a < b", "a and b",
    "not a", "+a", "~a", "a % b", "a // b", "a @ b", "1j", "a := 1", "", "a; b", "(" * 300, "9" * 600, "a\n b",
    "-" * 400 + "1",
)  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE)
def test_an_expression_has_nothing_else(text: str) -> None:
    if text.startswith("---"):
        Expression(text)  # a deep one is fine
        return
    with pytest.raises(ValueError, match=r"."):
        Expression(text)


def test_models_cannot_be_changed() -> None:
    rule: Any = rule_of(f"{SIMPLE}, op: gt, threshold: 1")
    with pytest.raises(ValueError, match="frozen"):
        rule.threshold = 2
