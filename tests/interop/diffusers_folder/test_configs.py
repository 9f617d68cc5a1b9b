"""config.json and scheduler_config.json: as published, as diffusers' classes read them, and what is rejected."""

import dataclasses
import json
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from hypothesis import given, settings

from refimpl.errors import InputError
from refimpl.interop.checkpoint import Prediction
from refimpl.interop.diffusers_folder.configs import (
    heads_and_activation,
    text_table,
    unet_from_table,
    unet_table,
    vae_from_table,
    vae_table,
)
from refimpl.interop.diffusers_folder.scheduler import prediction_from_table, scheduler_table
from refimpl.interop.diffusers_folder.unet_keys import unet_modules
from refimpl.interop.diffusers_folder.vae_keys import vae_to_diffusers
from refimpl.interop.network.renaming import renamed_keys
from refimpl.latents.scale_shift import NOVELAI_ANIME, SDXL_DEFAULT, ScaleShift
from refimpl.latents.vae import VAE, VAEConfig
from refimpl.model.unet import UNet, UNetConfig
from refimpl.text.encoders import clip_bigg_config, clip_l_config
from tests.strategies import predictions, unet_configs, vae_configs
from tests.train.first.holes import VAE as SDXL_VAE

# The fields in which the two published folders differ from each other or from diffusers' defaults.
BASE = {
    "_class_name": "UNet2DConditionModel",
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "attention_head_dim": [5, 10, 20],
    "block_out_channels": [320, 640, 1280],
    "cross_attention_dim": 2048,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "in_channels": 4,
    "layers_per_block": 2,
    "norm_eps": 1e-5,
    "norm_num_groups": 32,
    "out_channels": 4,
    "projection_class_embeddings_input_dim": 2816,
    "sample_size": 128,
    "transformer_layers_per_block": [1, 2, 10],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "upcast_attention": None,
    "use_linear_projection": True,
}
REFINER = {
    **BASE,
    "attention_head_dim": [6, 12, 24, 24],
    "block_out_channels": [384, 768, 1536, 1536],
    "cross_attention_dim": 1280,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "projection_class_embeddings_input_dim": 2560,
    "transformer_layers_per_block": 4,
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
}
CLIP_L = {
    "architectures": ["CLIPTextModel"],
    "hidden_act": "quick_gelu",
    "hidden_size": 768,
    "intermediate_size": 3072,
    "max_position_embeddings": 77,
    "model_type": "clip_text_model",
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "projection_dim": 768,
    "vocab_size": 49408,
}
BIGG = {
    **CLIP_L,
    "architectures": ["CLIPTextModelWithProjection"],
    "hidden_act": "gelu",
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_attention_heads": 20,
    "num_hidden_layers": 32,
    "projection_dim": 1280,
}


def through_json(table: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(table))


def test_the_published_unets_are_read_and_written() -> None:
    written = unet_table(UNetConfig.sdxl())
    assert {name: written[name] for name in BASE} == BASE
    assert unet_from_table(BASE, "test") == UNetConfig.sdxl()
    written = unet_table(UNetConfig.refiner())
    spread = {
        **REFINER,
        "transformer_layers_per_block": [1, 4, 4, 4],
    }  # a level without transformers may say any
    assert {name: written[name] for name in spread} == spread
    assert unet_from_table(REFINER, "test") == UNetConfig.refiner()


def test_the_published_autoencoder_is_read_and_written() -> None:
    written = vae_table(VAEConfig.sdxl(), SDXL_DEFAULT)
    assert {name: written[name] for name in SDXL_VAE} == SDXL_VAE
    assert written["latents_mean"] is written["latents_std"] is None
    assert vae_from_table(SDXL_VAE, "test") == (VAEConfig.sdxl(), SDXL_DEFAULT)


def test_the_published_towers_are_written() -> None:
    for config, expected in ((clip_l_config(), CLIP_L), (clip_bigg_config(), BIGG)):
        written = text_table(config, projected=expected is BIGG)
        assert {name: written[name] for name in expected} == expected
        assert heads_and_activation(written, "test") == (config.num_attention_heads, config.hidden_act)
    assert text_table(clip_l_config(), projected=False)["pad_token_id"] == 49407
    assert text_table(clip_bigg_config(), projected=True)["pad_token_id"] == 0


