"""A run on 256 ranks, by simulation: planned for 6 million images, divided, saved and continued on 248 (N §4)."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from refimpl.data.index.data_set import Index
from refimpl.data.loading.loader import Batch
from refimpl.data.plan import count_steps, plan_epoch
from refimpl.interop.run.checkpoints import committed_steps
from refimpl.run import data_digest
from refimpl.run.data_digest import files_digest
from refimpl.run.stage import StageData
from refimpl.run.world import World
from refimpl.train import step_plan
from refimpl.train.loop import train
from refimpl.train.quarantine import Quarantine
from refimpl.train.setup.out_folder import run_folder
from refimpl.train.setup.prepare import prepare
from refimpl.train.setup.resumed import settled
from refimpl.train.step_plan import PlanStep, plan_stage, plan_steps
from tests.tolerances import PLAN_SECONDS
from tests.train import runs

CPU = torch.device("cpu")
IMAGES = 4  # of a micro-batch


class Numbered(Sequence[str]):
    """The ids of `count` images, made when they are asked for."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, row: Any) -> Any:
        return f"{row:07d}"


@pytest.fixture
def large(
    request: pytest.FixtureRequest, root: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Any, StageData]:
    """Settings and a stage of that many images; a loader that reads none of them; no epoch is planned twice."""
    count, micro_batches = request.param
    train = {"batch_size": IMAGES, "micro_batches": micro_batches, "steps": 10**6}
    config = runs.config(root, root, train=train)
    stage = config.all_stages()[0]
    buckets = stage.buckets.sizes()
    bucket_of = np.random.default_rng(0).integers(0, len(buckets), count).astype(np.int32)
    widths, heights = (np.array(sides, np.int32)[bucket_of] for sides in zip(*buckets, strict=True))
    ids = Numbered(count)
    index = Index(ids, ids, widths, heights, Numbered(count), [{}])  # pyright: ignore
    data = StageData(
        stage, index, buckets, bucket_of, torch.arange(count), torch.ones(1).expand(count), None, None
    )

    def loaded(index: Index, batches: Sequence[Any], *_: Any, **__: Any) -> Iterator[Batch]:
        for bucket, rows in batches:
            empty = torch.empty(len(rows), 3, 0, 0, dtype=torch.uint8)
            yield Batch(empty, torch.zeros(len(rows), 6, dtype=torch.long), rows, rows, bucket)

    once = cache(lambda epoch, ranks: plan_epoch_of[0](epoch, ranks))
    plan_epoch_of: list[Callable[..., Any]] = []

    def planned(bucket_of: Any, batch: Any, seed: int, epoch: int, **options: Any) -> Any:
        plan_epoch_of[:] = [lambda epoch, ranks: plan_epoch(bucket_of, batch, seed, epoch, **options)]
        return once(epoch, options["world_size"])

    counted = cache(lambda: count_steps(bucket_of, IMAGES * micro_batches))
    monkeypatch.setattr(step_plan, "load_batches", loaded)
    monkeypatch.setattr(step_plan, "plan_epoch", planned)
    monkeypatch.setattr(step_plan, "count_steps", lambda *arguments: counted())
    return config, data


def steps_at(config: Any, data: StageData, start: int, ranks: int, folder: Path) -> list[list[PlanStep]]:
    """Two steps from `start` on, as each of the ranks sees them."""
    shortened = replace(config, train=replace(config.train, steps=start + 2))
    worlds = [World(rank, ranks, CPU) for rank in range(ranks)]
    return [list(plan_steps(shortened, [data], start, world, Quarantine(folder, world))) for world in worlds]


@pytest.mark.parametrize(
    ("large", "before", "after"),
    [
        ((60_000, 64), 32, 31),
        pytest.param((6_000_000, 512), 256, 248, marks=pytest.mark.slow),
    ],
    indirect=["large"],
)
def test_fewer_ranks_go_on_with_the_same_images(
    large: tuple[Any, StageData], before: int, after: int, tmp_path: Path
) -> None:
    config, data = large
    micro_batches = config.train.micro_batches
    started = time.process_time()
    plan = plan_stage(config.data, config.train, data, 7, World(0, before, CPU))
    assert time.process_time() - started < PLAN_SECONDS * max(1.0, len(data.index) / 1e6)
    start = 7 * len(plan) + len(plan) // 2  # in the middle of the eighth epoch
    seen = {}
    for ranks in (before, after):
        by_rank = steps_at(config, data, start, ranks, tmp_path)
        assert {len(step.batches) for steps in by_rank for step in steps} == {-(-micro_batches // ranks)}
        for number in range(2):
            steps = [steps[number] for steps in by_rank]
            micro = {
                rank + k * ranks: [int(caption) for caption in batch.captions]
                for rank, step in enumerate(steps)
                for k, batch in enumerate(step.batches)
                if not batch.is_repeat
            }
            assert sorted(micro) == list(range(micro_batches))
            bucket, items = plan.global_batch(len(plan) // 2 + number)
            assert [item for j in range(micro_batches) for item in micro[j]] == items.tolist()
            assert {(step.bucket, step.images, step.epoch) for step in steps} == {
                (data.buckets[bucket], micro_batches * IMAGES, 7)
            }
            seen[ranks, number] = micro
    assert seen[before, 0] == seen[after, 0]
    assert seen[before, 1] == seen[after, 1]


@pytest.fixture
def fake_group() -> Iterator[Callable[[int], World]]:
    """fake_group(ranks): rank 0 of a group without the other ranks; what they would send is what rank 0 does."""

    def make(ranks: int) -> World:
        if dist.is_initialized():
            dist.destroy_process_group()
        dist.init_process_group("fake", rank=0, world_size=ranks, store=FakeStore())
        return World(0, ranks, CPU)

    yield make
    dist.destroy_process_group()


def test_a_run_is_saved_on_256_ranks_and_continued_on_248(
    tmp_path: Path, fake_group: Callable[[int], World], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rank 0's share of it: DDP, the log, a checkpoint, and, on 248, two passes where there was one."""
    root = tmp_path / "data"
    runs.write_images(root / "train", 260)
    runs.write_autoencoder(root / "autoencoder.safetensors")
    # The other ranks' shares of the files cannot be read by ranks that do not exist.
    monkeypatch.setattr(data_digest, "files_digest", lambda index, how, world: files_digest(index, how))
    passes = []
    for ranks, steps in ((256, 1), (248, 2)):
        world = fake_group(ranks)
        config = runs.config(
            root, tmp_path / "run",
            buckets={"max_side": 32},
            train={"batch_size": 1, "steps": steps, "resume": ranks == 248, "reduction": "ordered"},
        )  # fmt: skip
        config = settled(config, world)
        folder = run_folder(config, "test", world)
        prepared = prepare(config, folder, world)
        (step,) = plan_steps(config, prepared.stages, steps - 1, world, Quarantine(folder, world))
        passes.append((len(step.batches), step.micro_batches, step.images))
        train(config, folder, prepared, world)
    assert passes == [(1, 256, 256), (2, 256, 256)]
    assert committed_steps(folder) == [1, 2]
    assert [row["step"] for row in runs.rows(folder) if "loss" in row] == [1, 2]
