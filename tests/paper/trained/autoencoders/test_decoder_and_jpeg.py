"""The two decoders start from the same autoencoder and differ in the pictures that they are finetuned on."""

import pytest

from refimpl.paper.trained.autoencoders import decoder_and_jpeg
from refimpl.paper.trained.autoencoders.decoder_and_jpeg import BLOCKS, MEASURE, QUALITY


def test_the_effect_is_the_blockiness_that_clean_pictures_save(monkeypatch, tmp_path):
    calls = []

    def finetuned(first, then, seed, folder):
        calls.append((first, then, seed))
        return then

    def measured(vae, unseen, *_):
        assert unseen == ("clean", "heldout")
        return {
            "blockiness": {"clean": 1.25, "damaged": 2.0}[vae],
            "blockiness of the originals": 1.0,
            "psnr": 30.0,
        }

    monkeypatch.setattr(
        decoder_and_jpeg,
        "picture_folder",
        lambda seed, folder, quality=None: "damaged" if quality else "clean",
    )
    monkeypatch.setattr(decoder_and_jpeg, "pictures_of", lambda path, split: (path, split))
    monkeypatch.setattr(decoder_and_jpeg, "trained_autoencoder", lambda pictures, *_: pictures)
    monkeypatch.setattr(decoder_and_jpeg, "finetuned", finetuned)
    monkeypatch.setattr(decoder_and_jpeg, "measure_decoder", measured)
    found = decoder_and_jpeg.of_seed(2, tmp_path)[MEASURE]
    assert calls == [("damaged", "damaged", 2), ("damaged", "clean", 2)]
    assert found[BLOCKS] == pytest.approx(0.75)
    assert 0 < QUALITY < 50
