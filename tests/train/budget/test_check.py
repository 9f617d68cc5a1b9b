"""A run on a GPU prints its memory plan, or is refused before anything is written; one on the CPU is not checked."""

from pathlib import Path

import pytest
import torch

from refimpl.commands import train
from refimpl.errors import InputError
from refimpl.run import world as worlds
from refimpl.run.world import World
from refimpl.train.budget import check
from refimpl.train.budget.cards import CARDS, Card
from tests.train import runs
from tests.train.budget.networks import small

ON_GPU = World(0, 1, torch.device("cuda", 0))


def test_nothing_is_counted_for_the_cpu(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "this_card", lambda device: pytest.fail("there is no card"))
    check.check_memory(small(), runs.ALONE)
    assert capsys.readouterr().out == ""


def test_the_plan_is_printed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "this_card", lambda device: CARDS["h100"])
    check.check_memory(small(), ON_GPU)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("GPU memory of rank 0 of 1 on NVIDIA H100 80GB HBM3: 16 images of ")
    assert lines[1] == "1 micro-batch in a step, tf32, activation checkpointing none"
    assert sum(line.endswith("← the largest") for line in lines) == 1
    names = {line[:44].strip() for line in lines[3:-2]}
    assert {"weights of the UNet", "peak of tensors", "needed", "left of the card"} <= names


def test_a_run_that_does_not_fit_leaves_nothing_behind(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "this_card", lambda device: Card("a small card", 1))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a small card")
    monkeypatch.setattr(worlds, "join_world", lambda device: ON_GPU)
    file = runs.write_toml(root, tmp_path / "run.toml", tmp_path / "run")
    with pytest.raises(InputError, match=r"a small card has 0\.0 GiB, and not even one image fits"):
        train.train_command([file])
    assert capsys.readouterr().out.startswith("device cuda:0 (a small card), backend reference, ")
    assert not (tmp_path / "run").exists()
