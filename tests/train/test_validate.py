"""The held-out loss: fixed images, noise and timesteps, so that only the weights move it (issue: demo's measure)."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from refimpl.autoencoder.training import bucket_batches, centre_crops
from refimpl.diffusion.philox import Purpose, draw_key, keyed_normal
from refimpl.diffusion.schedule import sdxl_schedule, zero_terminal_snr
from refimpl.diffusion.v_prediction import v_target
from refimpl.run.config import Config
from refimpl.run.ema import ema_start
from refimpl.sample.images.picture_files import write_grid
from refimpl.train.setup.prepare import Prepared, prepare
from refimpl.train.setup.trainable import Averages
from refimpl.train.validate import MEASURING_SEED, TIMESTEPS, draw_samples, heldout_loss
from tests.tolerances import FLOAT32_ROUNDING
from tests.train import runs

Run = Callable[..., Path]


def prepared(root: Path, out: Path, **sections: dict) -> tuple[Prepared, Averages, Config]:
    sections["data"] = {"heldout": str(root / "heldout"), **sections.get("data", {})}
    config = runs.config(root, out, **sections)
    parts = prepare(config, out, runs.ALONE)
    return parts, averages_of(parts), config


def averages_of(parts: Prepared) -> Averages:
    return {part.name: ema_start(part) for part in parts.parts}


@pytest.mark.parametrize(
    ("first", "last", "timesteps"),
    [(0, 999, TIMESTEPS), (0, 199, (49, 149)), (950, 999, (974,)), (999, 999, (999,))],
)
def test_of_a_new_unet_it_is_the_mean_of_v_squared(
    first: int, last: int, timesteps: tuple[int, ...], root: Path, tmp_path: Path
) -> None:
    """A new UNet returns exactly 0, so its error is v itself, computed here from its definition."""
    diffusion = {"first_timestep": first, "last_timestep": last}
    parts, weights, _ = prepared(root, tmp_path, diffusion=diffusion)
    data, model = parts.heldout, parts.model
    assert data is not None
    squares = []
    for batch, images in zip(
        bucket_batches(data.buckets, data.bucket_of, 1),
        centre_crops(data.index, bucket_batches(data.buckets, data.bucket_of, 1)),
        strict=True,
    ):
        x0 = model.scale_shift.standardise(model.vae.encode(images))
        t = torch.tensor(timesteps)
        key = draw_key(MEASURING_SEED, data.draw_ids[batch[1]].expand(len(t)), t, Purpose.NOISE)
        eps = keyed_normal(key, tuple(x0.shape[1:]))
        alpha, sigma = zero_terminal_snr(sdxl_schedule()).at(t)
        v = v_target(x0.expand_as(eps), eps, alpha, sigma)
        squares += v.double().square().mean(dim=(1, 2, 3)).tolist()
    loss = heldout_loss(parts, weights, "reference")
    assert loss == pytest.approx(sum(squares) / len(squares), rel=FLOAT32_ROUNDING)


def test_two_calls_agree_bit_for_bit_and_touch_nothing(root: Path, tmp_path: Path) -> None:
    parts, weights, _ = prepared(root, tmp_path)
    before = {name: value.clone() for name, value in parts.model.unet.state_dict().items()}
    state = torch.get_rng_state()
    assert heldout_loss(parts, weights, "reference") == heldout_loss(parts, weights, "reference")
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in parts.model.unet.state_dict().items())
    assert all(p.grad is None for p in parts.model.unet.parameters())


def test_it_measures_the_weights_it_is_given(root: Path, tmp_path: Path) -> None:
    parts, weights, _ = prepared(root, tmp_path)
    other = {"unet": {name: value + 0.1 for name, value in weights["unet"].items()}}
    assert heldout_loss(parts, weights, "reference") != heldout_loss(parts, other, "reference")


def test_without_held_out_images_there_is_none(trained: Path, root: Path, tmp_path: Path) -> None:
    config = runs.config(root, tmp_path)
    parts = prepare(config, tmp_path, runs.ALONE)
    assert heldout_loss(parts, averages_of(parts), "reference") is None
    assert not any("heldout_loss" in row for row in runs.rows(trained))


def test_training_lowers_it(run: Run, root: Path) -> None:
    folder = run(data={"heldout": str(root / "heldout")}, train={"steps": 20, "validate_every": 20})
    losses = [row["heldout_loss"] for row in runs.rows(folder) if "heldout_loss" in row]
    assert len(losses) == 2
    assert losses[1] < losses[0]


def test_sample_grids_have_a_row_per_prompt_and_a_column_per_seed(root: Path, tmp_path: Path) -> None:
    sample = {"prompts": ["red", "blue"], "seeds": 3}
    parts, weights, config = prepared(root, tmp_path, sample=sample)
    images = draw_samples(parts, weights, config.sample)
    assert images is not None
    write_grid(images, tmp_path / "samples" / "a.png", config.sample.prompts)
    with Image.open(tmp_path / "samples" / "a.png") as image:
        assert image.size == (3 * 32 + 2 * 2, 2 * 32 + 2)
        assert json.loads(image.info["refimpl"]) == {"prompts": ["red", "blue"], "columns": 3}
