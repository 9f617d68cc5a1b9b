"""Figures over all steps since the last row, not over one."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from refimpl.train.metrics import interval
from refimpl.train.metrics.interval import Interval, peak_memory
from refimpl.train.step_plan import PlanStep
from tests.tolerances import FLOAT64_ROUNDING
from tests.train import runs


def step(root: Path, images: int, waited: float) -> PlanStep:
    stage = runs.config(root, root).all_stages()[0]
    return PlanStep(stage, 0, (32, 64), images, 4.0, [], [], waited)


def share(value: float) -> object:
    return pytest.approx(value, rel=FLOAT64_ROUNDING)


def test_it_covers_every_step_since_it_was_asked(root: Path) -> None:
    """A stall in one step of three is seen, though not in the last."""
    since = Interval(lambda bucket, rate: rate / 1000)
    for images, waited, seconds in ((4, 6.0, 8.0), (4, 0.0, 1.0), (2, 0.0, 1.0)):
        since.add(step(root, images, waited), seconds)
    found = since.take()
    assert found == {
        "images_per_second": 1.0,
        "mfu": share(0.001),
        "loader_stall": 0.6,
    }
    since.add(step(root, 4, 1.0), 2.0)
    assert since.take() == {
        "images_per_second": 2.0,
        "mfu": share(0.002),
        "loader_stall": 0.5,
    }


def test_without_a_peak_there_is_no_share_of_it(root: Path) -> None:
    since = Interval(lambda bucket, rate: None)
    since.add(step(root, 4, 0.0), 1.0)
    since.add(step(root, 4, 9.0), 1.0)  # waited for a step that was begun before
    assert since.take() == {"images_per_second": 4.0, "mfu": None, "loader_stall": 0.5}


def test_memory_is_that_of_the_process_or_of_its_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda", 1)
    assert 2**26 < peak_memory(cpu) < 2**40  # bytes, of an interpreter with torch
    kib = SimpleNamespace(ru_maxrss=3000)
    monkeypatch.setattr(interval.resource, "getrusage", lambda who: kib)
    monkeypatch.setattr(interval, "KIB", 1024)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 7 if device == gpu else 0)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    assert (peak_memory(cpu), peak_memory(gpu)) == (3000 * 1024, 7)
