"""The batches see as many pictures, and the effects are what the average gains."""

from dataclasses import replace

import pytest

from refimpl.paper.trained.autoencoders import ema_and_batch
from refimpl.paper.trained.autoencoders.ema_and_batch import BATCHES, MEASURE, PREDICTED, settings


def test_batches_see_as_many_pictures_with_equal_settings():
    small, large = (settings(batch) for batch in BATCHES)
    assert small.train_steps * small.train_batch == large.train_steps * large.train_batch
    assert replace(small, train_steps=large.train_steps, train_batch=large.train_batch) == large


def test_effects_are_what_the_average_gains(monkeypatch, tmp_path):
    trained = []

    def autoencoder(pictures, config, seed, decay, folder):
        trained.append((pictures, seed))
        return config.train_batch + (0.5 if decay else 0.0)

    monkeypatch.setattr(ema_and_batch, "picture_folder", lambda *_: "pictures")
    monkeypatch.setattr(ema_and_batch, "pictures_of", lambda *_: None)
    monkeypatch.setattr(ema_and_batch, "trained_autoencoder", autoencoder)
    monkeypatch.setattr(ema_and_batch, "measure_decoder", lambda vae, *_: {"psnr": vae, "ssim": vae / 100})
    found = ema_and_batch.of_seed(7, tmp_path)[MEASURE]
    assert trained == [("pictures", 7)] * 4
    assert [found[name] for name in PREDICTED] == pytest.approx([0.5, 0.005] * 2)
    assert found["PSNR in dB of averaged weights, batch 16 less 4"] == 12
