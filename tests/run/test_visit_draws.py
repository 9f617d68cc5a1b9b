"""Crop and flip of a visit: functions of (seed, id, visit) alone (N §4.1.3)."""

import pickle

from hypothesis import given
from hypothesis import strategies as st

from refimpl.diffusion.philox import KeyedIntegers, Purpose, draw_key_of, sample_id
from refimpl.run.visit_draws import CentreDraws, VisitDraws
from tests.tolerances import STANDARD_ERRORS

names = st.sampled_from(("", "a", "folder/image", "é")) | st.text(max_size=8)
visits = st.sampled_from((0, 1, 2**31)) | st.integers(0, 1000)


@given(st.integers(0, 2**63 - 1), names, visits)
def test_crops_are_the_keyed_integers(seed: int, name: str, visit: int) -> None:
    draws = pickle.loads(pickle.dumps(VisitDraws(seed, flip=True)))
    source = draws.crop_source(name, visit)
    keyed = KeyedIntegers(draw_key_of(seed, sample_id(name), visit, Purpose.CROP))
    assert [source.integers(0, 97) for _ in range(4)] == [keyed.integers(0, 97) for _ in range(4)]
    again = draws.crop_source(name, visit)
    assert again.integers(0, 97) == draws.crop_source(name, visit).integers(0, 97)


def test_flips_are_fair_and_differ_by_each_part_of_the_key() -> None:
    def flips(seed: int = 0, visit: int = 0) -> list[bool]:
        draws = VisitDraws(seed, flip=True)
        return [draws.is_flipped(str(number), visit) for number in range(1000)]

    plain = flips()
    assert plain == flips()
    assert abs(sum(plain) - 500) <= STANDARD_ERRORS * 1000**0.5 / 2
    for other in (flips(seed=1), flips(visit=1)):
        assert abs(sum(a != b for a, b in zip(plain, other, strict=True)) - 500) <= STANDARD_ERRORS * 16
    assert not any(VisitDraws(0, flip=False).is_flipped(str(n), 0) for n in range(100))


def test_crop_and_flip_are_drawn_apart() -> None:
    """Under one key an image would be mirrored according to where it is cropped."""
    draws = VisitDraws(0, flip=True)
    both = [(draws.crop_source(str(n), 0).integers(0, 2), draws.is_flipped(str(n), 0)) for n in range(1000)]
    agree = sum(bool(crop) == flip for crop, flip in both)
    assert abs(agree - 500) <= STANDARD_ERRORS * 16


@given(st.integers(-5, 5), st.integers(1, 50))
def test_measuring_takes_the_middle(low: int, count: int) -> None:
    draws = CentreDraws()
    value = draws.crop_source("x", 3).integers(low, low + count)
    below, above = value - low, low + count - 1 - value
    assert 0 <= above - below <= 1
    assert not draws.is_flipped("x", 3)
