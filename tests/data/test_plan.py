"""Epoch plans (N §4.1.2)."""

import math
from collections import Counter
from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from refimpl.conformance.adapters.reference import Reference
from refimpl.conformance.checks.data.epoch import (
    ids_of,
    left_out,
    repeated,
    unequal_steps,
    wrong_sizes,
)
from refimpl.data.buckets import PRESETS, assign
from refimpl.data.config import Mode
from refimpl.data.plan import Plan, count_steps, plan_epoch
from refimpl.data.shuffle import Stream, bits_of, shuffled
from refimpl.errors import InputError
from tests import strategies
from tests.conforming import conforms
from tests.tolerances import CHANCE, LOG_ASPECT_ROUNDING

MODES: list[Mode] = ["global", "paper"]
OF_ANY_EPOCH = ["once", "nothing_lost", "full_batches", "equal_steps", "repeats", "shuffles"]


def all_batches(plan: Plan) -> list[list[tuple[int, list[int]]]]:
    """The batches of every rank."""
    return [
        [(bucket, items.tolist()) for bucket, items in plan.batches(rank)] for rank in range(plan.world_size)
    ]


def check_batches(
    plan: Plan, ranks: list[list[tuple[int, list[int]]]], n_items: int, batch_size: int
) -> None:
    """What every trainer's epoch must be, by the measures of the conformance checks; and `dropped` is the rest."""
    assert repeated(ranks) == 0
    assert left_out(ranks, n_items) == len(plan.dropped)
    assert sorted([*ids_of(ranks), *plan.dropped.tolist()]) == list(range(n_items))
    assert wrong_sizes(ranks, batch_size) == 0
    assert unequal_steps(ranks) == 0


def planned_by(mode: Mode) -> Reference:
    """This project's adapter with a mode of its plan."""
    adapter = Reference()
    adapter.mode = mode
    return adapter


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("check", OF_ANY_EPOCH)
def test_an_epoch_is_what_every_trainers_must_be(check: str, mode: Mode) -> None:
    conforms(f"epoch.{check}", on=planned_by(mode))


def test_ranks_train_on_equal_shapes_at_every_step() -> None:
    conforms("epoch.equal_shapes", within=0)
    conforms("epoch.mixed_batches")


@pytest.mark.parametrize("mode", MODES)
@given(data=st.data(), world_size=st.integers(1, 8), batch_size=st.integers(1, 5), seed=st.integers(0, 99))
def test_what_is_dropped_is_the_rest(
    mode: Mode, data: st.DataObject, world_size: int, batch_size: int, seed: int
) -> None:
    bucket_of = data.draw(strategies.bucketed_items(least=world_size * batch_size))
    plan = plan_epoch(bucket_of, batch_size, seed, 3, world_size, mode)
    ranks = all_batches(plan)
    assert plan.dropped.tolist() == sorted(plan.dropped)
    assert sorted([*ids_of(ranks), *plan.dropped.tolist()]) == list(range(len(bucket_of)))
    assert len(plan.dropped) == len(bucket_of) % (world_size * batch_size)
    assert len(ranks[0]) == len(plan) == len(bucket_of) // (world_size * batch_size)
    assert {bucket for batches in ranks for bucket, _ in batches} <= set(bucket_of)


@given(data=st.data(), world_size=st.integers(1, 8), batch_size=st.integers(1, 5), seed=st.integers(0, 99))
def test_ranks_slice_global_batches(data: st.DataObject, world_size: int, batch_size: int, seed: int) -> None:
    bucket_of = data.draw(strategies.bucketed_items(least=world_size * batch_size))
    plan = plan_epoch(bucket_of, batch_size, seed, 0, world_size)
    alone = plan_epoch(bucket_of, world_size * batch_size, seed, 0)
    assert plan.dropped.tolist() == alone.dropped.tolist()
    for step in range(len(plan)):
        bucket, items = plan.global_batch(step)
        slices = [plan.batch(step, rank) for rank in range(world_size)]
        assert {bucket} == {rank_bucket for rank_bucket, _ in slices}
        assert items.tolist() == np.concatenate([rank_items for _, rank_items in slices]).tolist()
        assert (bucket, items.tolist()) == (alone.batch(step)[0], alone.batch(step)[1].tolist())


