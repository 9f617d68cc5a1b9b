"""Pictures are made once, the damaged ones from the clean ones; autoencoders are kept by their settings."""

import pytest
import torch

from refimpl.autoencoder.training import centre_crops
from refimpl.latents.config import LatentConfig
from refimpl.paper.trained.autoencoders import small_autoencoder as module
from refimpl.paper.trained.autoencoders.small_autoencoder import (
    picture_folder,
    pictures_of,
    trained_autoencoder,
)
from tests.paper.trained.toy import shrink

CONFIG = LatentConfig(train_steps=2, train_batch=2, train_size=16)


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    shrink(monkeypatch)


def pixels(index):
    return torch.cat(list(centre_crops(index, [((module.SIDE, module.SIDE), range(len(index)))])))


def test_jpeg_damages_the_same_pictures(tmp_path):
    clean, damaged = (picture_folder(0, tmp_path, quality) for quality in (None, 20))
    assert picture_folder(0, tmp_path) == clean
    for split, count in (("train", module.TRAIN), ("heldout", module.HELD_OUT)):
        one, other = pixels(pictures_of(clean, split)), pixels(pictures_of(damaged, split))
        assert len(one) == count
        error = (one - other).square().mean()
        assert 0 < error < 0.1 * one.square().mean()
    assert clean.name != picture_folder(1, tmp_path).name


def test_an_autoencoder_is_kept_by_its_settings(tmp_path, monkeypatch):
    pictures = picture_folder(0, tmp_path)
    averaged = trained_autoencoder(pictures, CONFIG, 0, 0.9, tmp_path).state_dict()
    last = trained_autoencoder(pictures, CONFIG, 0, 0.0, tmp_path).state_dict()
    assert any(not torch.equal(averaged[name], last[name]) for name in averaged)
    monkeypatch.setattr(module, "train_autoencoder", lambda *_: pytest.fail("trained again"))
    again = trained_autoencoder(pictures, CONFIG, 0, 0.9, tmp_path).state_dict()
    assert all(torch.equal(averaged[name], again[name]) for name in averaged)
