"""Training an autoencoder, measuring its latents, and saving both (S §2.4, N App. B)."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from refimpl.autoencoder import training
from refimpl.autoencoder.training import (
    bucket_batches,
    centre_crops,
    heldout_psnr,
    measure_scale_shift,
    psnr_from_error,
    train_autoencoder,
)
from refimpl.errors import InputError
from refimpl.latents.config import LatentConfig
from refimpl.latents.scale_shift import NOVELAI_ANIME, ScaleShift
from refimpl.latents.vae import VAE, VAEConfig
from refimpl.run.config import Config
from refimpl.run.stage import StageData, read_stage
from refimpl.storage import committed
from refimpl.tables import from_table
from refimpl.train.setup.frozen_parts import frozen_parts
from tests.tolerances import FLOAT32_ROUNDING, FLOAT64_ROUNDING
from tests.train import runs

CPU = torch.device("cpu")
VAE_CONFIG = from_table(VAEConfig, runs.VAE_TABLE, "test")
SHORT = LatentConfig(train_steps=3, train_batch=4, train_size=32)


def stage(config: Config) -> StageData:
    return read_stage(config, config.all_stages()[-1])


def parts(root: Path, out: Path, **latents: Any) -> tuple[VAE, ScaleShift, dict[str, torch.Tensor]]:
    settings = {"weights": "", "train_steps": 2, "train_batch": 4, "train_size": 32, "scale_shift": "measure"}
    config = runs.config(root, out, latents=settings | latents)
    return frozen_parts(config, stage(config), CPU)


def test_training_is_a_function_of_the_seed(root: Path) -> None:
    index = stage(runs.config(root, root)).index
    state = torch.get_rng_state()
    first, again, other = (
        train_autoencoder(index, VAE_CONFIG, SHORT, seed, CPU).state_dict() for seed in (0, 0, 1)
    )
    assert torch.equal(state, torch.get_rng_state())
    assert not runs.differing({"x": first}, {"x": again})
    assert runs.differing({"x": first}, {"x": other})


def test_training_lowers_the_error(root: Path) -> None:
    data = stage(runs.config(root, root))
    before, after = (
        train_autoencoder(
            data.index, VAE_CONFIG, LatentConfig(train_steps=n, train_batch=4, train_size=32), 0, CPU
        )
        for n in (1, 60)
    )
    assert not after.training
    assert not any(p.requires_grad for p in after.parameters())
    psnr = [
        np.mean(heldout_psnr(vae, data.index, data.buckets, data.bucket_of, CPU)) for vae in (before, after)
    ]
    assert psnr[1] > psnr[0]


def test_the_loss_is_squared_error_and_kl_and_the_average_of_the_weights_is_kept(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S §2.4: composed again from what the network was asked and answered, and from the weights after each step."""
    encoded: list[tuple[Tensor, ...]] = []
    decoded: list[Tensor] = []
    losses: list[Tensor] = []
    weights: list[dict[str, Tensor]] = []
    moments, decode, backward, update = VAE.moments, VAE.decode, Tensor.backward, training.ema_update

    def moments_seen(self: VAE, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, logvar = moments(self, x)
        encoded.append((x, mean.detach(), logvar.detach()))
        if not weights:
            weights.append({name: value.clone() for name, value in self.state_dict().items()})
        return mean, logvar

    def decode_seen(self: VAE, z: Tensor) -> Tensor:
        decoded.append(decode(self, z))
        return decoded[-1]

    def backward_seen(self: Tensor) -> None:
        losses.append(self.detach())
        backward(self)

    def update_seen(average: dict[str, Tensor], vae: VAE, step: int, decay: float) -> None:
        weights.append({name: value.clone() for name, value in vae.state_dict().items()})
        update(average, vae, step, decay)

    monkeypatch.setattr(VAE, "moments", moments_seen)
    monkeypatch.setattr(VAE, "decode", decode_seen)
    monkeypatch.setattr(Tensor, "backward", backward_seen)
    monkeypatch.setattr(training, "ema_update", update_seen)
    settings = LatentConfig(train_steps=3, train_batch=4, train_size=32, kl_weight=0.1)
    trained = train_autoencoder(stage(runs.config(root, root)).index, VAE_CONFIG, settings, 0, CPU)

    assert len(losses) == len(encoded) == len(decoded) == 3
    for loss, (x, mean, logvar), restored in zip(losses, encoded, decoded, strict=True):
        assert x.shape == (4, 3, 32, 32)
        kl = (mean.double().square() + logvar.double().exp() - 1 - logvar.double()).mean() / 2
        expected = (restored.detach().double() - x.double()).square().mean() + 0.1 * kl
        assert float(loss) == pytest.approx(float(expected), rel=FLOAT32_ROUNDING)
        assert float(kl) > 0
    average = weights[0]
    for step, each in enumerate(weights[1:], start=1):
        share = 1 - min(training.EMA_DECAY, (1 + step) / (10 + step))
        average = {name: value + share * (each[name] - value) for name, value in average.items()}
    assert runs.farthest(trained.state_dict(), average) <= FLOAT32_ROUNDING
    assert runs.farthest(trained.state_dict(), weights[-1]) > 10 * FLOAT32_ROUNDING


def test_measured_statistics_standardise_the_latents(root: Path) -> None:
    """Mean 0 and variance 1 in every channel over all latent cells, computed here over all cells at once."""
    data = stage(runs.config(root, root))
    vae = train_autoencoder(data.index, VAE_CONFIG, SHORT, 0, CPU)
    scale_shift, statistics = measure_scale_shift(vae, data.index, data.buckets, data.bucket_of, CPU)
    batches = list(bucket_batches(data.buckets, data.bucket_of, 3))
    cells = [
        vae.encode(x).detach().double().transpose(0, 1).flatten(1) for x in centre_crops(data.index, batches)
    ]
    values = torch.cat(cells, dim=1)
    assert statistics.count == values.shape[1]
    standard = (values - values.mean(1, keepdim=True)) / values.std(1, keepdim=True)
    ours = scale_shift.standardise(values[None, :, :, None])[0, :, :, 0]
    torch.testing.assert_close(ours, standard, rtol=FLOAT32_ROUNDING, atol=FLOAT32_ROUNDING * 10)


def test_batches_of_buckets_hold_every_item_once() -> None:
    bucket_of = np.array([2, 0, 2, 2, 0, 2])
    batches = list(bucket_batches([(8, 8), (8, 16), (16, 8)], bucket_of, 3))
    assert [(bucket, items.tolist()) for bucket, items in batches] == [
        ((8, 8), [1, 4]), ((16, 8), [0, 2, 3]), ((16, 8), [5]),
    ]  # fmt: skip


def test_psnr() -> None:
    assert psnr_from_error(4.0) == 0
    assert psnr_from_error(0.04) == pytest.approx(20, rel=FLOAT64_ROUNDING)
    assert psnr_from_error(0.0) == 100
    assert math.isclose(psnr_from_error(1e-20), 100)


def test_what_was_made_is_read_again(root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "latents"
    made = parts(root, tmp_path / "run", folder=str(folder))
    stamp = (folder / "manifest.json").stat().st_mtime_ns
    read = parts(root, tmp_path / "run", folder=str(folder))
    assert not runs.differing({"x": made[0].state_dict()}, {"x": read[0].state_dict()})
    assert made[1] == read[1]
    assert not runs.differing({"x": made[2]}, {"x": read[2]})
    assert (folder / "manifest.json").stat().st_mtime_ns == stamp
    documents = committed.read(folder).documents
    assert documents["scale_shift"] == json.loads(made[1].to_json())
    with pytest.raises(
        InputError, match="was made with different data or settings; delete it or name another"
    ):
        parts(root, tmp_path / "run", folder=str(folder), train_steps=3)
    shutil.copytree(root, tmp_path / "data")
    (tmp_path / "data" / "train" / "000.png").unlink()
    with pytest.raises(InputError, match="was made with different data or settings"):
        parts(tmp_path / "data", tmp_path / "run", folder=str(folder))


def test_the_scale_shift_that_the_settings_name_comes_before_the_kept_one(root: Path, tmp_path: Path) -> None:
    """A preset's file may change after an autoencoder was made beside it."""
    preset, folder = tmp_path / "mine.json", str(tmp_path / "latents")
    for std in (0.5, 0.25):
        mine = ScaleShift((1.0, 2.0, 3.0, 4.0), (std,) * 4)
        preset.write_text(mine.to_json(), encoding="utf-8")
        assert parts(root, tmp_path / "run", folder=folder, scale_shift=str(preset))[1] == mine


def test_given_statistics_are_taken_as_they_are(root: Path, tmp_path: Path) -> None:
    mine = ScaleShift((1.0, 2.0, 3.0, 4.0), (0.5, 0.25, 1 / 3, 1e-3))
    (tmp_path / "mine.json").write_text(mine.to_json(), encoding="utf-8")
    assert parts(root, tmp_path / "run", scale_shift=str(tmp_path / "mine.json"))[1:] == (mine, {})
    assert parts(root, tmp_path / "run", scale_shift="novelai_anime")[1] == NOVELAI_ANIME
    (tmp_path / "bad.json").write_bytes(b"\xff")
    with pytest.raises(
        InputError, match=r"bad\.json is not text; give the \.json file that `refimpl stats` writes"
    ):
        parts(root, tmp_path / "run", scale_shift=str(tmp_path / "bad.json"))


def test_any_number_of_steps_has_a_rate(root: Path, tmp_path: Path) -> None:
    """With 20 steps, a warm-up of 5 % is a single step."""
    config = runs.config(root, tmp_path)
    data = read_stage(config, config.all_stages()[0])
    settings = LatentConfig(train_steps=20, train_batch=2, train_size=8)
    vae = train_autoencoder(data.index, VAE_CONFIG, settings, 0, CPU)
    assert all(value.isfinite().all() for value in vae.state_dict().values())