@given(data=st.data(), batch_size=st.integers(1, 5), seed=st.integers(0, 99))
def test_modes_agree_on_one_rank(data: st.DataObject, batch_size: int, seed: int) -> None:
    bucket_of = data.draw(strategies.bucketed_items(least=batch_size))
    plans = [plan_epoch(bucket_of, batch_size, seed, 0, mode=mode) for mode in MODES]
    assert all_batches(plans[0]) == all_batches(plans[1])
    assert plans[0].dropped.tolist() == plans[1].dropped.tolist()


def lists_as_printed(order: list[int], bucket_of: list[int], size: int) -> tuple[list, list[int]]:
    """Full batches of each bucket and the catch-all list, as N §4.1.2 describes them."""
    lists: dict[int, list[int]] = {bucket: [] for bucket in sorted(set(bucket_of))}
    for item in order:
        lists[bucket_of[item]].append(item)
    full, catch_all = [], []
    for bucket, items in lists.items():
        kept = len(items) - len(items) % size
        full += [(bucket, items[start : start + size]) for start in range(0, kept, size)]
        catch_all += items[kept:]
    return full, catch_all


@pytest.mark.parametrize("mode", MODES)
@given(data=st.data(), world_size=st.integers(1, 4), batch_size=st.integers(1, 4), seed=st.integers(0, 99))
def test_lists_are_made_as_the_paper_describes(
    mode: Mode, data: st.DataObject, world_size: int, batch_size: int, seed: int
) -> None:
    bucket_of = data.draw(strategies.bucketed_items(least=world_size * batch_size))
    plan = plan_epoch(bucket_of, batch_size, seed, 4, world_size, mode)
    order = shuffled(len(bucket_of), seed, 4, Stream.ITEMS, group_bits=bits_of(np.array(bucket_of))).tolist()
    kept = order[: len(order) // (world_size * batch_size) * world_size * batch_size]
    assert plan.dropped.tolist() == sorted(order[len(kept) :])
    if mode == "global":
        steps = [plan.global_batch(step) for step in range(len(plan))]
        planned = [(kept, world_size * batch_size, [(bucket, items.tolist()) for bucket, items in steps])]
    else:
        share = len(kept) // world_size
        ranks = all_batches(plan)
        planned = [
            (kept[rank * share : (rank + 1) * share], batch_size, ranks[rank]) for rank in range(world_size)
        ]
    for items, size, batches in planned:
        full, catch_all = lists_as_printed(items, bucket_of, size)
        mixed = [catch_all[start : start + size] for start in range(0, len(catch_all), size)]
        expected = full + [(Counter(sorted(bucket_of[i] for i in m)).most_common(1)[0][0], m) for m in mixed]
        assert sorted(batches) == sorted(expected)


def test_ranks_of_the_paper_draw_their_batches_each_by_a_stream_of_its_own() -> None:
    """In one bucket a rank's list is its share cut in order, so the steps at which the pieces come are its draw."""
    world_size, steps, size = 4, 24, 2
    plan = plan_epoch(np.zeros(world_size * steps * size, int), size, 5, 7, world_size, "paper")
    shares = shuffled(world_size * steps * size, 5, 7, Stream.ITEMS, group_bits=0).reshape(
        world_size, steps, size
    )
    drawn = []
    for rank in range(world_size):
        pieces = shares[rank].tolist()
        drawn.append([pieces.index(items.tolist()) for _, items in plan.batches(rank)])
        assert drawn[rank] == shuffled(steps, 5, 7, Stream.BATCHES, rank).tolist()
    assert len({tuple(order) for order in drawn}) == world_size


@pytest.mark.parametrize("seed", range(8))
def test_what_no_batch_has_room_for_is_drawn_by_a_stream_of_its_own(seed: int) -> None:
    """Of 35 images in batches of 6, five are left; four make a batch of the least size, and one is dropped."""
    plan = plan_epoch(np.ones(35, int), [4, 6], seed, 2)
    leftovers = shuffled(35, seed, 2, Stream.ITEMS, group_bits=1)[30:]
    assert plan.dropped.tolist() == [leftovers[shuffled(5, seed, 2, Stream.LEFTOVERS)[0]]]


@given(
    data=st.data(), world_size=st.integers(1, 3), batch_size=st.integers(1, 6), mode=st.sampled_from(MODES)
)
def test_what_fills_no_batch_of_its_bucket_fills_whole_batches_of_the_catch_all(
    data: st.DataObject, world_size: int, batch_size: int, mode: Mode
) -> None:
    """N §4.1.2: trimmed to a multiple of the batch, the lists leave a catch-all that is one too; none is dropped."""
    bucket_of = np.array(data.draw(strategies.bucketed_items(least=world_size * batch_size)))
    plan = plan_epoch(bucket_of, batch_size, 0, 0, world_size, mode)
    together = mode == "global"
    size = batch_size * world_size if together else batch_size
    for rank in range(1 if together else world_size):
        batches = global_batches(plan) if together else all_batches(plan)[rank]
        left = sum(np.bincount(bucket_of[np.concatenate([items for _, items in batches])]) % size)
        caught = [
            len(items) for (_, items), mixed in zip(batches, plan.mixed_steps(rank), strict=True) if mixed
        ]
        assert left % size == 0
        assert caught == [size] * (left // size)


@given(
    data=st.data(), world_size=st.integers(1, 3), batch_size=st.integers(1, 6), mode=st.sampled_from(MODES)
)
def test_leftovers_take_the_bucket_of_least_aspect_error(
    data: st.DataObject, world_size: int, batch_size: int, mode: Mode
) -> None:
    buckets = PRESETS["novelai_v1"]
    side = st.integers(1, 100)
    count = world_size * batch_size
    sizes = data.draw(st.lists(st.tuples(side, side), min_size=count, max_size=count + 30))
    aspects = np.array([w / h for w, h in sizes])
    bucket_aspects = np.array([w / h for w, h in buckets])
    bucket_of, _ = assign([w for w, _ in sizes], [h for _, h in sizes], buckets)
    plan = plan_epoch(bucket_of, batch_size, 0, 0, world_size, mode, aspects, bucket_aspects)
    for batches in all_batches(plan):
        for bucket, items in batches:
            together = items if mode == "paper" else None
            together = together or next(i for b, i in global_batches(plan) if set(items) <= set(i))
            errors = np.abs(np.log(aspects[together])[:, None] - np.log(bucket_aspects)).sum(0)
            assert errors[bucket] <= errors.min() + LOG_ASPECT_ROUNDING * len(together)


def global_batches(plan: Plan) -> list[tuple[int, list[int]]]:
    return [(bucket, items.tolist()) for bucket, items in map(plan.global_batch, range(len(plan)))]


def test_leftovers_of_like_aspects_meet() -> None:
    """With buckets listed wide, tall, wide, tall, joining by aspect means that no batch mixes wide with tall."""
    bucket_aspects = np.array([2.0, 0.5, 1.9, 0.6])
    bucket_of = np.array([0, 1, 2, 3])
    plan = plan_epoch(bucket_of, 2, 0, 0, aspects=bucket_aspects[bucket_of], bucket_aspects=bucket_aspects)
    assert {tuple(sorted(items)) for _, items in global_batches(plan)} == {(1, 3), (0, 2)}


def test_equal_errors_go_to_the_lowest_bucket() -> None:
    plan = plan_epoch([2, 1, 2, 1], 4, 0, 0)
    assert plan.global_batch(0)[0] == 1
    aspects = np.array([2.0, 2.0, 0.5, 0.5])
    plan = plan_epoch([1, 1, 2, 2], 4, 0, 0, aspects=aspects, bucket_aspects=[4.0, 2.0, 0.5])
    assert plan.global_batch(0)[0] == 1


@pytest.mark.parametrize("mode", MODES)
def test_plans_are_functions_of_seed_and_epoch(mode: Mode) -> None:
    bucket_of = np.arange(100) % 7
    plans = {
        (seed, epoch): plan_epoch(bucket_of, 4, seed, epoch, 2, mode) for seed in (0, 1) for epoch in (0, 1)
    }
    again = plan_epoch(bucket_of.astype(np.uint8), 4, 1, 1, 2, mode)
    assert all_batches(again) == all_batches(plans[1, 1])
    assert len({tuple(plan.dropped) for plan in plans.values()}) == 4


def test_pinned_plan() -> None:
    """These must never change: a resumed run would train on other batches."""
    plan = plan_epoch([0, 1, 2, 0, 1, 2, 0, 0, 0, 1, 1], 2, seed=1, epoch=2, world_size=2)
    assert global_batches(plan) == [(0, [0, 6, 2, 5]), (1, [4, 1, 10, 9])]
    assert plan.dropped.tolist() == [3, 7, 8]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("check", ["goes_on", "from_the_start", "nothing_after_the_end"])
def test_a_stopped_epoch_is_gone_on_with(check: str, mode: Mode) -> None:
    conforms(f"resume.{check}", on=planned_by(mode))


@pytest.mark.parametrize("mode", MODES)
def test_any_batch_can_be_asked_for(mode: Mode) -> None:
    plan = plan_epoch(np.arange(97) % 5, 3, 7, 2, 4, mode)
    whole = list(plan.batches(rank=3))
    assert [items.tolist() for _, items in plan.batches(3, start=5)] == [
        items.tolist() for _, items in whole[5:]
    ]
    assert plan.batch(4, 3)[1].tolist() == whole[4][1].tolist()
    with pytest.raises(IndexError, match="step 8 of an epoch of 8 steps"):
        plan.batch(len(plan), 3)
    with pytest.raises(IndexError, match="step -1"):
        plan.batch(-1, 3)
    with pytest.raises(InputError, match="rank 4 of world size 4"):
        plan.batch(0, 4)


def test_paper_mode_has_no_global_batch() -> None:
    with pytest.raises(InputError, match="mode paper"):
        plan_epoch([0, 0], 1, 0, 0, 2, "paper").global_batch(0)


@pytest.mark.parametrize("mode", MODES)
def test_batch_order_is_that_of_drawing_by_remaining_share(mode: Mode) -> None:
    """With buckets of 3, 2 and 1 batches, all 60 sequences of buckets are equally likely when drawn as N does."""
    bucket_of = [0, 0, 0, 1, 1, 2]
    plans = [plan_epoch(bucket_of, 1, seed, epoch, mode=mode) for seed in range(60) for epoch in range(60)]
    sequences = Counter(tuple(bucket for bucket, _ in plan.batches()) for plan in plans)
    assert len(sequences) == math.factorial(6) // (math.factorial(3) * math.factorial(2))
    assert chisquare(list(sequences.values())).pvalue > CHANCE


def test_small_buckets_last_as_long_as_large_ones() -> None:
    """With 200 batches of one bucket and 10 of another, the rare ones are spread evenly over the epoch's fifths."""
    bucket_of = [0] * 400 + [1] * 20
    fifths = Counter(
        5 * step // 210
        for epoch in range(100)
        for step, (bucket, _) in enumerate(plan_epoch(bucket_of, 2, 0, epoch).batches())
        if bucket == 1
    )
    assert sum(fifths.values()) == 1000
    assert chisquare([fifths[part] for part in range(5)]).pvalue > CHANCE


def test_every_item_is_dropped_as_often() -> None:
    counts = Counter(
        item for epoch in range(1500) for item in plan_epoch([0, 1, 1, 2, 2, 2, 2], 3, 5, epoch).dropped
    )
    assert chisquare([counts[item] for item in range(7)]).pvalue > CHANCE


@given(data=st.data(), world_size=st.integers(1, 4), seed=st.integers(0, 99))
def test_sizes_by_bucket(data: st.DataObject, world_size: int, seed: int) -> None:
    sizes = data.draw(st.lists(st.integers(1, 5), min_size=4, max_size=4))
    n = data.draw(st.integers(world_size * min(sizes), 60))
    bucket_of = data.draw(st.lists(st.integers(0, 3), min_size=n, max_size=n))
    plan = plan_epoch(bucket_of, sizes, seed, 1, world_size)
    ranks = all_batches(plan)
    seen = [item for batches in ranks for _, items in batches for item in items]
    assert sorted(seen + plan.dropped.tolist()) == list(range(n))
    assert len(plan.dropped) < world_size * min(sizes)
    for step in range(len(plan)):
        bucket, items = plan.global_batch(step)
        assert {len(ranks[rank][step][1]) for rank in range(world_size)} == {len(items) // world_size}
        if len(items) != world_size * sizes[bucket]:
            assert len(items) == world_size * min(sizes)
    leftovers = sum(bucket_of.count(b) % (world_size * sizes[b]) for b in range(4))
    smaller_or_mixed = [
        items for bucket, items in global_batches(plan)
        if len(items) != world_size * sizes[bucket] or {bucket_of[i] for i in items} != {bucket}
    ]  # fmt: skip
    assert len(smaller_or_mixed) <= leftovers // (world_size * min(sizes))


def test_equal_sizes_by_bucket_are_one_size() -> None:
    bucket_of = np.arange(50) % 3
    by_bucket, one = plan_epoch(bucket_of, [4, 4, 4], 0, 0), plan_epoch(bucket_of, 4, 0, 0)
    assert global_batches(by_bucket) == global_batches(one)


def test_too_few_items_gives_the_arithmetic() -> None:
    with pytest.raises(
        InputError, match=r"31 images are fewer .* 8 ranks × batch size 4 = 32\. Add 1 images"
    ):
        plan_epoch([0] * 31, 4, 0, 0, world_size=8)
    assert len(plan_epoch([0] * 32, 4, 0, 0, world_size=8)) == 1


@pytest.mark.parametrize(
    ("bucket_of", "options", "message"),
    [
        ([], {}, "no items"),
        ([0.5], {}, "one bucket index per item"),
        ([[0]], {}, "one bucket index per item"),
        ([-1], {}, "indices from -1"),
        ([2**16], {}, "buckets are 0 to 65535"),
        ([2], {"batch_size": [1, 1]}, "buckets are 0 to 1"),
        ([2], {"aspects": [1.0], "bucket_aspects": [1.0, 2.0]}, "buckets are 0 to 1"),
        ([0], {"batch_size": 0}, "batch size 0"),
        ([0], {"batch_size": -1}, "batch size -1"),
        ([0], {"batch_size": 1.5}, "batch size 1.5"),
        ([0], {"batch_size": [1, 0]}, "batch size"),
        ([0], {"batch_size": [1, 2], "mode": "paper"}, "need the plan mode global"),
        ([0], {"batch_size": [1, 2], "aspects": [1.0], "bucket_aspects": [1.0]}, "1 bucket aspects but 2"),
        ([0], {"world_size": 0}, "world size 0"),
        ([0], {"mode": "local"}, "unknown plan mode 'local'"),
        ([0], {"seed": 2**64}, "64 bits"),
        ([0], {"aspects": [1.0]}, "or neither"),
        ([0], {"bucket_aspects": [1.0]}, "or neither"),
        ([0], {"aspects": [1.0, 1.0], "bucket_aspects": [1.0]}, "or neither"),
        ([0], {"aspects": [0.0], "bucket_aspects": [1.0]}, "aspects: width / height must be positive"),
        ([0], {"aspects": [1.0], "bucket_aspects": [math.nan]}, "bucket_aspects: width / height"),
    ],
)
def test_impossible_plans_are_named(bucket_of: list, options: dict, message: str) -> None:
    arguments = {"batch_size": 1, "seed": 0, "epoch": 0} | options
    with pytest.raises(InputError, match=message):
        plan_epoch(bucket_of, **arguments)


def test_a_million_items_are_planned_exactly_once() -> None:
    bucket_of = (np.arange(1_000_003) * 7919 % 33).astype(np.int16)
    plan = plan_epoch(bucket_of, 8, 0, 0, world_size=256)
    seen = np.concatenate([items for _, items in map(plan.global_batch, range(len(plan)))])
    assert (np.sort(np.concatenate([seen, plan.dropped])) == np.arange(1_000_003)).all()
    pure = sum(
        (bucket_of[items] == bucket).all() for bucket, items in map(plan.global_batch, range(len(plan)))
    )
    assert pure >= len(plan) - 33
    assert [len(items) for _, items in islice(plan.batches(255), 2)] == [8, 8]


def check_plans_of_random_data_sets(data_sets: int, seed: int) -> None:
    """Every id occurs once per epoch or is dropped, and every rank has as many steps, so none waits for ever."""
    generator = np.random.default_rng(seed)
    for number in range(data_sets):
        n_buckets, n_items = int(generator.integers(1, 34)), int(generator.integers(8, 200))
        share = generator.dirichlet(np.full(n_buckets, 0.3))
        bucket_of = generator.choice(n_buckets, n_items, p=share)
        for world_size in range(1, 9):
            batch_size = int(generator.integers(1, max(2, n_items // world_size)))
            for mode in MODES:
                plan = plan_epoch(bucket_of, batch_size, number, number % 5, world_size, mode)
                ranks = all_batches(plan)
                check_batches(plan, ranks, n_items, batch_size)
                assert len(ranks[0]) == len(plan)


def test_random_data_sets_on_one_to_eight_ranks_in_both_modes() -> None:
    check_plans_of_random_data_sets(60, seed=0)


@pytest.mark.slow
def test_two_thousand_random_data_sets_on_one_to_eight_ranks_in_both_modes() -> None:
    check_plans_of_random_data_sets(2_000, seed=1)


@pytest.mark.parametrize("mode", MODES)
@given(data=st.data(), world_size=st.integers(1, 8), batch_size=st.integers(1, 5), epoch=st.integers(0, 9))
def test_steps_and_dropped_items_are_counted_without_planning(
    mode: Mode, data: st.DataObject, world_size: int, batch_size: int, epoch: int
) -> None:
    bucket_of = data.draw(strategies.bucketed_items(least=world_size * batch_size))
    plan = plan_epoch(bucket_of, batch_size, 1, epoch, world_size, mode)
    assert count_steps(bucket_of, batch_size, world_size, mode) == (len(plan), len(plan.dropped))


@given(data=st.data(), world_size=st.integers(1, 4), epoch=st.integers(0, 9))
def test_steps_are_counted_where_every_bucket_has_its_own_batch_size(
    data: st.DataObject, world_size: int, epoch: int
) -> None:
    """As under a pixel budget, with buckets that no item is in."""
    bucket_of = data.draw(strategies.bucketed_items(least=6 * world_size))
    sizes = data.draw(st.lists(st.integers(1, 6), min_size=max(bucket_of) + 1, max_size=max(bucket_of) + 3))
    plan = plan_epoch(bucket_of, sizes, 1, epoch, world_size)
    assert count_steps(bucket_of, sizes, world_size) == (len(plan), len(plan.dropped))


def test_counting_refuses_what_planning_refuses() -> None:
    for arguments in (([], 2), ([0, 0, 0], 2, 2), ([0, 1], [1, 2], 1, "paper"), ([0], 0), ([5], [1, 1])):
        messages = []
        for refused in (
            lambda arguments=arguments: count_steps(*arguments),
            lambda arguments=arguments: plan_epoch(*arguments[:2], 0, 0, *arguments[2:]),
        ):
            with pytest.raises(InputError) as error:
                refused()
            messages.append(str(error.value))
        assert messages[0] == messages[1]
