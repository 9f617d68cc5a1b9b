"""Streaming statistics against exact arithmetic, NIST's certified values and one-pass values (N App. B)."""

import json
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from refimpl.errors import InputError
from refimpl.latents.welford import Welford
from tests import strategies, tolerances


def column(values: list[float]) -> torch.Tensor:
    """The values of one channel, [N, 1, 1, 1]."""
    return torch.tensor(values, dtype=torch.float64).view(-1, 1, 1, 1)


def exact(values: list[float], ddof: int = 1) -> tuple[float, float]:
    """Mean and standard deviation in rational arithmetic, rounded once."""
    exactly = [Fraction(value) for value in values]
    mean = sum(exactly) / len(exactly)
    variance = sum((value - mean) ** 2 for value in exactly) / (len(exactly) - ddof)
    return float(mean), math.sqrt(variance)


# NIST StRD, univariate summary statistics: data, certified mean, certified (sample) standard deviation.
NUMACC = {
    "NumAcc1": ([10000001.0, 10000003.0, 10000002.0], 10000002.0, 1.0),
    "NumAcc2": ([1.2, *[1.1, 1.3] * 500], 1.2, 0.1),
    "NumAcc3": ([1000000.2, *[1000000.1, 1000000.3] * 500], 1000000.2, 0.1),
    "NumAcc4": ([10000000.2, *[10000000.1, 10000000.3] * 500], 10000000.2, 0.1),
}


@pytest.mark.parametrize("name", NUMACC)
def test_nist_numacc(name: str) -> None:
    values, certified_mean, certified_std = NUMACC[name]
    for parts in ([values], [[value] for value in values]):  # one pass, and value by value
        statistics = Welford(1)
        for part in parts:
            statistics.update(column(part))
        assert statistics.count == len(values)
        mean, std = exact(values)
        assert statistics.mean.item() == pytest.approx(mean, rel=tolerances.NUMACC_EXACT)
        assert statistics.std.item() == pytest.approx(std, rel=tolerances.WELFORD_RELATIVE)
        # The certified values are for the exact decimals, which float64 rounds to the nearest value.
        stored = tolerances.STORED_DECIMAL * math.ulp(max(values))
        assert abs(statistics.mean.item() - certified_mean) <= 2 * stored
        assert abs(statistics.std.item() - certified_std) <= 2 * stored


@pytest.mark.parametrize("name", ["NumAcc2", "NumAcc3", "NumAcc4", "latents"])
def test_a_thousand_partitions_give_the_one_pass_value(name: str) -> None:
    # 4 × 250 partitions, each also split over several accumulators that are merged in random order.
    rng = np.random.default_rng(3)
    if name == "latents":
        x = torch.from_numpy(rng.normal(4.8119, 9.9181, (1001, 2, 1, 1)))
    else:
        x = column(NUMACC[name][0]).repeat(1, 2, 1, 1)
    one_pass = Welford(2)
    one_pass.update(x)
    for _ in range(250):
        cuts = np.sort(rng.integers(0, len(x) + 1, rng.integers(0, 25)))
        workers = [Welford(2) for _ in range(rng.integers(1, 5))]
        for part in np.split(np.arange(len(x)), cuts):
            workers[rng.integers(len(workers))].update(x[torch.from_numpy(part)])
        total = Welford(2)
        for index in rng.permutation(len(workers)):
            total.merge(workers[index])
        assert total.count == one_pass.count
        torch.testing.assert_close(total.mean, one_pass.mean, rtol=tolerances.WELFORD_RELATIVE, atol=0)
        torch.testing.assert_close(total.std, one_pass.std, rtol=tolerances.WELFORD_RELATIVE, atol=0)


@given(values=strategies.channel_values(), data=st.data())
def test_any_values_in_any_partition_match_exact_arithmetic(values: list[float], data: st.DataObject) -> None:
    statistics = Welford(1)
    start = 0
    for size in data.draw(strategies.partitions(len(values))):
        statistics.update(column(values[start : start + size]))
        start += size
    ddof = min(1, len(values) - 1)  # one value has no sample spread, but a population's: 0
    mean, std = exact(values, ddof)
    size = max(map(abs, values))
    assert statistics.mean.item() == pytest.approx(
        mean, rel=tolerances.WELFORD_RELATIVE, abs=tolerances.WELFORD_RELATIVE * size
    )
    # Differences of stored values are exact to one rounding of the largest, which bounds the std's error.
    assert statistics.variance(ddof).sqrt().item() == pytest.approx(
        std, rel=tolerances.WELFORD_RELATIVE, abs=math.ulp(max(values) - min(values))
    )


