"""Training from a cache: the very run that the images would have given, or an error that says what is stale."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from refimpl.cache import cached_stage
from refimpl.commands.train import train_command
from refimpl.errors import InputError
from refimpl.latents.vae import VAE
from refimpl.run.visit_draws import VisitDraws
from refimpl.train.setup.prepare import prepare
from tests.data.lanczos import needs_lanczos
from tests.tolerances import BFLOAT16_LOSS, FLOAT32_ROUNDING
from tests.train import caches, runs
from tests.train.processes import run_ranks

SIX_EPOCHS = {"steps": 24, "checkpoint_every": 100, "validate_every": 24}


@pytest.fixture
def one_by_one(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Every image is encoded by itself: beside others, its last bits depend on how many they are.

    The sizes of the batches that were to be encoded.
    """
    encode, sizes = VAE.encode, []

    def alone(self: VAE, images: Tensor, tile: int | None = None) -> Tensor:
        sizes.append(len(images))
        return torch.cat([encode(self, image[None], tile) for image in images])

    monkeypatch.setattr(VAE, "encode", alone)
    return sizes


def trained(data: Path, out: Path, /, **sections: Any) -> Path:
    return runs.go(runs.config(data, out, **sections))


def repeating(crops: int) -> Any:
    """VisitDraws that show `crops` crops in turn."""

    def crop_source(self: VisitDraws, name: str, visit: int) -> Any:
        return original(self, name, visit % crops)

    original = VisitDraws.crop_source
    return crop_source


@pytest.mark.parametrize(("crops", "flips"), [(1, False), (2, True), (6, True)])
def test_training_from_a_cache_is_training_from_its_crops(
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    one_by_one: list[int],
    crops: int,
    flips: bool,
) -> None:
    """Bit for bit, catch-all batches included; with as many crops as epochs, it is training from images as it is."""
    sections: dict[str, Any] = {"data": {"horizontal_flip": flips}, "train": SIX_EPOCHS}
    options = ["--crops", str(crops), *(["--flips"] if flips else [])]
    out = caches.write(caches.toml(data, tmp_path, **sections), tmp_path / "cache", *options)
    with monkeypatch.context() as patch:
        if crops < 6:
            patch.setattr(VisitDraws, "crop_source", repeating(crops))
        images = trained(data, tmp_path / "images", **sections)
    one_by_one.clear()
    cached_data = {"horizontal_flip": flips, "cache": str(out)}
    cached = trained(data, tmp_path / "cached", data=cached_data, train=SIX_EPOCHS)
    assert runs.rows(cached) == runs.rows(images)
    assert {row["epoch"] for row in runs.rows(cached) if "epoch" in row} == set(range(6))
    assert not runs.differing(runs.checkpoint(images, 24), runs.checkpoint(cached, 24))
    assert 0 < len(one_by_one) < 12  # batches encoded: of 24, the catch-all ones alone


def test_bfloat16_latents_train_nearly_alike(data: Path, tmp_path: Path) -> None:
    out = caches.write(caches.toml(data, tmp_path), tmp_path / "cache", "--dtype", "bfloat16")
    losses = [
        [row["loss"] for row in runs.rows(run) if "loss" in row]
        for run in (
            trained(data, tmp_path / "images"),
            trained(data, tmp_path / "cached", data={"cache": str(out)}),
        )
    ]
    assert losses[0] == pytest.approx(losses[1], rel=BFLOAT16_LOSS)
    assert losses[0] != losses[1]


def test_two_ranks_train_from_a_cache(data: Path, tmp_path: Path) -> None:
    """Rank 0 finds the latents; with ordered sums two ranks end as one does."""
    sections = {"train": {"batch_size": 2, "reduction": "ordered"}}
    out = caches.write(caches.toml(data, tmp_path, **sections), tmp_path / "cache")
    arguments = [caches.toml(data, tmp_path, **sections), "--data.cache", str(out)]
    two = tmp_path / "two"
    assert run_ranks([*arguments, "--train.out", str(two)], 2, tmp_path / "ranks") == [0, 0]
    one = tmp_path / "one"
    train_command([*arguments, "--train.out", str(one), "--train.accumulate", "2"])
    assert not runs.differing(runs.checkpoint(one, 4), runs.checkpoint(two, 4))


def refused(data: Path, tmp_path: Path, cache: Path, message: str, /, **sections: Any) -> None:
    settings = dict(sections)
    settings["data"] = {"cache": str(cache), **settings.get("data", {})}
    (tmp_path / "run").mkdir(exist_ok=True)
    with pytest.raises(InputError, match=message):
        prepare(runs.config(data, tmp_path / "run", **settings), tmp_path / "run", runs.ALONE)
    assert not any((tmp_path / "run").iterdir())


@pytest.fixture
def cache(data: Path, tmp_path: Path) -> Path:
    """A cache of the copy."""
    return caches.write(caches.toml(data, tmp_path), tmp_path / "cache")


