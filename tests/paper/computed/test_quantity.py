"""Exact numbers, and bootstrap intervals that cover what they should."""

import numpy as np
import pytest

from refimpl.paper.computed.quantity import bootstrapped, exact, resampled_means, with_interval
from tests.tolerances import BOOTSTRAP_COVERAGE


def test_an_exact_number_has_no_interval():
    assert exact("n", 3).is_exact
    assert not bootstrapped("n", np.arange(5.0), lambda x: float(x.mean())).is_exact


def test_intervals_of_a_mean_cover_it_as_often_as_they_say():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        samples = rng.normal(2.0, 1.0, 40)
        found = bootstrapped("mean", samples, lambda x: float(x.mean()), resamples=200)
        assert found.value == samples.mean()
        covered += found.low <= 2.0 <= found.high
    assert covered / 200 == pytest.approx(0.95, abs=BOOTSTRAP_COVERAGE)


def test_whole_rows_are_drawn():
    rows = np.array([[1.0, -1.0], [5.0, -5.0], [2.0, -2.0]])
    found = bootstrapped("sum", rows, lambda x: float(x.sum()))
    assert (found.low, found.value, found.high) == (0, 0, 0)


def test_equal_seeds_give_equal_intervals():
    rows = np.arange(9.0)
    first, again, other = (bootstrapped("m", rows, np.mean, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_resampled_means_are_those_of_rows_drawn_with_replacement():
    rows = np.random.default_rng(1).normal(size=(9, 3))
    means = resampled_means(rows, 4000)
    assert means.mean(0) == pytest.approx(rows.mean(0), abs=0.05)
    assert means.std(0) == pytest.approx(rows.std(0) / 3, rel=0.1)
    one = with_interval("mean", rows[:, 0].mean(), means[:, 0])
    other = bootstrapped("mean", rows[:, 0], lambda x: float(x.mean()), resamples=4000)
    assert (one.low, one.high) == pytest.approx((other.low, other.high), abs=0.05)
