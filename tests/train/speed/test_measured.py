"""The measured speed is that of the run, and measuring leaves nothing behind."""

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest

from refimpl.errors import InputError
from refimpl.run.config import Config
from refimpl.run.presets import load_config
from refimpl.run.stage import read_stage, write_demo_data
from refimpl.run.threads import use_threads
from refimpl.train.speed.measured import _warm_up, measured_speed
from refimpl.train.speed.remembered import is_remembered
from tests.tolerances import ESTIMATED_SPEED
from tests.train import runs


def rate(run: Path, first: int) -> float:
    """Images per second of a run from a step on."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    rates = [row["images_per_second"] for row in rows if row["step"] > first and "loss" in row]
    return len(rates) / sum(1 / rate for rate in rates)


@pytest.fixture
def processor_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times are those of this process, which other programs on the machine do not lengthen."""
    monkeypatch.setattr(time, "perf_counter", time.process_time)


def test_measuring_reads_and_leaves_nothing_but_images(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With adapters and a trained tower, whose checkpoint is not here."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("refimpl.train.speed.measured.MEASURED", 5)
    train = {"init_from": "gone.safetensors", "steps": 1000, "out": ""}
    lora, text = {"rank": 2, "text_targets": ["*.self_attn.*"]}, {"learning_rate_g": 1e-4}
    config = runs.config(root, tmp_path, latents={"weights": "gone"}, train=train, lora=lora, text=text)
    assert measured_speed(config, runs.ALONE) > 0
    assert list(tmp_path.iterdir()) == []


def test_too_few_images_are_refused_as_in_training(root: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="18 images are fewer than one global batch"):
        measured_speed(runs.config(root, tmp_path / "out", train={"batch_size": 19}), runs.ALONE)


def test_a_small_data_set_is_remembered(root: Path, tmp_path: Path) -> None:
    config = runs.config(root, tmp_path, data={"cache_megabytes": 16})
    data = read_stage(config, config.all_stages()[0])
    assert is_remembered(config, data)
    assert not is_remembered(replace(config, text=replace(config.text, cached_prompts=2)), data)
    assert not is_remembered(replace(config, data=replace(config.data, workers=1)), data)
    bare = runs.config(root, tmp_path)
    assert not is_remembered(bare, read_stage(bare, bare.all_stages()[0]))


def test_the_warm_up_is_an_epoch_of_what_is_remembered(root: Path, tmp_path: Path) -> None:
    config = runs.config(root, tmp_path, data={"cache_megabytes": 16}, train={"batch_size": 2})
    data = read_stage(config, config.all_stages()[0])
    assert _warm_up(config, data, runs.ALONE) == 10  # 18 images, 2 a step, in rows of 5 steps
    bare = runs.config(root, tmp_path, train={"batch_size": 2})
    assert _warm_up(bare, read_stage(bare, bare.all_stages()[0]), runs.ALONE) == 5


def tiny(folder: Path) -> Config:
    """The tiny preset with its demo's images in a folder."""
    config = load_config("tiny")
    return replace(
        config,
        data=replace(config.data, folder=str(folder / "train"), heldout=str(folder / "heldout")),
        latents=replace(config.latents, folder=str(folder / "latents"), train_steps=2),
        train=replace(config.train, device="cpu", out=str(folder / "run"), steps=120, log_every=10),
    )


@pytest.mark.slow
@pytest.mark.usefixtures("processor_time")
def test_the_tiny_presets_speed_is_within_a_tenth_of_a_runs(tmp_path: Path) -> None:
    config = tiny(tmp_path)
    write_demo_data(config.data)
    before = measured_speed(config, runs.ALONE)
    use_threads(config.train, config.unet, config.vae)
    after_an_epoch = rate(runs.go(config), first=40)
    after = measured_speed(config, runs.ALONE)
    assert (before + after) / 2 == pytest.approx(after_an_epoch, rel=ESTIMATED_SPEED)
