"""Which micro-batches a rank computes, and which it only repeats."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refimpl.errors import InputError
from refimpl.run.config import TrainConfig
from refimpl.run.stage import rank_batch
from refimpl.train.batches.shares import (
    check_ranks_of_paper_plan,
    micro_batches,
    real_ranks,
    rounds,
    share_of,
)
from refimpl.train.budget.plan import largest_work
from tests.train import runs


@given(count=st.integers(1, 40), ranks=st.integers(1, 40), images=st.integers(1, 3))
def test_any_number_of_ranks_shares_the_same_micro_batches(count: int, ranks: int, images: int) -> None:
    ranks = min(ranks, count)
    items = np.arange(count * images)
    shares = [share_of(items, count, rank, ranks) for rank in range(ranks)]
    by_number = {
        rank + k * ranks: part for rank, (mine, _) in enumerate(shares) for k, part in enumerate(mine)
    }
    assert np.concatenate([by_number[j] for j in range(count)]).tolist() == items.tolist()
    assert {len(mine) + repeats for mine, repeats in shares} == {rounds(count, ranks)}  # so collectives match
    assert all(len(mine) >= 1 and repeats in (0, 1) for mine, repeats in shares)
    for k in range(rounds(count, ranks)):
        real = real_ranks(count, ranks, k)
        assert [k < len(mine) for mine, _ in shares] == [True] * real + [False] * (ranks - real)


def test_the_micro_batches_are_those_given_or_what_the_ranks_make_them() -> None:
    assert micro_batches(TrainConfig(accumulate=3), 2) == 6
    assert micro_batches(TrainConfig(accumulate=3, micro_batches=5), 2) == 5
    assert micro_batches(TrainConfig(micro_batches=4), 4) == 4
    with pytest.raises(
        InputError, match=r"train\.micro_batches 4 are fewer than the 5 ranks, .*at most 4 proc"
    ):
        micro_batches(TrainConfig(micro_batches=4), 5)


def test_the_papers_plan_needs_its_own_number_of_ranks() -> None:
    check_ranks_of_paper_plan(TrainConfig(accumulate=2), 3)
    check_ranks_of_paper_plan(TrainConfig(accumulate=2, micro_batches=6), 3)
    with pytest.raises(
        InputError, match=r"train\.micro_batches 6 would have to be 2 ranks × .* 2 = 4; use data\.pl"
    ):
        check_ranks_of_paper_plan(TrainConfig(accumulate=2, micro_batches=6), 2)


def test_estimates_and_surveys_count_what_a_rank_gets(root: Path, tmp_path: Path) -> None:
    config = runs.config(root, tmp_path, train={"micro_batches": 6, "batch_size": 5, "accumulate": 9})
    assert [largest_work(config, ranks).accumulate for ranks in (1, 2, 4, 6)] == [6, 3, 2, 1]
    stage = config.all_stages()[0]
    assert [rank_batch(config.train, stage, [], ranks) for ranks in (1, 2, 6)] == [30, 15, 5]
    for ranks in (4, 7):
        with pytest.raises(InputError, match=rf"{ranks} ranks do not share train\.micro_batches 6 evenly"):
            rank_batch(config.train, stage, [], ranks)
    plain = runs.config(root, tmp_path, train={"batch_size": 5, "accumulate": 2})
    assert rank_batch(plain.train, stage=plain.all_stages()[0], buckets=[], ranks=7) == 10
