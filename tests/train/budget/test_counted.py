"""Bytes of the networks of a run: those of the published sizes, and of what is trained of them."""

import inspect
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from refimpl.run.presets import load_config
from refimpl.sample.config import SampleConfig
from refimpl.sample.images.draw import draw_images
from refimpl.text.encoders import CLIP_BIGG_PARAMETERS, CLIP_L_PARAMETERS
from refimpl.train.budget.counted import BIGG_IMAGE_TOWER, count, networks
from refimpl.train.validate import DRAWN_AT_ONCE, drawn_at_once
from tests.train import runs
from tests.train.budget.networks import counted, small

UNET_SIZE, VAE_SIZE = 2_567_463_684, 83_653_863
LABEL_EMB = 2816 * 1280 + 1280 + 1280 * 1280 + 1280  # S §2.2: the two layers that embed the vector
LORA = {"rank": 2, "alpha": 2.0}


def test_full_size_networks() -> None:
    model, parts = networks(load_config("novelai_v3"))
    assert [part.name for part in parts] == ["unet"]
    sizes = [sum(p.numel() for p in network.parameters()) for network in (model.unet, model.vae)]
    assert sizes == [UNET_SIZE, VAE_SIZE]
    assert model.encoder_l is not None
    towers = [sum(p.numel() for p in tower.parameters()) for tower in (model.encoder_l, model.encoder_g)]
    assert towers == [CLIP_L_PARAMETERS, CLIP_BIGG_PARAMETERS]
    assert all(p.device.type == "meta" for network in model.parts().values() for p in network.parameters())


def test_the_image_prompt_trains_one_layer_beside_a_tower_that_is_not_there() -> None:
    model, parts = networks(load_config("image_prompt"))
    assert sum(p.numel() for part in parts for p in part.parameters().values()) == LABEL_EMB
    assert model.image_tower is not None
    # OpenCLIP ViT-bigG/14: its patches, class and positions, 48 layers of 4 · d² + 2 · d · 8192, norms, projection.
    d, hidden, tokens = 1664, 8192, 257
    layer = 4 * d * d + 4 * d + 2 * d * hidden + hidden + d + 4 * d
    size = 3 * 14 * 14 * d + d + tokens * d + 48 * layer + 4 * d + d * 1280
    assert sum(p.numel() for p in model.image_tower.parameters()) == size


def test_an_image_tower_that_is_there_is_read(tmp_path: Path, trained: Path) -> None:
    folder = runs.write_image_tower(tmp_path / "tower")
    config = replace(
        small(init_from=str(trained)), image_prompt=replace(small().image_prompt, folder=str(folder))
    )
    tower = networks(config)[0].image_tower
    assert tower is not None
    assert tower.config.hidden_size == 16
    real = CLIPVisionModelWithProjection.from_pretrained(str(folder))
    assert sum(p.numel() for p in tower.parameters()) == sum(p.numel() for p in real.parameters())


def test_the_assumed_tower_is_a_valid_one() -> None:
    assert CLIPVisionConfig(**BIGG_IMAGE_TOWER, projection_dim=1280).hidden_size == 1664


def test_adapters_have_moments_and_the_frozen_weights_none(trained: Path) -> None:
    plain = counted(small())
    lora = replace(small(init_from=str(trained)), lora=replace(small().lora, **LORA))
    adapted = count(lora, (64, 64))
    assert adapted.trained < plain.trained / 4
    assert adapted.trained <= adapted.average < plain.average / 4  # and a number for each layer
    assert adapted.unet == plain.unet + adapted.trained
    assert adapted.step.gradients[-1] == adapted.trained
    assert adapted.step.peak(8) < plain.step.peak(8)


def test_a_refiners_held_out_images_are_measured_at_fewer_timesteps() -> None:
    """Of 64 images at once, ten timesteps of each take 60, and the two that a refiner trains all."""
    plain = replace(small(), data=replace(small().data, heldout="heldout"))
    refiner = replace(plain, diffusion=replace(plain.diffusion, last_timestep=199))
    most = [count(config, (64, 64)).measuring["held-out loss"] for config in (plain, refiner)]
    assert most[0] < most[1]


def test_trained_towers_keep_their_activations() -> None:
    plain = small()
    towers = count(replace(plain, text=replace(plain.text, learning_rate_g=1e-5)), (64, 64))
    frozen = counted(plain)
    assert towers.trained > frozen.trained
    assert towers.step.gradients[-1] == towers.trained
    assert max(towers.step.per_image) > max(frozen.step.per_image)


@pytest.mark.parametrize("learning_rate", ["learning_rate_l", "learning_rate_g"])
def test_every_trained_tower_gets_all_its_gradients(learning_rate: str) -> None:
    config = small()
    towers = count(replace(config, text=replace(config.text, **{learning_rate: 1e-5})), (64, 64))
    assert towers.step.gradients[-1] == towers.trained


def test_cached_latents_need_no_autoencoder() -> None:
    config = small()
    cached = count(replace(config, data=replace(config.data, cache="cache")), (64, 64))
    assert cached.encoding.peak(8) < counted(config).encoding.peak(8)


def test_what_is_measured_between_steps() -> None:
    config = load_config("tiny")
    unsampled = replace(config, train=replace(config.train, sample_every=0))
    assert list(count(config, (64, 64)).measuring) == ["held-out loss", "samples"]
    assert list(count(unsampled, (64, 64)).measuring) == ["held-out loss"]
    assert counted(small()).measuring == {}
    sampled = count(small(sample_every=10), (64, 64)).measuring
    assert list(sampled) == ["samples"]
    assert sampled["samples"] > 0


def test_as_many_samples_as_are_drawn_at_once() -> None:
    """Large ones one by one: so none of a run's samples needs more than its largest."""
    assert inspect.signature(draw_images).parameters["batch_size"].default == DRAWN_AT_ONCE
    sides = (64, 256, 512, 1024, 2048)
    assert [drawn_at_once(SampleConfig(width=side, height=side)) for side in sides] == [16, 16, 4, 1, 1]
    assert drawn_at_once(SampleConfig(width=832, height=1216)) == 1


def test_nothing_is_left_behind() -> None:
    """No global state changes: the mode, the random state, the number of threads."""
    before = torch.random.get_rng_state()
    count(small(), (64, 64))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.zeros(1).device.type == "cpu"