@given(
    x=strategies.latent_shapes().flatmap(lambda shape: strategies.latents(shape)),
)
def test_layout_does_not_matter_and_channels_stay_apart(x: torch.Tensor) -> None:
    statistics = Welford(x.shape[1])
    statistics.update(x)
    assert statistics.count == x.shape[0] * x.shape[2] * x.shape[3]
    if statistics.count < 2:
        return
    for channel in range(x.shape[1]):
        mean, std = exact(x[:, channel].flatten().tolist())
        largest = x[:, channel].abs().max().item()
        bound = tolerances.WELFORD_RELATIVE * largest
        assert statistics.mean[channel].item() == pytest.approx(mean, rel=0, abs=bound)
        assert statistics.std[channel].item() == pytest.approx(std, rel=0, abs=bound)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.uint8])
def test_low_precision_input_is_summed_in_float64(dtype: torch.dtype) -> None:
    x = (torch.arange(4096) % 200).to(dtype).view(2, 2, 32, 32)
    narrow, wide = Welford(2), Welford(2)
    narrow.update(x)
    wide.update(x.double())
    assert torch.equal(narrow.mean, wide.mean)
    assert torch.equal(narrow.std, wide.std)
    assert narrow.mean.dtype == torch.float64


def test_moments_of_a_batch_add_like_the_batch() -> None:
    x = torch.randn(3, 4, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 6 + 1.3538
    direct, by_moments = Welford(4), Welford(4)
    direct.update(x)
    for part in (x[:1], x[1:]):
        values = part.transpose(0, 1).flatten(1)
        mean = values.mean(dim=1)
        m2 = (values - mean[:, None]).square().sum(dim=1)
        by_moments.update_moments(torch.tensor(values.shape[1], dtype=torch.float64), mean, m2)
    by_moments.update_moments(
        0, torch.full((4,), math.nan), torch.full((4,), math.nan)
    )  # the mean of nothing
    assert by_moments.count == direct.count
    torch.testing.assert_close(by_moments.mean, direct.mean, rtol=tolerances.WELFORD_RELATIVE, atol=0)
    torch.testing.assert_close(by_moments.std, direct.std, rtol=tolerances.WELFORD_RELATIVE, atol=0)


def test_merging_with_nothing_and_with_itself() -> None:
    statistics, empty = Welford(1), Welford(1)
    statistics.merge(empty)
    assert statistics.count == 0
    statistics.update(column([1.0, 2.0, 6.0]))
    statistics.merge(empty)
    empty.merge(statistics)
    assert empty.state() == statistics.state()
    empty.update(column([100.0]))
    assert statistics.count == 3  # the two share nothing
    statistics.merge(statistics)
    assert statistics.count == 6
    assert statistics.mean.item() == pytest.approx(3, rel=tolerances.WELFORD_RELATIVE)
    assert statistics.variance().item() == pytest.approx(14 * 2 / 5, rel=tolerances.WELFORD_RELATIVE)


def test_results_are_copies() -> None:
    statistics = Welford(2)
    statistics.update(torch.ones(2, 2, 1, 1))
    statistics.mean.zero_()
    statistics.std.add_(1)
    assert statistics.mean.tolist() == [1.0, 1.0]
    assert statistics.std.tolist() == [0.0, 0.0]


def test_state_survives_json_bit_for_bit() -> None:
    statistics = Welford(3)
    statistics.update(torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1)) / 3)
    loaded = Welford.from_state(json.loads(json.dumps(statistics.state())))
    more = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(2))
    for each in (statistics, loaded):
        each.update(more)
    assert loaded.state() == statistics.state()
    assert Welford.from_state(Welford(3).state()).count == 0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_refused_whole(bad: float) -> None:
    statistics = Welford(2)
    statistics.update(torch.ones(1, 2, 2, 2))
    before = statistics.state()
    x = torch.ones(2, 2, 3, 3)
    x[1, 1, 0, 2] = bad
    with pytest.raises(InputError, match="channel 1 holds 1 NaN or infinite"):
        statistics.update(x)
    assert statistics.state() == before


