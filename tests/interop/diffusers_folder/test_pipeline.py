"""diffusers' pipeline on a folder written here against our sampler: same noise, same grid, same latents."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    EulerDiscreteScheduler,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
)
from torch import Tensor

from refimpl.data.crop import conditioning_at_inference
from refimpl.diffusion.config import DiffusionConfig
from refimpl.interop import diffusers_folder
from refimpl.interop.checkpoint import Prediction
from refimpl.interop.network.architecture import Architecture
from refimpl.latents.scale_shift import NOVELAI_ANIME, SDXL_DEFAULT, ScaleShift
from refimpl.latents.vae import VAE, VAEConfig
from refimpl.model.pipeline import Model
from refimpl.model.unet import UNet, UNetConfig
from refimpl.sample.config import SampleConfig
from refimpl.sample.grids import grid_by_name
from refimpl.sample.images.draw import guided_network
from refimpl.sample.samplers import sample_by_name
from refimpl.sample.stepping import sdedit_start
from refimpl.storage.streaming import load_into
from refimpl.text.config import TextConfig
from refimpl.text.encoders import tiny_configs
from refimpl.text.tokenizer import tiny_tokenizer
from refimpl.text.towers import load_towers
from tests.interop.checkpoints import random_bits, working
from tests.tolerances import NETWORK_FLOAT32, PIPELINE_CLAMPED, PIPELINE_FLOAT32

SIDE = 64  # px
PROMPTS = ("a red circle", "a blue square and a green star on a white background, flat")
GUIDANCE = 4.0


def written(prediction: Prediction, path: Path, scale_shift: ScaleShift = SDXL_DEFAULT) -> Path:
    checkpoint = working(prediction=prediction, scale_shift=scale_shift)
    diffusers_folder.save(checkpoint, path, tokenizer=tiny_tokenizer())
    return path


def model_of(path: Path) -> Model:
    """Our model, loaded from the folder."""
    checkpoint = diffusers_folder.load(path)
    unet, vae = UNet(UNetConfig.tiny()), VAE(VAEConfig.tiny())
    load_into(unet, checkpoint.unet or {}, str(path))
    load_into(vae, checkpoint.vae or {}, str(path))
    prediction = checkpoint.prediction
    diffusion = DiffusionConfig(
        parameterisation=prediction.kind, zero_terminal_snr=prediction.zero_terminal_snr, loss_weight="none"
    )
    towers = load_towers(path)
    return Model(unet, vae, checkpoint.scale_shift, *towers, TextConfig(towers="tiny"), diffusion)


def noise(count: int) -> Tensor:
    return torch.randn(count, 4, SIDE // 8, SIDE // 8, generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def ours(
    model: Model, grid: str, sampler: str, steps: int, prompts: Sequence[str] = PROMPTS, whole: bool = False
) -> Tensor:
    """Our latents. whole: the first state is the noise itself, at whatever level the grid starts."""
    config = SampleConfig(prompts=tuple(prompts), guidance=GUIDANCE, width=SIDE, height=SIDE)
    predict_v = guided_network(model, prompts, conditioning_at_inference(SIDE, SIDE), config)
    sigmas = grid_by_name(grid, model.diffusion.schedule(), steps)
    start = noise(len(prompts))
    x = start if whole else sdedit_start(torch.zeros_like(start), start, float(sigmas[0]))
    return sample_by_name(sampler, predict_v, x, sigmas)


def pipeline(path: Path) -> StableDiffusionXLPipeline:
    pipe = StableDiffusionXLPipeline.from_pretrained(path, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def theirs(
    pipe: StableDiffusionXLPipeline, steps: int, prompts: Sequence[str] = PROMPTS, **changes
) -> Tensor:
    settings = {"height": SIDE, "width": SIDE, "guidance_scale": GUIDANCE, "output_type": "latent"}
    latents = noise(len(prompts))
    return pipe(list(prompts), num_inference_steps=steps, latents=latents, **{**settings, **changes}).images


V_ZTSNR = Prediction("v", True, "given")


@pytest.mark.parametrize("steps", [8, 28])
def test_a_zero_snr_model_draws_as_ours_does_with_nothing_to_set(steps: int, tmp_path: Path) -> None:
    """Our defaults, `euler` on `native`; diffusers starts at sigma_edm 4096 where we start at ∞."""
    path = written(V_ZTSNR, tmp_path / "folder")
    pipe = pipeline(path)
    assert type(pipe.scheduler).__name__ == "EulerDiscreteScheduler"
    expected = ours(model_of(path), "native", "euler", steps)
    assert (theirs(pipe, steps) - expected).abs().max() <= PIPELINE_CLAMPED


def test_ddim_takes_the_terminal_step_exactly(tmp_path: Path) -> None:
    """alpha is 0 in diffusers' DDIM too; its trailing grid matches ours where the number of steps divides 1000."""
    path = written(V_ZTSNR, tmp_path / "folder")
    pipe = pipeline(path)
    exact = {"timestep_spacing": "trailing", "set_alpha_to_one": True, "clip_sample": False}
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, **exact)
    assert float(pipe.scheduler.alphas_cumprod[-1]) == 0
    expected = ours(model_of(path), "trailing", "ddim", 8)
    error = (theirs(pipe, 8) - expected).abs().max()
    assert error <= PIPELINE_FLOAT32
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    assert error < (theirs(pipe, 8) - expected).abs().max() <= PIPELINE_CLAMPED


