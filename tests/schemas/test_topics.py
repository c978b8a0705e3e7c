"""Names of topics and keys of state: what other programs and recovered state rely on."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tailrace_schemas.topics import SHARDS, Topics, shard_of


def test_names() -> None:
    assert Topics().all() == (
        "tailrace.samples",
        "tailrace.aggregates",
        "tailrace.alerts",
        "tailrace.commands",
        "tailrace.notifications",
        "tailrace.config",
        "tailrace.dead-letters",
        "tailrace.logs",
        "tailrace.clock",
    )


def test_a_prefix_sets_installations_apart() -> None:
    topics = Topics("staging")
    assert topics.samples == "staging.samples"
    assert all(name.startswith("staging.") for name in topics.all())


def test_all_of_them_are_listed() -> None:
    named = {name for name, one in vars(Topics).items() if isinstance(one, property)}
    assert sorted(Topics().all()) == sorted(getattr(Topics(), name) for name in named)


@pytest.mark.parametrize(
    ("service", "shard"),
    [("checkout", "14"), ("", "00"), ("Überweisung", "60"), ("payment-service", "21")],
)
def test_a_service_keeps_its_shard(service: str, shard: str) -> None:
    """State is stored by it: another function would orphan the state of every flow."""
    assert shard_of(service) == shard


@given(st.text())
def test_a_shard_is_two_digits(service: str) -> None:
    shard = shard_of(service)
    assert len(shard) == 2
    assert 0 <= int(shard) < SHARDS == 64


def test_services_are_spread_evenly() -> None:
    counts = Counter(shard_of(f"service-{number}") for number in range(64_000))
    assert len(counts) == SHARDS
    assert max(counts.values()) < 1200
