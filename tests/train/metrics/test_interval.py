"""Figures over all steps since the last row, not over one."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from refimpl.train.metrics.interval import Interval, peak_memory
from refimpl.train.step_plan import PlanStep
from tests.train import runs


def step(root: Path, images: int, waited: float) -> PlanStep:
    stage = runs.config(root, root).all_stages()[0]
    return PlanStep(stage, 0, (32, 64), images, 4.0, [], [], waited)


def test_it_covers_every_step_since_it_was_asked(root: Path) -> None:
    """A stall in one step of three is seen, though not in the last."""
    interval = Interval(lambda bucket, rate: rate / 1000)
    for images, waited, seconds in ((4, 6.0, 8.0), (4, 0.0, 1.0), (2, 0.0, 1.0)):
        interval.add(step(root, images, waited), seconds)
    found = interval.take()
    assert found == {"images_per_second": 1.0, "mfu": pytest.approx(0.001), "loader_stall": 0.6}
    interval.add(step(root, 4, 1.0), 2.0)
    assert interval.take() == {"images_per_second": 2.0, "mfu": pytest.approx(0.002), "loader_stall": 0.5}


def test_without_a_peak_there_is_no_share_of_it(root: Path) -> None:
    interval = Interval(lambda bucket, rate: None)
    interval.add(step(root, 4, 0.0), 1.0)
    interval.add(step(root, 4, 9.0), 1.0)  # waited for a step that was begun before
    assert interval.take() == {"images_per_second": 4.0, "mfu": None, "loader_stall": 0.5}


def test_memory_is_that_of_the_process() -> None:
    code = (
        "import torch; from refimpl.train.metrics.interval import peak_memory as peak; d = torch.device('cpu');"
        "a = peak(d); x = torch.ones(2**26); del x; b = peak(d); print(b - a)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 0.8 * 2**28 <= int(done.stdout) <= 1.3 * 2**28
    assert peak_memory(torch.device("cpu")) > 2**26
