"""Bytes and seconds on a cluster: limits that can be computed by hand."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refimpl.train.scale.communication import AIMED_AT, KINDS, Cluster, Kind, Work, cost, least_network
from tests.tolerances import FLOAT64_ROUNDING

S = 10**10  # bytes
WORK = Work(weights=S, trained=S, seconds=1.0, accumulate=1)
PAPER = Cluster(nodes=32)
PERFECT = Cluster(nodes=32, reached=1.0, hidden=1.0, jitter=0.0)


def by_hand(value: float) -> object:
    return pytest.approx(value, rel=FLOAT64_ROUNDING)


def test_bytes_are_those_of_the_algorithms() -> None:
    """On 2 nodes of 2: an all-reduce sends 2 · 3/4 · S, of which a half leaves the node."""
    cluster = Cluster(nodes=2, gpus=2)
    sent = {kind: (cost(kind, WORK, cluster).within, cost(kind, WORK, cluster).across) for kind in KINDS}
    assert sent["replicate"] == (by_hand(0.75 * S), by_hand(0.75 * S))
    assert sent["zero1"] == (by_hand(1.125 * S), by_hand(1.125 * S))
    assert sent["shard"] == (by_hand(1.125 * S), by_hand(1.125 * S))  # two gathers and a reduce-scatter
    assert sent["hybrid"] == (by_hand(1.5 * S), by_hand(0.5 * S))  # across: 2 · 1/2 of half of S


def test_only_gathers_grow_with_the_micro_batches() -> None:
    more = replace(WORK, accumulate=4)
    for kind in KINDS:
        once, four = cost(kind, WORK, PAPER), cost(kind, more, PAPER)
        grown = kind in ("shard", "hybrid")
        assert (four.within > once.within) == grown
        assert (four.across > once.across) == (kind == "shard")


def test_one_gpu_sends_nothing() -> None:
    for kind in KINDS:
        found = cost(kind, WORK, replace(PERFECT, nodes=1, gpus=1))
        assert (found.within, found.across, found.step, found.scaling) == (0, 0, 1.0, 1.0)


def test_state_is_divided_as_each_says() -> None:
    held = {kind: cost(kind, WORK, PAPER).state for kind in KINDS}
    assert held == {
        "replicate": 5 * S,
        "zero1": 2 * S + 3 * S // 256,
        "shard": 5 * S // 256,
        "hybrid": 5 * S // 8,
    }
    whole = cost("shard", replace(WORK, accumulate=2), PAPER).state
    assert whole == S + 4 * S // 256  # gradients wait for the next micro-batch undivided


@pytest.mark.parametrize("kind", KINDS)
def test_what_arithmetic_hides_costs_nothing(kind: Kind) -> None:
    long = replace(WORK, seconds=100.0)
    found = cost(kind, long, PERFECT)
    assert found.transfer > 0
    assert (found.exposed > 0) == (kind == "zero1")  # whose weights are sent after the update
    bare = cost(kind, long, replace(PERFECT, hidden=0.0))
    assert bare.exposed == by_hand(bare.transfer)


@pytest.mark.parametrize("kind", KINDS)
def test_a_slow_network_is_waited_for(kind: Kind) -> None:
    found = cost(kind, WORK, replace(PERFECT, network=1e7))
    slowest = found.across / 1e7
    assert slowest * (1 - FLOAT64_ROUNDING) <= found.transfer <= slowest + found.within / PERFECT.nvlink
    assert found.exposed >= found.transfer - 2 * WORK.seconds
    assert found.scaling < 0.1


@given(
    kind=st.sampled_from(KINDS),
    nodes=st.integers(2, 64),
    seconds=st.floats(0.01, 100),
    accumulate=st.integers(1, 8),
)
def test_the_least_network_is_the_least(kind: Kind, nodes: int, seconds: float, accumulate: int) -> None:
    work, cluster = Work(S, S, seconds, accumulate), Cluster(nodes)
    least = least_network(kind, work, cluster)
    if least is None:
        assert cost(kind, work, replace(cluster, network=1e13)).scaling < AIMED_AT
        return
    assert cost(kind, work, replace(cluster, network=least)).scaling >= AIMED_AT
    assert least <= 1.01e6 or cost(kind, work, replace(cluster, network=least * 0.99)).scaling < AIMED_AT