def test_squares_beyond_float64_are_refused_whole() -> None:
    statistics = Welford(1)
    statistics.update(column([1.0]))
    before = statistics.state()
    for values in ([1e200, -1e200], [1.7e308, -1.7e308]):
        with pytest.raises(InputError, match="exceed float64"):
            statistics.update(column(values))
    assert statistics.state() == before


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda w: w.update(torch.ones(1, 3, 2, 2)), r"expected \[B, 4, H, W\], got \[1, 3, 2, 2\]"),
        (lambda w: w.update(torch.ones(4, 2, 2)), "expected"),
        (lambda w: w.update(torch.ones(0, 3, 2, 2)), "expected"),
        (lambda w: w.update(torch.ones(1, 4, 2, 2, dtype=torch.complex64)), "real numbers"),
        (lambda w: w.update(torch.ones(1, 4, 2, 2, dtype=torch.bool)), "real numbers"),
        (lambda w: w.merge(Welford(3)), "3 channels cannot be merged into 4"),
        (lambda w: w.update_moments(2, torch.ones(3), torch.ones(3)), r"mean must be \[4\], got \[3\]"),
        (lambda w: w.update_moments(2, torch.ones(4), torch.ones(1)), r"m2 must be \[4\], got \[1\]"),
        (lambda w: w.update_moments(2, torch.ones(4), -torch.ones(4)), "not negative"),
        (lambda w: w.update_moments(2, torch.full((4,), math.nan), torch.ones(4)), "finite"),
        (lambda w: w.update_moments(-1, torch.ones(4), torch.ones(4)), "whole number"),
        (lambda w: w.update_moments(1.5, torch.ones(4), torch.ones(4)), "whole number"),
        (lambda w: w.update_moments(torch.tensor(math.inf), torch.ones(4), torch.ones(4)), "whole number"),
        (lambda w: w.update_moments(torch.ones(4), torch.ones(4), torch.ones(4)), "whole number"),
        (lambda w: w.mean, "0 values seen"),
        (lambda w: w.std, "0 values seen"),
    ],
)
def test_misuse_is_refused_with_the_numbers(act, message: str) -> None:
    statistics = Welford(4)
    with pytest.raises(InputError, match=message):
        act(statistics)
    assert statistics.count == 0


def test_sample_variance_needs_two_values() -> None:
    statistics = Welford(1)
    statistics.update(column([3.0]))
    assert statistics.variance(ddof=0).item() == 0
    with pytest.raises(InputError, match="1 values seen per channel, at least 2 needed"):
        _ = statistics.std


@pytest.mark.parametrize("channels", [0, -1, 2.0, True, None])
def test_channels_must_be_a_positive_integer(channels) -> None:
    with pytest.raises(InputError, match="channels must be"):
        Welford(channels)


GOOD_STATE = {"count": 2, "shift": [1.0], "offset": [0.5], "m2": [0.5]}


@pytest.mark.parametrize(
    "state",
    [
        [],
        {},
        {**GOOD_STATE, "mean": [1.0]},
        {key: GOOD_STATE[key] for key in ("count", "shift", "offset")},
        {**GOOD_STATE, "count": -1},
        {**GOOD_STATE, "count": "2"},
        {**GOOD_STATE, "count": 0},
        {**GOOD_STATE, "m2": [-1.0]},
        {**GOOD_STATE, "m2": [math.nan]},
        {**GOOD_STATE, "m2": [0.5, 0.5]},
        {**GOOD_STATE, "shift": ["x"]},
        {**GOOD_STATE, "shift": None},
        {**GOOD_STATE, "offset": [10**400]},
        {"count": 0, "shift": [], "offset": [], "m2": []},
    ],
)
def test_a_damaged_state_is_refused(state) -> None:
    with pytest.raises(InputError, match="Welford"):
        Welford.from_state(state)
