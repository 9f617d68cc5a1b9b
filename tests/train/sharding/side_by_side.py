"""Runs that differ in nothing but ranks and sharding, many in one group of processes, to be compared."""

from pathlib import Path
from typing import Any

import pytest
import torch

from refimpl.commands.train import parse
from refimpl.run.world import join_world, leave_world
from refimpl.train.loop import train
from refimpl.train.setup import compiled_blocks
from refimpl.train.setup.out_folder import run_folder
from refimpl.train.setup.prepare import prepare
from tests.tolerances import FLOAT32_ROUNDING
from tests.train import runs
from tests.train.processes import PATIENCE, join_ranks, start_ranks

BATCHES = 4  # micro-batches of a step, of one image each, whoever computes them


def train_each(tomls: list[str]) -> None:
    """What `refimpl train` does for each of several TOML files, without starting anew."""
    compiled_blocks.BACKEND = "aot_eager"  # graphs as inductor gets them, without its compiler
    world = join_world("cpu")
    try:
        for toml in tomls:
            torch._dynamo.reset()
            config, label = parse([toml])
            folder = run_folder(config, label, world)
            train(config, folder, prepare(config, folder, world), world)
    finally:
        leave_world(world)


def train_alike(root: Path, folder: Path, cases: dict[str, tuple[int, dict[str, Any]]]) -> dict[str, Path]:
    """Trains every case and returns the run folders by its name; cases on as many ranks share their processes.

    root   as for `runs.table`    cases  name → (ranks, sections of the settings)
    """
    folder.mkdir(exist_ok=True)
    tomls: dict[int, list[str]] = {}
    for name, (ranks, sections) in cases.items():
        shared = {"batch_size": 1, "accumulate": BATCHES // ranks, "keep_checkpoints": 0}
        sections = {**sections, "train": shared | sections.get("train", {})}
        toml = runs.write_toml(root, folder / f"{name}.toml", folder / name, **sections)
        tomls.setdefault(ranks, []).append(toml)
    for ranks, paths in tomls.items():
        output = folder / f"output-{ranks}"
        started = start_ranks(paths, ranks, output, train_each)
        codes = join_ranks(started, patience=4 * PATIENCE * len(paths))
        printed = "\n".join(path.read_text(errors="replace") for path in sorted(output.iterdir()))
        assert codes == [0] * ranks, printed
    return {name: folder / name for name in cases}


def differences(one: Path, other: Path, step: int) -> list[str]:
    """What two runs disagree in: rows of their logs, and tensors of their checkpoints after a step."""
    rows = [
        f"row {x.get('step')}: {x} against {y}"
        for x, y in zip(runs.rows(one), runs.rows(other), strict=True)
        # Each rank measures the part that it holds: their sum is as good as the whole's, but for rounding.
        if x.pop("ema_drift", 0.0) != pytest.approx(y.pop("ema_drift", 0.0), rel=FLOAT32_ROUNDING) or x != y
    ]
    return rows + runs.differing(runs.checkpoint(one, step), runs.checkpoint(other, step))