@settings(max_examples=12)
@given(unet_configs())
def test_diffusers_builds_the_network_that_any_table_says(config: UNetConfig) -> None:
    table = through_json(unet_table(config))
    assert unet_from_table(table, "test") == config
    with torch.device("meta"):
        theirs = UNet2DConditionModel.from_config(table).state_dict()
        ours = UNet(config).state_dict()
    names = renamed_keys(ours, unet_modules(config), "test")
    assert {names[key]: value.shape for key, value in ours.items()} == {k: v.shape for k, v in theirs.items()}


@settings(max_examples=10)
@given(vae_configs())
def test_diffusers_builds_the_autoencoder_that_any_table_says(config: VAEConfig) -> None:
    table = through_json(
        vae_table(config, ScaleShift((0.5,) * config.latent_channels, (2.0,) * config.latent_channels))
    )
    found, scale_shift = vae_from_table(table, "test")
    assert found.widths == config.widths
    assert dataclasses.replace(found, channels=config.channels, channel_mult=config.channel_mult) == config
    assert scale_shift.std == (2.0,) * config.latent_channels
    with torch.device("meta"):
        theirs = AutoencoderKL.from_config(table).state_dict()
        ours = vae_to_diffusers(VAE(config).state_dict(), config, "test")
    assert {key: value.shape for key, value in ours.items()} == {k: v.shape for k, v in theirs.items()}


def test_mean_and_std_replace_the_factor() -> None:
    table = vae_table(VAEConfig.sdxl(), NOVELAI_ANIME)
    assert table["latents_mean"] == [4.8119, 0.1607, 1.3538, -1.7753]
    assert table["latents_std"] == [9.9181, 6.2753, 7.5978, 5.9956]
    assert table["scaling_factor"] == 1


def test_a_factor_that_is_not_told_is_diffusers_own() -> None:
    bare = {key: value for key, value in SDXL_VAE.items() if key != "scaling_factor"}
    assert vae_from_table(bare, "test")[1] == ScaleShift.from_factor(0.18215)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_class_name": "UNet2DModel"}, "UNet2DModel"),
        ({"use_linear_projection": False}, "use_linear_projection is False"),
        ({"addition_embed_type": "absent"}, "addition_embed_type is None"),
        ({"time_cond_proj_dim": 256}, "time_cond_proj_dim is 256"),
        ({"class_embed_type": "timestep"}, "class_embed_type"),
        ({"act_fn": "gelu"}, "act_fn"),
        ({"down_block_types": ["DownBlock2D"] * 2}, "2 entries for 3 levels"),
        ({"down_block_types": "DownBlock2D"}, "list of block names"),
        ({"up_block_types": ["UpBlock2D"] * 3}, "reversed"),
        (
            {"down_block_types": ["AttnDownBlock2D"] * 3, "up_block_types": ["AttnUpBlock2D"] * 3},
            "not SDXL's",
        ),
        ({"transformer_layers_per_block": [[1, 1], [2, 2], [4, 4]]}, "whole numbers"),
        ({"transformer_layers_per_block": [1, 2]}, "2 entries"),
        ({"attention_head_dim": [5, 10, 10]}, "different widths"),
        ({"attention_head_dim": 7}, "different widths"),
        ({"attention_head_dim": 0}, "attention_head_dim is 0"),
        ({"block_out_channels": [320, 500, 1280], "attention_head_dim": [5, 5, 20]}, "."),
        ({"block_out_channels": []}, "block_out_channels"),
        ({"block_out_channels": None}, "block_out_channels"),
        ({"block_out_channels": [320, True, 1280]}, "block_out_channels"),
        ({"norm_num_groups": 33}, "groups = 33"),
        ({"layers_per_block": 2.0}, "layers_per_block is 2.0"),
        ({"cross_attention_dim": "absent"}, "cross_attention_dim is None"),
        ({"in_channels": -4}, "in_channels is -4"),
    ],
)
def test_other_unets_are_refused(change: dict[str, Any], message: str) -> None:
    table = {key: value for key, value in {**BASE, **change}.items() if value != "absent"}
    with pytest.raises(InputError, match=message) as caught:
        unet_from_table(table, "some/config.json")
    assert "some/config.json" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_class_name": "AutoencoderTiny"}, "AutoencoderTiny"),
        ({"act_fn": "relu"}, "act_fn"),
        ({"use_quant_conv": False}, "use_quant_conv"),
        ({"mid_block_add_attention": False}, "mid_block_add_attention"),
        ({"up_block_types": ["AttnUpDecoderBlock2D"] * 4}, "AttnUpDecoderBlock2D"),
        ({"latents_mean": [0.0] * 4}, "both"),
        ({"latents_mean": [0.0] * 3, "latents_std": [1.0] * 3}, "3 channels"),
        ({"latents_mean": "x", "latents_std": [1.0] * 3}, "mean"),
        ({"scaling_factor": 0}, "factor"),
        ({"scaling_factor": "big"}, "scaling_factor"),
        ({"shift_factor": 0.1}, "shift_factor"),
        ({"norm_num_groups": 3}, "groups = 3"),
        ({"latent_channels": 0}, "latent_channels is 0"),
    ],
)
def test_other_autoencoders_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        vae_from_table({**SDXL_VAE, **change}, "some/config.json")
    assert "some/config.json" in str(caught.value)


