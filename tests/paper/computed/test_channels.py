"""Scales for each channel, and how the scale-and-shift converges (N App. B)."""

import numpy as np
import pytest

from refimpl.latents.scale_shift import NOVELAI_ANIME
from tests.paper.computed.kept import computed
from tests.tolerances import FLOAT64_ROUNDING, MEASURED_ROOT


def test_own_scales_change_no_correlation_and_cost_white_nothing():
    found = computed("channel scaling")
    assert found["largest change of a correlation between channels"].value == 0
    assert found["white against black in photographs, own scales over one"].low >= 1
    gains = 1 / (0.13025 * np.array(NOVELAI_ANIME.std))
    least = found["smallest gain of a direction by N Fig. 8's scales over 0.13025"].value
    assert least == pytest.approx(gains.min(), rel=FLOAT64_ROUNDING)
    assert least < 1 < found["largest gain of a direction by N Fig. 8's scales over 0.13025"].value


def test_statistics_converge_as_one_over_the_root_of_the_images():
    found = computed("convergence")
    for part in ("mean", "std"):
        one, all_of_n = (
            found[f"error of the {part} from 1 image"],
            found[f"error of the {part} from 78224 images"],
        )
        assert all_of_n.value == pytest.approx(one.value / 78224**0.5, rel=FLOAT64_ROUNDING)
        assert all_of_n.high < 0.01
    assert found["power of n in the mean's error"].value == pytest.approx(-0.5, abs=MEASURED_ROOT)
