"""Weights & Biases and TensorBoard, by stand-ins for the packages, which are optional."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from refimpl.run.config import TrainConfig
from refimpl.train.metrics.loggers import WANDB_ID, open_writers, scalars_of, wandb_id


def test_a_continued_run_is_the_same_one_at_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[dict[str, Any]] = []
    logged: list[tuple[Any, int]] = []

    def init(**options: Any) -> Any:
        begun.append(options)
        return SimpleNamespace(log=lambda scalars, step: logged.append((scalars, step)))

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))  # pyright: ignore
    settings = TrainConfig(wandb_project="art")
    for step in (1, 2):
        (write,) = open_writers(settings, {"seed": 0}, tmp_path)
        write(step, {"loss": 0.5})
    assert logged == [({"loss": 0.5}, 1), ({"loss": 0.5}, 2)]
    assert begun[0] == begun[1] == {
        "project": "art", "config": {"seed": 0}, "dir": str(tmp_path), "id": wandb_id(tmp_path), "resume": "allow",
    }  # fmt: skip
    assert (tmp_path / WANDB_ID).is_file()
    (tmp_path / "other").mkdir()
    assert wandb_id(tmp_path / "other") != wandb_id(tmp_path)


def test_losses_by_timestep_are_scalars_of_their_own() -> None:
    row = {"loss": 0.5, "bucket": [1, 2], "epoch": 0, "loss_by_timestep": [0.25, None, 0.75], "note": "x"}
    assert scalars_of(row) == {
        "loss": 0.5,
        "epoch": 0,
        "loss_by_timestep/0": 0.25,
        "loss_by_timestep/2": 0.75,
    }