def test_an_eps_model_draws_as_ours_does(tmp_path: Path) -> None:
    """The published scheduler: leading, and starting at pure noise although the schedule does not end in it."""
    path = written(Prediction("eps", False, "given"), tmp_path / "folder")
    pipe = pipeline(path)
    expected = ours(model_of(path), "leading", "euler", 8, whole=True)
    assert (theirs(pipe, 8) - expected).abs().max() <= PIPELINE_FLOAT32 * expected.abs().max()


@pytest.mark.parametrize(
    "prediction", [Prediction("v", False, "given"), Prediction("x0", False, "given")], ids=lambda p: p.kind
)
def test_other_models_of_the_plain_schedule_do_too(prediction: Prediction, tmp_path: Path) -> None:
    path = written(prediction, tmp_path / "folder")
    expected = ours(model_of(path), "native", "euler", 8)
    assert (theirs(pipeline(path), 8) - expected).abs().max() <= PIPELINE_FLOAT32 * expected.abs().max()


@pytest.mark.parametrize("scale", [SDXL_DEFAULT, NOVELAI_ANIME], ids=["factor", "mean and std"])
def test_pictures_are_decoded_with_our_scale_and_shift(scale: ScaleShift, tmp_path: Path) -> None:
    path = written(V_ZTSNR, tmp_path / "folder", scale)
    pipe, model = pipeline(path), model_of(path)
    latents = theirs(pipe, 2, PROMPTS[:1])
    pictures = theirs(pipe, 2, PROMPTS[:1], output_type="pt")
    with torch.no_grad():
        expected = (model.vae.decode(scale.restore(latents)) / 2 + 0.5).clamp(0, 1)
    assert (pictures - expected).abs().max() <= NETWORK_FLOAT32


def test_every_scheduler_we_write_is_accepted(tmp_path: Path) -> None:
    for number, kind in enumerate(("v", "x0")):
        path = written(Prediction(kind, True, "given"), tmp_path / str(number))
        scheduler = EulerDiscreteScheduler.from_pretrained(path / "scheduler")
        scheduler.set_timesteps(28)
        assert scheduler.timesteps.tolist() == list(range(999, -1, -37))
        assert float(scheduler.sigmas[0]) == pytest.approx(4096)  # not exact: why the terminal step differs
        assert float(scheduler.sigmas[-1]) == 0
    path = written(Prediction("v", False, "given", 0.002, 120.0), tmp_path / "edm")
    scheduler = pipeline(path).scheduler
    assert type(scheduler).__name__ == "EDMEulerScheduler"
    assert (scheduler.config.sigma_min, scheduler.config.sigma_max) == (0.002, 120.0)


def test_the_refiner_s_pipeline_runs(tmp_path: Path) -> None:
    config = dataclasses.replace(UNetConfig.tiny(), context_dim=64, vector_dim=64 + 5 * 256)
    shape = Architecture(config, VAEConfig.tiny(), None, tiny_configs()[1])
    empty = random_bits(shape, 0, (torch.float32,))
    torch.manual_seed(0)
    unet, whole = UNet(config).state_dict(), working()
    checkpoint = dataclasses.replace(empty, unet=unet, vae=whole.vae, text_g=whole.text_g)
    diffusers_folder.save(checkpoint, tmp_path / "folder", tokenizer=tiny_tokenizer())
    pipe = StableDiffusionXLImg2ImgPipeline.from_pretrained(tmp_path / "folder", local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    assert pipe.text_encoder is None
    picture = torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    drawn = pipe("a red circle", image=picture, num_inference_steps=4, strength=0.5, output_type="pt").images
    assert drawn.shape == picture.shape
    assert drawn.isfinite().all()


def test_without_a_tokenizer_the_pipeline_takes_one(tmp_path: Path) -> None:
    diffusers_folder.save(working(prediction=V_ZTSNR), tmp_path / "bare")
    whole = pipeline(written(V_ZTSNR, tmp_path / "folder"))
    pipe = StableDiffusionXLPipeline.from_pretrained(
        tmp_path / "bare", tokenizer=whole.tokenizer, tokenizer_2=whole.tokenizer_2, local_files_only=True
    )
    pipe.set_progress_bar_config(disable=True)
    assert torch.equal(theirs(pipe, 2), theirs(whole, 2))
