"""Which images a rank sees at which step (N §4.1.2)."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from refimpl.data.loading.loader import SameBucket
from refimpl.data.plan import plan_epoch
from refimpl.diffusion.philox import Purpose, draw_key, sample_id
from refimpl.errors import InputError
from refimpl.run.stage import StageData, read_stage
from refimpl.run.world import World
from refimpl.train import step_plan
from refimpl.train.quarantine import Quarantine
from refimpl.train.step_plan import PlanStep, plan_steps
from tests.train import runs


def steps_of(root: Path, world: int = 1, rank: int = 0, start: int = 0, **sections: Any) -> list[PlanStep]:
    config = runs.config(root, root, **sections)
    stages = [read_stage(config, stage) for stage in config.all_stages()]
    place = World(rank, world, torch.device("cpu"))
    return list(plan_steps(config, stages, start, place, Quarantine(root, place)))


def same(a: PlanStep, b: PlanStep) -> bool:
    tensors = zip(a.batches, b.batches, strict=True)
    return (a.names, a.epoch, a.bucket, a.images) == (b.names, b.epoch, b.bucket, b.images) and all(
        torch.equal(x.images, y.images) and torch.equal(x.size_ints, y.size_ints) and x.captions == y.captions
        for x, y in tensors
    )


@pytest.mark.parametrize("workers", [1, 2])
def test_loader_processes_change_nothing(workers: int, root: Path) -> None:
    alone = steps_of(root, data={"horizontal_flip": True})
    helped = steps_of(root, data={"horizontal_flip": True, "workers": workers})
    cached = steps_of(root, data={"horizontal_flip": True, "cache_megabytes": 1})
    assert len(alone) == 4
    assert all(same(a, b) and same(a, c) for a, b, c in zip(alone, helped, cached, strict=True))


@pytest.mark.parametrize("start", [1, 4, 5, 9])
def test_the_position_is_a_function_of_the_step(start: int, root: Path) -> None:
    stages = [
        {"from_step": 0, "buckets": {**runs.BUCKETS, "max_side": 32}},
        {"from_step": 6, "buckets": runs.BUCKETS, "batch_size": 2},
    ]
    settings = {"train": {"steps": 11}, "stages": stages}
    whole, rest = steps_of(root, **settings), steps_of(root, start=start, **settings)
    assert len(whole) == 11
    assert all(same(a, b) for a, b in zip(whole[start:], rest, strict=True))
    assert [step.epoch for step in whole] == [0, 0, 0, 0, 1, 1, 2, 2, 2, 2, 2]
    assert {step.bucket for step in whole[:6]} == {(32, 32)}


def test_each_stage_trains_on_its_own_folder(root: Path, tmp_path: Path) -> None:
    """N §4: later stages have other data. Without a folder of its own, a stage has that of the run."""
    own = runs.write_images(tmp_path / "own", 6, seed=1)
    for path in sorted(own.iterdir()):
        path.rename(path.with_name(f"own-{path.name}"))
    stages = [
        {"from_step": 0, "buckets": runs.BUCKETS},
        {"from_step": 2, "buckets": runs.BUCKETS, "folder": str(own)},
        {"from_step": 4, "buckets": runs.BUCKETS},
    ]
    names = [step.names for step in steps_of(root, stages=stages, train={"steps": 6})]
    assert [{name.startswith("own-") for name in each} for each in names] == [
        {False}, {False}, {True}, {True}, {False}, {False},
    ]  # fmt: skip


def test_tags_are_shuffled_by_seed_id_and_visit(root: Path) -> None:
    """Two tags each: about half of the visits swap them, the same ones in any batch."""

    def captions(batch_size: int, **data: Any) -> dict[tuple[str, int], str]:
        steps = steps_of(root, data=data, train={"batch_size": batch_size, "steps": 36 // batch_size})
        return {
            (name, step.epoch): caption
            for step in steps
            for batch in step.batches
            for name, caption in zip(step.names, batch.captions, strict=True)
        }

    written, shuffled = captions(9), captions(9, shuffle_tags=True)
    assert shuffled == captions(9, shuffle_tags=True, workers=1)
    assert shuffled == captions(18, shuffle_tags=True)
    assert all(sorted(shuffled[key].split(", ")) == sorted(written[key].split(", ")) for key in written)
    swapped = {key for key in written if shuffled[key] != written[key]}
    assert 8 <= len(swapped) <= 28
    assert {name for name, epoch in swapped if epoch == 0} != {name for name, epoch in swapped if epoch == 1}
    assert captions(9, shuffle_tags=True, keep_first_tags=1) == written
    dropped = captions(9, tag_dropout=("colour:0.5",))
    assert dropped == captions(18, tag_dropout=("colour:0.5",))
    assert all(set(dropped[key].split(", ")) <= set(written[key].split(", ")) for key in written)
    assert 8 <= sum(dropped[key] != written[key] for key in written) <= 28
    assert captions(9, tag_dropout=("colour:0", "general:0")) == written


def test_an_epoch_sees_each_image_once_or_drops_it(root: Path) -> None:
    epoch = steps_of(root)
    counts = Counter(name for step in epoch for name in step.names)
    assert len(counts) == 16
    assert set(counts.values()) == {1}
    assert all(step.images_per_step == 4 == step.images for step in epoch)


@pytest.mark.parametrize(("world", "accumulate"), [(1, 4), (2, 2), (4, 1)])
def test_ranks_and_accumulation_slice_one_global_batch(world: int, accumulate: int, root: Path) -> None:
    """Micro-batch j of a global batch is number j = k·world + rank, whoever computes it."""
    train = {"batch_size": 1, "accumulate": accumulate}
    whole = steps_of(root, train={"batch_size": 1, "accumulate": 4})
    ranks = [steps_of(root, world, rank, train=train) for rank in range(world)]
    for step, plan_step in enumerate(whole):
        micro = [
            ranks[rank][step].batches[k].noise.tolist() for k in range(accumulate) for rank in range(world)
        ]
        assert micro == [batch.noise.tolist() for batch in plan_step.batches]


@pytest.mark.parametrize("world", [2, 3, 4])
@pytest.mark.parametrize("plan", [{"batch_size": 1}, {"pixel_budget": 2304}])
def test_other_ranks_train_on_the_same_micro_batches(world: int, plan: dict[str, int], root: Path) -> None:
    """Also where they don't divide M: a rank short of one repeats its last with weight 0, and nothing counts it."""
    train = {**plan, "micro_batches": 4, "steps": 9}
    whole = steps_of(root, train=train)
    ranks = [steps_of(root, world, rank, train=train) for rank in range(world)]
    for number, one in enumerate(whole):
        steps = [steps[number] for steps in ranks]
        assert {len(step.batches) for step in steps} == {-(-4 // world)}
        assert {
            (step.images, step.images_per_step, step.micro_batches, step.bucket, step.epoch) for step in steps
        } == {(one.images, one.images_per_step, 4, one.bucket, one.epoch)}
        real = [[batch for batch in step.batches if not batch.is_repeat] for step in steps]
        for j, batch in enumerate(one.batches):
            theirs = real[j % world][j // world]
            assert torch.equal(theirs.images, batch.images)
            assert torch.equal(theirs.noise, batch.noise)
            assert torch.equal(theirs.t, batch.t)
            assert torch.equal(theirs.weight, batch.weight)
        assert sum(map(len, real)) == 4
        assert sorted(name for step in steps for name in step.names) == sorted(one.names)
        for step, mine in zip(steps, real, strict=True):
            for repeat in step.batches[len(mine) :]:
                assert repeat.is_repeat
                assert not repeat.weight.any()
                assert torch.equal(repeat.images, mine[-1].images)


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"train": {"pixel_budget": 3 * 2048}},
        {"data": {"plan": "paper"}},
        {"stages": [
            {"from_step": 0, "buckets": {**runs.BUCKETS, "max_side": 32}},
            {"from_step": 30, "buckets": runs.BUCKETS, "batch_size": 2},
        ]},
    ],
    ids=["global", "pixel budget", "paper", "stages"],
)  # fmt: skip
@pytest.mark.parametrize("start", [0, 29, 30, 49])
def test_no_past_epoch_is_planned(
    start: int, sections: dict[str, Any], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the steps from there on are those that a run from the first step sees."""
    settings = {**sections, "train": {**sections.get("train", {}), "steps": 50}}
    whole = steps_of(root, **settings)
    planned: list[int] = []

    def counted(*arguments: Any, **options: Any) -> Any:
        planned.append(arguments[3])
        return plan_epoch(*arguments, **options)

    monkeypatch.setattr(step_plan, "plan_epoch", counted)
    rest = steps_of(root, start=start, **settings)
    assert planned == sorted({step.epoch for step in rest})
    assert len(rest) == 50 - start
    assert all(same(a, b) for a, b in zip(whole[start:], rest, strict=True))


def test_fewer_micro_batches_than_ranks_are_refused(root: Path) -> None:
    with pytest.raises(InputError, match=r"train\.micro_batches 2 are fewer than the 3 ranks"):
        steps_of(root, world=3, train={"micro_batches": 2})


def test_a_substitute_is_noised_as_the_image_it_stands_for(tmp_path: Path) -> None:
    """Picture, caption and weight are the substitute's; the draws stay those of the plan, on any rank and batch."""
    runs.write_images(tmp_path / "train", 120)
    config = runs.config(tmp_path, tmp_path, train={"steps": 30})
    data = read_stage(config, config.all_stages()[0])
    (tmp_path / "train" / "007.png").write_bytes(b"")
    rows = {name: row for row, name in enumerate(data.index.ids)}
    substitute = SameBucket(data.bucket_of)(rows["007"])[0]
    stood_for = 0
    for step in plan_steps(config, [data], 0, runs.ALONE, Quarantine(tmp_path, runs.ALONE)):
        batch = step.batches[0]
        ids = torch.tensor([sample_id(name) for name in step.names])
        assert torch.equal(batch.noise, draw_key(config.train.seed, ids, step.epoch, Purpose.NOISE))
        shown = [substitute if name == "007" else rows[name] for name in step.names]
        assert batch.captions == [data.index.captions[row] for row in shown]
        weight = config.diffusion.loss_weights()[batch.t] * data.tag_weights[shown]
        assert torch.equal(batch.weight, weight.float())
        stood_for += step.names.count("007")
    assert stood_for == 1


def test_paper_plan_gives_each_rank_its_share(root: Path) -> None:
    ranks = [
        steps_of(root, 2, rank, data={"plan": "paper"}, train={"batch_size": 2, "accumulate": 2})
        for rank in range(2)
    ]
    names = [[name for step in steps for name in step.names] for steps in ranks]
    assert len(names[0]) == len(names[1]) == 16
    assert not set(names[0][:8]) & set(names[1][:8])  # two steps of four are an epoch of 16 of the 18 images
    assert any(a.bucket != b.bucket for a, b in zip(*ranks, strict=True))


def test_by_pixel_budget_every_image_weighs_the_same(root: Path) -> None:
    """S §2.3: small buckets get larger batches; the loss is a sum over one number for the whole epoch."""
    budget = 3 * 2048
    steps = steps_of(root, train={"pixel_budget": budget, "steps": 30})
    epoch = [step for step in steps if step.epoch == 0]
    sizes = {step.bucket: max(s.images for s in epoch if s.bucket == step.bucket) for step in epoch}
    assert all(width * height * count <= budget for (width, height), count in sizes.items())
    assert len(set(sizes.values())) > 1
    per_step = {step.images_per_step for step in steps if step.epoch == 0}
    assert len(per_step) == 1
    seen = sum(step.images for step in epoch)
    assert per_step.pop() == pytest.approx(seen / len(epoch))
    assert all(sum(len(batch.captions) for batch in step.batches) == step.images for step in epoch)


def test_too_few_images_give_the_arithmetic(root: Path) -> None:
    with pytest.raises(InputError, match=r"18 images .*4 micro-batches × 6 images = 24\. Add 6 images"):
        steps_of(root, world=2, train={"batch_size": 6, "accumulate": 2})


def test_a_stage_carries_what_training_needs(root: Path) -> None:
    config = runs.config(root, root)
    data: StageData = read_stage(config, config.all_stages()[0])
    assert len(data.index) == 18
    assert data.tag_weights.mean().item() == pytest.approx(1)
    assert data.draw_ids.dtype == torch.int64
    assert len(data.draw_ids.unique()) == 18
    assert [data.buckets[b] for b in data.bucket_of[:3]] == [(64, 32), (32, 64), (48, 48)]
    assert all("colour:" not in caption for caption in data.index.captions)
