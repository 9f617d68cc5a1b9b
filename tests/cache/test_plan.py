"""Which entries are lacking, and how they are cut into shards: every one once, and in step with a killed run."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from refimpl.cache.plan import Pictures, pictures_of, plan_units
from refimpl.data.index.data_set import Index
from refimpl.errors import InputError
from refimpl.run.config import Stage
from refimpl.run.stage import StageData

BUCKETS = [(8, 8), (16, 8), (8, 24)]
CELL_BYTES = 16


def pictures(count: int, seed: int) -> Pictures:
    draw = np.random.default_rng(seed)
    bucket_of = np.sort(draw.integers(0, len(BUCKETS), count))
    ids = np.arange(count)
    return Pictures(
        [str(i) for i in ids], ["" for _ in ids], ids, bucket_of, np.ones((count, 2), np.int64), BUCKETS
    )


def stage(ids: list[str], sources: list[str], draw_ids: list[int]) -> StageData:
    index = Index(
        ids=ids,
        paths=sources,  # pyright: ignore[reportArgumentType]
        widths=np.ones(len(ids), np.int64),
        heights=np.ones(len(ids), np.int64),
        captions=ids,
        tags=[],
    )
    tensors = torch.tensor(draw_ids, dtype=torch.int64), torch.ones(len(ids))
    return StageData(
        Stage(from_step=0), index, BUCKETS[:1], np.zeros(len(ids), np.int64), *tensors, None, None
    )


@given(
    count=st.integers(0, 40), variants=st.integers(1, 4), shard=st.integers(1, 600), seed=st.integers(0, 9)
)
def test_every_lacking_entry_is_in_one_unit_of_its_bucket(
    count: int, variants: int, shard: int, seed: int
) -> None:
    every = pictures(count, seed)
    where = np.where(np.random.default_rng(seed + 100).random((count, variants)) < 0.5, -1, 7)
    units = plan_units(every, where, shard, CELL_BYTES, 8)
    planned = sorted(
        (row, v) for u in units for row, v in zip(u.pictures.tolist(), u.variants.tolist(), strict=True)
    )
    assert planned == sorted(map(tuple, np.argwhere(where < 0).tolist()))
    for unit in units:
        assert {BUCKETS[every.bucket_of[row]] for row in unit.pictures} == {unit.bucket}
        entry = unit.bucket[0] * unit.bucket[1] // 64 * CELL_BYTES + 24
        assert len(unit.pictures) <= max(variants, shard // entry)


def test_a_group_that_lacks_in_full_stays_a_shard_beside_one_held_in_part() -> None:
    """As when one image of the first group has changed, and the last group was never written."""
    every = replace(pictures(9, 0), bucket_of=np.zeros(9, np.int64))
    shard = 3 * (CELL_BYTES + 24)  # three images
    where = np.array([[0], [-1], [0], [0], [0], [0], [-1], [-1], [-1]])
    units = plan_units(every, where, shard, CELL_BYTES, 8)
    assert sorted(unit.pictures.tolist() for unit in units) == [[1], [6, 7, 8]]


@given(
    count=st.integers(1, 40),
    variants=st.integers(1, 4),
    shard=st.integers(1, 600),
    kept=st.integers(0, 2**40),
)
def test_a_killed_run_leaves_the_units_of_a_run_in_peace(
    count: int, variants: int, shard: int, kept: int
) -> None:
    """Whichever whole units are there, the plan of what lacks is the others."""
    every = pictures(count, 0)
    where = np.full((count, variants), -1)
    units = plan_units(every, where, shard, CELL_BYTES, 8)
    done = [number for number in range(len(units)) if kept >> (number % 40) & 1]
    for number in done:
        where[units[number].pictures, units[number].variants] = 0
    left = plan_units(every, where, shard, CELL_BYTES, 8)
    others = [unit for number, unit in enumerate(units) if number not in done]
    assert [(u.bucket, u.pictures.tolist(), u.variants.tolist()) for u in left] == [
        (u.bucket, u.pictures.tolist(), u.variants.tolist()) for u in others
    ]


def test_an_image_of_two_stages_is_taken_once() -> None:
    one, two = stage(["a", "b"], ["x/a", "x/b"], [5, -3]), stage(["b", "c"], ["x/b", "y/c"], [-3, 9])
    found = pictures_of([one, two])
    assert (found.ids, found.sources) == (["b", "a", "c"], ["x/b", "x/a", "y/c"])
    again = replace(two, buckets=[(16, 8)])
    assert len(pictures_of([one, again])) == 4
    other = stage(["b"], ["z/b"], [-3])
    assert pictures_of([one, other, two]).sources == ["x/b", "z/b", "x/a", "y/c"]


def test_ids_that_share_a_hash_are_refused() -> None:
    with pytest.raises(InputError, match="the ids 'a' and 'b' have the same hash; rename one of them"):
        pictures_of([stage(["a", "b"], ["a", "b"], [5, 5])])
    with pytest.raises(InputError, match="nothing to encode"):
        pictures_of([stage([], [], [])])
