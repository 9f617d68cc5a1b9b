"""The share of a card's peak: by hand, and absent where no peak is known."""

from pathlib import Path

import pytest
import torch

from refimpl.run.presets import load_config
from refimpl.run.world import World
from refimpl.train.budget import utilisation as measured
from refimpl.train.budget.utilisation import utilisation
from refimpl.train.log import RunLog
from tests.tolerances import FLOAT64_ROUNDING
from tests.train import runs
from tests.train.budget.networks import small

BUCKET = (1024, 1024)


def on_gpu(name: str, monkeypatch: pytest.MonkeyPatch, ranks: int = 1) -> World:
    monkeypatch.setattr(measured.torch.cuda, "get_device_name", lambda device: name)
    return World(0, ranks, torch.device("cuda", 0))


@pytest.mark.parametrize("ranks", [1, 4])
def test_by_hand(ranks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """12 images a second of 20.23 TFLOP on each H100, of 494.7 TFLOP/s in TF32."""
    world = on_gpu("NVIDIA H100 80GB HBM3", monkeypatch, ranks)
    share = utilisation(load_config("novelai_v3"), world)(BUCKET, 12.0 * ranks)
    assert share == pytest.approx(12 * 20_230_842_449_920 / 494.7e12, rel=FLOAT64_ROUNDING)


def test_none_on_cpus_unknown_cards_and_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    assert utilisation(small(), runs.ALONE)((64, 64), 1.0) is None
    assert utilisation(small(), on_gpu("NVIDIA T4", monkeypatch))((64, 64), 1.0) is None
    world = on_gpu("NVIDIA H200", monkeypatch)
    assert utilisation(small(precision="fp32"), world)((64, 64), 1.0) is None
    assert utilisation(small(), world)((64, 64), 1.0) is not None


def test_no_column_on_a_cpu(trained: Path) -> None:
    assert all("mfu" not in row for row in runs.rows(trained))


def test_the_log_has_it_on_a_known_card(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from refimpl.train.step_plan import PlanStep

    config = runs.config(root, tmp_path, train={"log_every": 1})
    log = RunLog(config, tmp_path, 0, on_gpu("NVIDIA A100-SXM4-80GB", monkeypatch))
    stage = config.all_stages()[0]
    step = PlanStep(stage, 0, (32, 64), 8, 8.0, [], [], 0.0)
    log.step(1, step, torch.tensor(1.0), 1e-3, torch.tensor(1.0), 0.0, lambda: torch.tensor(0.0))
    log.close()
    row = runs.rows(tmp_path)[0]
    assert 0 < row["mfu"] < 1
