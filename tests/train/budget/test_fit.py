"""Does it fit, which batch would, and what a run is told that does not."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refimpl.errors import InputError
from refimpl.train.budget.cards import GIB, Card
from refimpl.train.budget.fit import batch_settings, checked_plan, fits, largest_batch, smaller_batch
from refimpl.train.budget.plan import Work, largest_work, plan_step
from tests.train.budget.networks import counted, small

WORK = largest_work(small())


def card_for(work: Work) -> Card:
    """A card that has exactly the memory that the work needs."""
    return Card("a card", plan_step(counted(small()), work).needed)


@given(batch=st.integers(1, 5000), accumulate=st.integers(1, 3))
def test_the_largest_batch_fits_and_one_more_does_not(batch: int, accumulate: int) -> None:
    work = replace(WORK, batch=batch, accumulate=accumulate)
    largest = largest_batch(counted(small()), work, card_for(work))
    assert largest >= batch
    assert fits(plan_step(counted(small()), replace(work, batch=largest)), card_for(work))
    assert not fits(plan_step(counted(small()), replace(work, batch=largest + 1)), card_for(work))


def test_a_card_needs_the_reserve_too() -> None:
    plan = plan_step(counted(small()), WORK)
    assert plan.peak < plan.needed
    assert fits(plan, Card("enough", plan.needed))
    assert not fits(plan, Card("a byte short", plan.needed - 1))


def test_no_batch_fits_nothing() -> None:
    assert largest_batch(counted(small()), WORK, Card("none", GIB)) == 0
    assert smaller_batch(counted(small()), WORK, Card("none", GIB)) is None


def test_a_smaller_batch_keeps_the_images_of_a_step() -> None:
    card = card_for(replace(WORK, batch=5, accumulate=3))
    smaller = smaller_batch(counted(small()), replace(WORK, batch=512, accumulate=3), card)
    assert smaller is not None
    assert smaller.batch * smaller.accumulate == 512 * 3
    assert smaller.batch in (4, 3, 2, 1) or fits(plan_step(counted(small()), smaller), card)
    assert not fits(plan_step(counted(small()), replace(smaller, batch=512)), card)


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("train.batch_size", "train.batch_size 16, train.accumulate 1"),
        ("stages.batch_size", "stages.batch_size 16, train.accumulate 1"),
        ("train.pixel_budget", "train.pixel_budget 65536, train.accumulate 1"),
    ],
)
def test_a_batch_is_told_as_its_setting(setting: str, told: str) -> None:
    assert batch_settings(replace(WORK, bucket=(64, 64), setting=setting)) == told


def test_a_run_that_fits_has_its_plan() -> None:
    work = replace(WORK, ranks=2)
    counted_run, planned, plan = checked_plan(small(), 2, Card("a card", 80 * GIB))
    assert (planned, plan) == (work, plan_step(counted(small()), work))
    assert counted_run == counted(small())


def test_a_run_that_does_not_fit_is_told_the_largest_batch() -> None:
    config = small(batch_size=4096)
    with pytest.raises(InputError) as error:
        checked_plan(config, 1, card_for(replace(WORK, batch=1024, accumulate=4)))
    said = str(error.value)
    width, height = WORK.bucket
    assert said.startswith(f"train.batch_size: 4096 images of {width}×{height} need ")
    assert "but a card has 4.2 GiB" in said or "but a card has " in said
    assert "the largest batch that fits is 1024" in said
    assert "train.batch_size 1024, train.accumulate 4 keep the global batch" in said
    assert said.endswith("`refimpl estimate` with the same arguments lists what else would help")


def test_a_run_that_cannot_fit_is_told_so() -> None:
    with pytest.raises(
        InputError, match="and not even one image fits with these settings; `refimpl estimate`"
    ):
        checked_plan(small(), 1, Card("a card", GIB))
