"""The exponent of the doubling rule, and the redundancy of channels (N §2.3)."""

import numpy as np
import pytest

from refimpl.paper.computed.doubling import SIDES, _exponent
from tests.paper.computed.kept import computed
from tests.tolerances import ENLARGED_SCENE, FLOAT64_ROUNDING


def test_doubling_holds_for_an_enlarged_scene_and_bounds_new_content():
    found = computed("doubling")
    same = found["exponent of σ_max in the side, one scene enlarged"]
    more = found["exponent of σ_max in the side, new content"]
    assert same.value == pytest.approx(1, abs=ENLARGED_SCENE)
    assert 0 < more.low < more.high < 1


@pytest.mark.parametrize("power", [0.0, -0.3, -1.0])
def test_the_exponent_is_one_plus_that_of_the_spread(power):
    means = np.random.default_rng(0).standard_normal((4, 1, 24))
    spreads = np.array(SIDES, np.float64)[None, :, None] ** power
    assert _exponent(means * spreads) == pytest.approx(1 + power, abs=FLOAT64_ROUNDING)


def test_channels_that_share_a_signal_need_more_noise():
    found = computed("channel redundancy")
    shared = found["SNR of what three colour channels share, over one's"]
    assert 1 < shared.low < shared.high < 3
    assert found["σ_max for three channels over that for one"].value == pytest.approx(shared.value**0.5)