@pytest.mark.parametrize(
    "change", [{"model_type": "t5"}, {"hidden_act": "relu"}, {"hidden_act": 7}, {"num_attention_heads": 0}]
)
def test_other_towers_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"some/config\.json"):
        heads_and_activation({**CLIP_L, **change}, "some/config.json")


# --- scheduler ---

PUBLISHED_SCHEDULER = {
    "_class_name": "EulerDiscreteScheduler",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "interpolation_type": "linear",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "trained_betas": None,
    "use_karras_sigmas": False,
}


def test_an_eps_model_has_the_published_scheduler() -> None:
    written = scheduler_table(Prediction("eps", False, "given"))
    assert {name: written[name] for name in PUBLISHED_SCHEDULER} == PUBLISHED_SCHEDULER
    assert prediction_from_table(PUBLISHED_SCHEDULER, "test").kind == "eps"


def test_a_zero_snr_model_has_the_fields_of_spec_7_2() -> None:
    written = scheduler_table(Prediction("v", True, "given"))
    expected = {
        "prediction_type": "v_prediction",
        "rescale_betas_zero_snr": True,
        "timestep_spacing": "linspace",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "trained_betas": None,
    }
    assert {name: written[name] for name in expected} == expected


@given(predictions())
def test_every_prediction_comes_back(prediction: Prediction) -> None:
    found = prediction_from_table(through_json(scheduler_table(prediction)), "test")
    assert dataclasses.replace(found, reason="") == dataclasses.replace(prediction, reason="")
    assert "scheduler_config.json: prediction_type" in found.reason


EDM = {
    "_class_name": "EDMEulerScheduler",
    "prediction_type": "v_prediction",
    "sigma_data": 1,
    "sigma_min": 0.002,
    "sigma_max": 120,
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prediction_type": "flow_prediction"}, "flow_prediction"),
        ({"prediction_type": ["epsilon"]}, "epsilon"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "FlowMatch"),
        ({"rescale_betas_zero_snr": True}, "pure noise"),
        ({"rescale_betas_zero_snr": "yes", "prediction_type": "v_prediction"}, "not true or false"),
        ({"beta_start": 0.0001}, "beta_start is 0.0001"),
        ({"trained_betas": [0.1]}, "trained_betas"),
        ({"num_train_timesteps": 4000}, "num_train_timesteps"),
        ({"_class_name": "EDMDPMSolverMultistepScheduler"}, "sigma_data 0.5"),
        ({**EDM, "sigma_data": 0.5}, "sigma_data 0.5"),
        ({**EDM, "prediction_type": "epsilon"}, "prediction_type epsilon"),
        ({**EDM, "sigma_min": "x"}, "sigma_min is 'x'"),
        ({**EDM, "sigma_min": -1}, "sigma_min -1"),
        ({**EDM, "sigma_min": 200}, "not below sigma_max"),
    ],
)  # fmt: skip
def test_other_schedules_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        prediction_from_table({**PUBLISHED_SCHEDULER, **change}, "some/scheduler_config.json")
    assert "some/scheduler_config.json" in str(caught.value)
