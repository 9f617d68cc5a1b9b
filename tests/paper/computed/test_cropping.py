"""Aspect errors and crops (N §4.1.3)."""

import numpy as np
import pytest

from refimpl.data.buckets import PRESETS
from refimpl.paper.computed.cropping import DISTRIBUTIONS, aspect_errors
from tests.paper.computed.kept import computed
from tests.tolerances import PRINTED_ASPECT_ERROR

N_MEAN_ERROR = 0.033


def test_crops_are_about_as_small_as_the_report_says():
    found = computed("cropping")
    uniform = found["mean aspect error, log-uniform 1:2 to 2:1, novelai_v3"]
    assert uniform.value == pytest.approx(N_MEAN_ERROR, abs=PRINTED_ASPECT_ERROR)
    shares = [quantity.value for name, quantity in found.items() if name.startswith("share")]
    assert min(shares) > 0.5
    assert max(shares) == 1
    assert len(found) == 4 * len(DISTRIBUTIONS)


@pytest.mark.parametrize("preset", ["novelai_v1", "novelai_v3"])
def test_images_of_a_buckets_aspect_lose_next_to_nothing(preset):
    aspects = np.array([width / height for width, height in PRESETS[preset]])
    errors, removed = aspect_errors(aspects, preset)
    assert errors.max() < 0.01
    assert removed.max() <= 2  # the sides are whole px


def test_what_is_removed_is_one_side_of_the_cover():
    errors, removed = aspect_errors(np.array([1.15]), "novelai_v1")
    bucket = min(PRESETS["novelai_v1"], key=lambda wh: abs(wh[0] / wh[1] - 1.15))
    width, height = bucket
    tall = max(height, width / 1.15)
    assert removed[0] == pytest.approx(max(tall * 1.15 - width, 0) + tall - height, abs=2)  # whole px
    assert errors[0] == pytest.approx(abs(width / height - 1.15), abs=PRINTED_ASPECT_ERROR)
