"""The average colour of a canvas under noise (N Fig. 1, App. A.2)."""

import math

import numpy as np
import pytest

from refimpl.paper.computed.canvas_noise import ENOUGH, LEVELS, canvas_means
from refimpl.paper.exact_posteriors import CANVAS_MEAN_VARIANCE
from tests.paper.computed.kept import computed
from tests.tolerances import FLOAT64_ROUNDING, STANDARD_ERRORS

AREA = 104 * 152


def test_the_snr_of_the_canvas_mean_at_the_levels_of_the_report():
    noise = computed("canvas noise")
    for level in LEVELS:
        assert noise[f"noise on the canvas mean at σ = {level:g}"].value == pytest.approx(
            level / math.sqrt(AREA), rel=FLOAT64_ROUNDING
        )
    snr = [noise[f"SNR of the canvas mean at σ = {level:g}"] for level in LEVELS]
    assert [each.value for each in snr] == sorted((each.value for each in snr), reverse=True)
    assert snr[0].low > 1  # 14.6 leaves the average readable
    assert snr[-1].high < 1e-4  # 20000 does not
    assert snr[0].low < CANVAS_MEAN_VARIANCE * AREA / LEVELS[0] ** 2 < snr[0].high


def test_leakage_ends_between_136_and_317():
    told = computed("share told")
    first, last = (told[f"share told of the canvas mean at σ = {level:g}"] for level in ENOUGH)
    assert 0.1 < first.value < 0.3
    assert last.high < 0.1
    unit = told["σ at which the SNR of the canvas mean is 1"]
    assert unit.high < ENOUGH[0]


def test_what_is_told_is_what_a_linear_estimate_recovers():
    """The share of the variance that the best linear estimate from noised averages explains, on many noises."""
    means, level = canvas_means(), 56.0
    noised = means + level / math.sqrt(AREA) * np.random.default_rng(0).standard_normal((20000, len(means)))
    correlation = np.corrcoef(noised.ravel(), np.broadcast_to(means, noised.shape).ravel())[0, 1]
    snr = means.var() * AREA / level**2
    assert correlation**2 == pytest.approx(snr / (1 + snr), abs=STANDARD_ERRORS / math.sqrt(noised.size))
