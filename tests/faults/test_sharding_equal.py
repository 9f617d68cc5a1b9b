"""In `ordered` reduction one process, replicate, zero1, shard and hybrid give the same bits; `fast` is close.

What is compared: every logged row (losses, gradient norms, held-out losses), weights, moments and averages, and the
pictures that are drawn on the way, which show the averages. The short form takes 4 steps on one and two ranks; the
long one (marker `faults`) 60 on one, two and four, and every composition of sharding with what else changes a step.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.tolerances import FLOAT32_ROUNDING, NETWORK_FLOAT32
from tests.train import runs
from tests.train.processes import run_ranks
from tests.train.sharding.side_by_side import BATCHES, differences, train_alike

Settings = dict[str, Any]
TWO: dict[str, tuple[int, Settings]] = {
    "replicate": (2, {}),
    "zero1": (2, {"zero1": True}),
    "shard": (2, {"sharding": "shard"}),
}
FOUR: dict[str, tuple[int, Settings]] = {
    "replicate": (4, {}),
    "zero1": (4, {"zero1": True}),
    "shard": (4, {"sharding": "shard"}),
    "hybrid": (4, {"sharding": "hybrid", "ranks_per_node": 2}),
}
TOWERS = {"towers": "tiny", "learning_rate_l": 1e-3, "learning_rate_g": 2e-3}
COMPOSED: dict[str, Settings] = {
    "compiled blocks": {"train": {"compile": "blocks"}},
    "compiled blocks computed again": {"train": {"compile": "blocks", "activation_checkpointing": "full"}},
    "cheap checkpointing": {"train": {"activation_checkpointing": "cheap"}},
    "full checkpointing": {"train": {"activation_checkpointing": "full"}},
    "kernels": {"train": {"backend": "kernel"}},
    "bf16": {"train": {"precision": "bf16"}},
    "channels last": {"train": {"channels_last": "on"}},
    "towers": {"text": TOWERS},
    "adapters": {"lora": {"rank": 2, "alpha": 2.0, "dropout": 0.2}},
    "adapters of towers alone": {
        "lora": {"rank": 2, "alpha": 2.0, "targets": [], "text_targets": ["*q_proj"]}, "text": TOWERS,
    },
    "image prompt": {"image_prompt": {"folder": "{tower}"}},
}  # fmt: skip
SMALL = ("adapters", "adapters of towers alone", "image prompt")  # parts of a finished network


def pictures(run: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted((run / "samples").iterdir())]


def disagreements(one: Path, other: Path, step: int) -> list[str]:
    drawn = [] if pictures(one) == pictures(other) else ["pictures"]
    return differences(one, other, step) + drawn


def several(
    root: Path, folder: Path, steps: int, every: int, ways: dict[str, tuple[int, Settings]]
) -> dict[str, Path]:
    """Runs of one rank and of each way in `ordered` reduction, measured and kept every so many steps."""
    shared = {"steps": steps, "validate_every": every, "sample_every": every, "checkpoint_every": every}
    cases = {
        name: (
            ranks,
            {
                "train": {"reduction": "ordered", **shared, **way},
                "data": {"heldout": str(root / "heldout")},
            },
        )
        for name, (ranks, way) in {"alone": (1, {}), **ways}.items()
    }
    return train_alike(root, folder, cases)


def test_two_ranks_give_the_bits_of_one(root: Path, tmp_path: Path, tally: Callable[..., None]) -> None:
    weights = (1, {"ema_decay": 0.0})  # whose averages are the weights
    folders = several(
        root, tmp_path, 4, 4, {"weights": weights, "zero1": TWO["zero1"], "shard": TWO["shard"]}
    )
    alone, weights = folders.pop("alone"), folders.pop("weights")
    lost = {way: found for way, other in folders.items() if (found := disagreements(alone, other, 4))}
    tally(tried=len(folders), lost=len(lost))
    assert not lost
    # The pictures show the averages: of the same weights, others are drawn.
    unet, averaged = (runs.checkpoint(run, 4)["unet"] for run in (weights, alone))
    assert not runs.differing({"x": unet}, {"x": averaged})
    assert pictures(weights) != pictures(alone)


@pytest.mark.faults
@pytest.mark.parametrize("ways", [TWO, FOUR], ids=["2 ranks", "4 ranks"])
def test_sixty_steps_give_the_bits_of_one_rank(
    ways: dict[str, tuple[int, Settings]], root: Path, tmp_path: Path, tally: Callable[..., None]
) -> None:
    folders = several(root, tmp_path, 60, 20, ways)
    alone = folders.pop("alone")
    lost = {way: found for way, other in folders.items() if (found := disagreements(alone, other, 60))}
    tally(tried=len(folders), lost=len(lost), steps=60)
    assert not lost


@pytest.mark.faults
def test_a_run_goes_on_under_another_sharding(root: Path, tmp_path: Path, tally: Callable[..., None]) -> None:
    """Two steps each way: what one sharding has written, the next reads."""
    whole = several(root, tmp_path / "whole", 6, 6, {})["alone"]
    run = tmp_path / "parts"
    data = {"heldout": str(root / "heldout")}
    for steps, (ranks, way) in zip((2, 4, 6), (TWO["shard"], TWO["zero1"], (1, {})), strict=True):
        train = {
            "reduction": "ordered", "batch_size": 1, "accumulate": BATCHES // ranks, "steps": steps,
            "checkpoint_every": 2, "validate_every": 6, "keep_checkpoints": 0, "resume": steps > 2, **way,
        }  # fmt: skip
        toml = runs.write_toml(root, tmp_path / f"{steps}.toml", run, train=train, data=data)
        assert run_ranks([toml], ranks, tmp_path / f"output-{steps}") == [0] * ranks
    lost = runs.differing(runs.checkpoint(whole, 6), runs.checkpoint(run, 6))
    tally(tried=2, lost=min(len(lost), 1))
    assert not lost


@pytest.mark.faults
def test_fast_sums_agree_to_rounding(root: Path, tmp_path: Path, tally: Callable[..., None]) -> None:
    """AdamW as good as linear in the gradient, as for DDP (tests/run/test_world.py): three steps add up roundings."""
    plain = {"epsilon": 1.0, "learning_rate": 0.1, "weight_decay": 0.0}
    cases = {
        name: (ranks, {"train": {"steps": 3, **way}, "optimizer": plain})
        for name, (ranks, way) in {"alone": (1, {}), **TWO, "hybrid": FOUR["hybrid"]}.items()
    }
    folders = train_alike(root, tmp_path, cases)
    alone = folders.pop("alone")
    lost = 0
    for name, folder in folders.items():
        one, other = runs.checkpoint(alone, 3), runs.checkpoint(folder, 3)
        losses = [[row["loss"] for row in runs.rows(run) if "loss" in row] for run in (alone, folder)]
        is_near = losses[1] == pytest.approx(losses[0], rel=NETWORK_FLOAT32)
        distance = max(runs.farthest(one[file], other[file]) for file in ("unet", "ema"))
        lost += not (is_near and distance <= FLOAT32_ROUNDING)
        assert (is_near, distance <= FLOAT32_ROUNDING) == (True, True), (name, distance, losses)
    tally(tried=len(folders), lost=lost)


@pytest.mark.faults
def test_sharding_composes_with_whatever_changes_a_step(
    root: Path, trained: Path, tmp_path: Path, tally: Callable[..., None]
) -> None:
    tower = runs.write_image_tower(tmp_path / "tower")
    cases: dict[str, tuple[int, Settings]] = {}
    for name, sections in COMPOSED.items():
        start = {"init_from": str(trained)} if name in SMALL else {}
        folder = {"image_prompt": {"folder": str(tower)}} if name == "image prompt" else {}
        for way, (ranks, sharding) in {"alone": (1, {}), **{w: TWO[w] for w in ("shard", "zero1")}}.items():
            train = {"steps": 2, "sample_every": 2, "reduction": "ordered", **start, **sharding}
            cases[f"{name}, {way}"] = (
                ranks, {**sections, **folder, "train": sections.get("train", {}) | train},
            )  # fmt: skip
    folders = train_alike(root, tmp_path, cases)
    lost = {
        f"{name}, {way}": found
        for name in COMPOSED
        for way in ("shard", "zero1")
        if (found := disagreements(folders[f"{name}, alone"], folders[f"{name}, {way}"], 2))
    }
    tally(tried=2 * len(COMPOSED), lost=len(lost))
    assert not lost