def test_missing_and_changed_images_are_named(data: Path, tmp_path: Path, cache: Path) -> None:
    Image.new("RGB", (48, 48), (1, 1, 1)).save(data / "train" / "new.png")
    (data / "train" / "new.txt").write_text("red")
    Image.new("RGB", runs.SIZES[3], (9, 8, 7)).save(data / "train" / "003.png")
    os.utime(data / "train" / "004.png", ns=(1, 1))  # touched, but the same
    refused(
        data, tmp_path, cache,
        r"does not fit these images: it lacks 1 of 19 images \(in their buckets\): new; "
        r"1 images have changed since they were encoded: 003; run `refimpl cache` again",
    )  # fmt: skip
    (data / "train" / "new.png").unlink()
    refused(data, tmp_path, cache, "1 images have changed since they were encoded: 003")
    caches.write(caches.toml(data, tmp_path), cache)
    prepare(runs.config(data, tmp_path / "run", data={"cache": str(cache)}), tmp_path / "run", runs.ALONE)


def test_an_image_that_is_gone_is_named(data: Path, tmp_path: Path, cache: Path) -> None:
    config = runs.config(data, tmp_path / "run", data={"cache": str(cache)})
    stage = config.all_stages()[0]
    from refimpl.run.stage import read_stage

    read = read_stage(config, stage)
    (data / "train" / "004.png").unlink()
    with pytest.raises(
        InputError, match=r"004.png: can't be read \(No such file or directory\) \(id '004'\)"
    ):
        cached_stage.find_latents(cached_stage.open_latents(cache), read, str(cache), runs.ALONE)


def test_other_buckets_lack_latents(data: Path, tmp_path: Path, cache: Path) -> None:
    buckets = {"max_area": 2304, "max_side": 64, "min_side": 32, "step": 8}
    refused(data, tmp_path, cache, r"it lacks 4 of 18 images \(in their buckets\): 003, 007", buckets=buckets)


def test_another_autoencoder_is_refused(data: Path, tmp_path: Path, cache: Path) -> None:
    state = load_file(data / "autoencoder.safetensors")
    save_file(state | {"quant_conv.bias": state["quant_conv.bias"] + 1}, data / "autoencoder.safetensors")
    refused(data, tmp_path, cache, "was encoded by a different autoencoder from this run's")


def test_mirrored_visits_need_mirrored_latents(data: Path, tmp_path: Path, cache: Path) -> None:
    refused(data, tmp_path, cache, "write them with `refimpl cache --flips`", data={"horizontal_flip": True})


@needs_lanczos
def test_another_decoder_is_refused(data: Path, tmp_path: Path, cache: Path) -> None:
    refused(data, tmp_path, cache, "made with data.decoder 'pillow', not 'fast'", data={"decoder": "fast"})


def test_other_captions_and_towers_are_refused(data: Path, tmp_path: Path, cache: Path) -> None:
    refused(data, tmp_path, cache, "its text states were made by other towers", text={"seed": 1})
    refused(data, tmp_path, cache, "or with another text.pooling or text.clean", text={"clean": "openclip"})
    (data / "train" / "005.txt").write_text("a caption that is new")
    refused(data, tmp_path, cache, r"lacks the captions of 1 images, which are new or have changed: 005; run")


def test_a_cache_without_text_asks_the_towers(data: Path, tmp_path: Path, one_by_one: list[int]) -> None:
    out = caches.write(caches.toml(data, tmp_path), tmp_path / "cache", "--no-text")
    with_towers = trained(data, tmp_path / "towers", data={"cache": str(out)})
    caches.write(caches.toml(data, tmp_path), out)
    assert runs.rows(trained(data, tmp_path / "text", data={"cache": str(out)})) == runs.rows(with_towers)


def test_images_left_out_of_the_cache_are_left_out_of_training(
    tmp_path: Path, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    caches.write_one_damaged(tmp_path, root)
    out = caches.write(caches.toml(tmp_path, tmp_path), tmp_path / "cache")
    capsys.readouterr()
    (tmp_path / "run").mkdir()
    config = runs.config(tmp_path, tmp_path / "run", data={"cache": str(out)})
    (stage,) = prepare(config, tmp_path / "run", runs.ALONE).stages
    assert "left out: 050: can't be decoded" in capsys.readouterr().out
    assert len(stage.index) == 100
    assert "050" not in stage.index.ids
    assert float(stage.tag_weights.mean()) == pytest.approx(1, rel=FLOAT32_ROUNDING)


def test_an_unfinished_cache_is_refused(data: Path, tmp_path: Path) -> None:
    refused(data, tmp_path, tmp_path, "holds no finished cache")
    refused(data, tmp_path, tmp_path / "nowhere", "nowhere: there is no such folder; write a cache with")
