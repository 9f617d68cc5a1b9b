"""An epoch in numbers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refimpl.data.plan import plan_epoch
from refimpl.data.survey.plan_report import report_plan
from refimpl.errors import InputError
from tests import strategies

BUCKETS = [(64, 64), (32, 32), (64, 32), (32, 64)]


def test_a_plan_by_hand() -> None:
    """Two batches from each of two buckets, and one of their leftovers in the bucket that most of them come from."""
    plan = plan_epoch([0] * 9 + [1] * 11, 4, 0, 0)
    report = report_plan(plan, BUCKETS)
    assert report.steps == 5
    assert report.batches_per_bucket.tolist() == [2, 3, 0, 0]
    assert report.catch_all_share == pytest.approx(1 / 5)
    assert report.idle_share == 0
    assert report.dropped.size == 0


def test_ranks_of_mode_paper_wait_for_the_largest_shape() -> None:
    plan = plan_epoch([0] * 500 + [1] * 500, 1, 0, 0, world_size=2, mode="paper")
    report = report_plan(plan, BUCKETS)
    shapes = np.stack([plan.bucket_steps(rank) for rank in (0, 1)])
    pixels = np.where(shapes == 0, 64 * 64, 32 * 32)
    waited = (pixels.max(0) - pixels).sum() / (2 * pixels.max(0).sum())
    assert report.idle_share == pytest.approx(waited)
    assert 0.1 < waited < 0.4
    assert report.batches_per_bucket.sum() == 1000
    assert report_plan(plan_epoch([0] * 500 + [1] * 500, 1, 0, 0, 2), BUCKETS).idle_share == 0


@pytest.mark.parametrize("mode", ["global", "paper"])
@given(data=st.data(), world_size=st.integers(1, 5), batch_size=st.integers(1, 4))
def test_steps_agree_with_the_batches(mode, data: st.DataObject, world_size: int, batch_size: int) -> None:
    bucket_of = data.draw(strategies.bucketed_items(least=world_size * batch_size))
    plan = plan_epoch(bucket_of, batch_size, 1, 0, world_size, mode)
    for rank in range(world_size):
        batches = list(plan.batches(rank))
        assert plan.bucket_steps(rank).tolist() == [bucket for bucket, _ in batches]
        pure = [{bucket_of[item] for item in items} == {bucket} for bucket, items in batches]
        assert all(
            is_pure or is_mixed for is_pure, is_mixed in zip(pure, plan.mixed_steps(rank), strict=True)
        )
    with pytest.raises(InputError, match="rank"):
        plan.bucket_steps(world_size)


def test_a_step_after_the_last_is_refused() -> None:
    plan = plan_epoch(np.arange(20) % 3, 2, 0, 0, 2)
    with pytest.raises(IndexError, match="step 5"):
        plan.global_batch(5)
