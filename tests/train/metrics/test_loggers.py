"""Weights & Biases and TensorBoard, by stand-ins for the packages, which are optional."""

import io
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from refimpl.run.config import TrainConfig
from refimpl.train.metrics.loggers import WANDB_ID, label_of, open_writers, scalars_of, wandb_id


def test_a_continued_run_is_the_same_one_at_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[dict[str, Any]] = []
    logged: list[tuple[Any, int]] = []

    def init(**options: Any) -> Any:
        begun.append(options)
        return SimpleNamespace(log=lambda scalars, step: logged.append((scalars, step)), finish=lambda: None)

    images = SimpleNamespace(init=init, Image=lambda pixels, caption: (pixels.shape, caption))
    monkeypatch.setitem(sys.modules, "wandb", images)  # pyright: ignore
    settings = TrainConfig(wandb_project="art")
    for step in (1, 2):
        (writer,) = open_writers(settings, {"seed": 0}, tmp_path)
        writer.scalars(step, {"loss": 0.5})
        writer.samples(step, [("a\ncat", np.zeros((8, 4, 3), np.uint8))])
        writer.close()
    samples = {"samples": [((8, 4, 3), "a cat")]}
    assert logged == [({"loss": 0.5}, 1), (samples, 1), ({"loss": 0.5}, 2), (samples, 2)]
    assert begun[0] == begun[1] == {
        "project": "art", "config": {"seed": 0}, "dir": str(tmp_path), "id": wandb_id(tmp_path), "resume": "allow",
    }  # fmt: skip
    assert (tmp_path / WANDB_ID).is_file()
    (tmp_path / "other").mkdir()
    assert wandb_id(tmp_path / "other") != wandb_id(tmp_path)


@pytest.mark.parametrize(
    ("prompt", "label"),
    [
        ("red", "red"),
        ("", "(empty prompt)"),
        ("a\n b", "a b"),
        ("x" * 80, "x" * 80),
        ("x" * 81, "x" * 79 + "…"),
    ],
)
def test_a_picture_is_called_by_its_prompt(prompt: str, label: str) -> None:
    assert label_of(prompt) == label


def test_real_event_files_hold_the_samples(tmp_path: Path) -> None:
    """What TensorBoard reads of a run's folder: a picture for each prompt and step, and its pixels."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (writer,) = open_writers(TrainConfig(tensorboard=True), {}, tmp_path)
    red = np.full((8, 12, 3), (255, 0, 0), np.uint8)
    writer.samples(5, [("red", red), ("", red)])
    writer.scalars(6, {"loss": 0.5})
    writer.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"images": 0})
    events.Reload()
    assert events.Tags()["images"] == ["samples/0 red", "samples/1 (empty prompt)"]
    (image,) = events.Images("samples/0 red")
    assert (image.step, image.height, image.width) == (5, 8, 12)
    with Image.open(io.BytesIO(image.encoded_image_string)) as shown:
        assert np.array_equal(np.asarray(shown.convert("RGB")), red)
    assert events.Scalars("loss")[0].value == 0.5


def test_losses_by_timestep_are_scalars_of_their_own() -> None:
    row = {"loss": 0.5, "bucket": [1, 2], "epoch": 0, "loss_by_timestep": [0.25, None, 0.75], "note": "x"}
    assert scalars_of(row) == {
        "loss": 0.5,
        "epoch": 0,
        "loss_by_timestep/0": 0.25,
        "loss_by_timestep/2": 0.75,
    }
