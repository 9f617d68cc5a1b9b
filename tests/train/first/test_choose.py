"""Settings of a first run, by the images and the checkpoint."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from refimpl.errors import InputError
from refimpl.latents.config import VAEConfig
from refimpl.model.config import UNetConfig
from refimpl.run.presets import load_config
from refimpl.train.first.checkpoint import Start, look_at_checkpoint
from refimpl.train.first.choose import LORA, WAYS, WHOLE, check_complete, from_checkpoint, small_from_nothing
from refimpl.train.first.images import Images, look_at_images

SDXL = Start(
    "model.safetensors", "single file", "float16", UNetConfig.sdxl(), VAEConfig.sdxl(), "sdxl", "sizes", True, "eps",
    False, "no marker",
)  # fmt: skip


def images(*sizes: tuple[int, int], uncaptioned: int = 0, left_out: tuple[str, ...] = ()) -> Images:
    widths, heights = np.array(sizes, np.int64).T
    return Images(widths, heights, uncaptioned, ("a cat", "a dog"), left_out)


def test_a_folder_is_read_as_training_reads_it(root: Path) -> None:
    found = look_at_images(str(root / "train"))
    assert (len(found), found.uncaptioned, found.left_out) == (18, 0, ())
    assert len(found.prompts) == len(set(found.prompts)) == 4
    assert found.share_of_area(48 * 48) == pytest.approx(4 / 18)


def test_captions_may_be_missing_or_empty(tmp_path: Path) -> None:
    for number in range(3):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{number}.png")
    (tmp_path / "0.txt").write_text("a cat")
    (tmp_path / "1.caption").write_text("")
    found = look_at_images(str(tmp_path))
    assert (found.uncaptioned, found.prompts) == (2, ("a cat",))


def test_from_nothing_is_the_tiny_preset_on_these_images() -> None:
    tiny = load_config("tiny")
    config, reasons = small_from_nothing(
        images((9, 9), (9, 9), uncaptioned=1, left_out=("x",)), "mine", "name"
    )
    assert (config.unet, config.vae, config.buckets) == (tiny.unet, tiny.vae, tiny.buckets)
    assert (config.data.folder, config.data.heldout, config.data.demo) == ("mine", "", False)
    assert (config.train.batch_size, config.latents.train_batch) == (2, 2)
    assert config.data.allow_missing
    assert config.sample.prompts == ("a cat", "a dog")
    assert config.latents.folder == "name-latents"
    assert reasons["data.folder"] == "2 images, 1 without a caption, 1 left out as unusable"
    assert "(2)" in reasons["train.batch_size"]
    many, reasons = small_from_nothing(images(*[(9, 9)] * 20), "mine", "name")
    assert (many.train.batch_size, many.data.allow_missing) == (tiny.train.batch_size, False)
    assert "train.batch_size" not in reasons


@pytest.mark.parametrize("way", WAYS)
def test_from_a_checkpoint(way: str) -> None:
    config, _ = from_checkpoint(images(*[(1024, 1024)] * 20), "mine", SDXL, way)
    assert (config.unet, config.text.towers, config.train.init_from) == (SDXL.unet, "sdxl", SDXL.path)
    assert (config.lora.rank > 0) == (way == LORA)
    assert (config.diffusion.parameterisation, config.diffusion.zero_terminal_snr) == ("eps", False)
    assert config.diffusion.loss_weight == "none"
    assert config.latents.scale_shift == "checkpoint"
    assert (config.buckets.max_area, config.sample.width) == (1024 * 1024, 1024)


def test_what_it_predicts_it_goes_on_predicting() -> None:
    start = replace(SDXL, parameterisation="v", zero_terminal_snr=True)
    config, _ = from_checkpoint(images((1024, 1024)), "mine", start, WHOLE)
    assert (config.diffusion.parameterisation, config.diffusion.loss_weight) == ("v", "paper")
    assert config.diffusion.zero_terminal_snr
    assert config.train.batch_size == 1


@pytest.mark.parametrize(
    ("sizes", "side"),
    [
        ([(1024, 1024)], 1024),
        ([(900, 900), (1024, 1024)], 1024),
        ([(900, 900), (800, 800), (1024, 1024)], 768),
        ([(8, 8)], 512),
    ],
)
def test_the_area_is_one_that_half_of_the_images_fill(sizes: list[tuple[int, int]], side: int) -> None:
    config, reasons = from_checkpoint(images(*sizes), "mine", SDXL, LORA)
    assert (config.buckets.max_area, config.sample.height) == (side * side, side)
    assert f"{side}×{side}" in reasons["buckets.max_area"]
    assert (side, side) in config.buckets.sizes()


def test_a_checkpoint_that_lacks_networks_is_refused_unless_they_are_named() -> None:
    config, _ = from_checkpoint(images((8, 8)), "mine", SDXL, LORA)
    check_complete(SDXL, config)
    with pytest.raises(InputError, match=r"without the text towers.*--text\.folder"):
        check_complete(replace(SDXL, has_towers=False), config)
    with pytest.raises(InputError, match=r"without an autoencoder.*--latents\.weights"):
        check_complete(replace(SDXL, vae=None), config)
    named = replace(
        config, text=replace(config.text, folder="x"), latents=replace(config.latents, weights="y")
    )
    check_complete(replace(SDXL, has_towers=False, vae=None), named)


def test_a_run_is_looked_at(trained: Path, run: Callable[..., Path]) -> None:
    start = look_at_checkpoint(str(trained))
    assert (start.kind, start.towers, start.vector, start.is_small) == ("run", "tiny", "sizes", True)
    assert (start.parameterisation, start.zero_terminal_snr, start.has_towers) == ("v", True, True)
    assert start.vae is not None
    config, _ = from_checkpoint(images((8, 8)), "mine", start, LORA)
    assert config.buckets == load_config("tiny").buckets


def test_a_network_for_no_towers_is_refused(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("refimpl.train.first.checkpoint.TOWERS", ("sdxl",))
    with pytest.raises(InputError, match="text states of 96 channels, which no towers here give"):
        look_at_checkpoint(str(trained))
