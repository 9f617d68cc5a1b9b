"""Prompts to images: what an image depends on, and what it does not (N §2.3, §5)."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from refimpl.data.crop import SizeInts
from refimpl.diffusion.philox import Purpose, draw_key, keyed_normal, sample_id
from refimpl.diffusion.schedule import zero_terminal_snr
from refimpl.errors import InputError
from refimpl.interop.run.run_folder import load_model
from refimpl.model.pipeline import Model
from refimpl.sample.config import SampleConfig
from refimpl.sample.grids import canvas, native
from refimpl.sample.guidance import cfg
from refimpl.sample.images.draw import draw_images
from refimpl.sample.images.guided_network import guided_network
from refimpl.sample.samplers import SAMPLERS, euler
from refimpl.text.conditioning import encode_prompts, vector_conditioning
from tests.tolerances import NETWORK_FLOAT32

LONG = " ".join(["blue"] * 90)
CONFIG = SampleConfig(
    prompts=("red circle", "dark square", "red circle"), seeds=2, steps=3, width=32, height=48, guidance=4.0
)


@pytest.fixture(scope="module")
def model(trained: Path) -> Model:
    """The trained model with its network scaled up: after so few steps it would otherwise draw only noise."""
    model, _, _ = load_model(trained)
    with torch.no_grad():
        model.unet.out[2].weight.normal_(0, 0.2, generator=torch.Generator().manual_seed(0))
    return model


def test_images_have_their_shape_and_range(model: Model) -> None:
    images = draw_images(model, CONFIG)
    assert images.shape == (3, 2, 3, 48, 32)
    assert images.dtype == torch.float32
    assert 0 <= images.min() < images.max() <= 1


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_same_settings_draw_the_same_bits(sampler: str, model: Model) -> None:
    config = replace(CONFIG, sampler=sampler)
    images = draw_images(model, config)
    assert torch.equal(images, draw_images(model, config))
    assert torch.equal(images[0], images[2])  # the same prompt twice
    assert not torch.equal(images[0, 0], images[0, 1])
    assert not torch.equal(images, draw_images(model, replace(config, seed=1)))


@pytest.mark.parametrize("sampler", ["euler", "euler_ancestral"])
def test_an_image_depends_on_neither_batch_nor_other_prompts(sampler: str, model: Model) -> None:
    """A long prompt must not lengthen the context of a short one."""
    config = replace(CONFIG, prompts=("red circle", LONG, "dark square"), sampler=sampler)
    images = draw_images(model, config)
    for batch_size in (1, 4, 5):
        assert close(draw_images(model, config, batch_size=batch_size), images)
    for row, prompt in enumerate(config.prompts):
        assert close(draw_images(model, replace(config, prompts=(prompt,)))[0], images[row])
    assert close(draw_images(model, replace(config, seeds=1))[:, 0], images[:, 0])


def test_drawing_is_noise_grid_guided_network_sampler_and_decoder(model: Model) -> None:
    config = replace(CONFIG, prompts=("red circle",), seeds=1)
    key = draw_key(config.seed, torch.tensor([sample_id("red circle")]), 0, Purpose.INIT_NOISE)
    noise = keyed_normal(key, (4, 6, 4))
    predict_v = guided_network(model, ["red circle"], SizeInts(48, 32, 0, 0, 48, 32), config)
    x0 = euler(predict_v, noise, native(model.diffusion.schedule(), 3))
    with torch.no_grad():
        picture = model.vae.decode(model.scale_shift.restore(x0)) / 2 + 0.5
    assert torch.equal(draw_images(model, config)[0, 0], picture.clamp(0, 1)[0])


@pytest.mark.parametrize("null", ["zeros", "empty"])
@torch.no_grad()
def test_guidance_is_cfg_of_the_two_predictions(null: str, model: Model) -> None:
    model = replace(model, text=replace(model.text, null=null))
    size, x = (
        SizeInts(48, 32, 0, 0, 48, 32),
        torch.randn(2, 4, 6, 4, generator=torch.Generator().manual_seed(1)),
    )
    prompts = ["red circle", LONG]
    predict_v = guided_network(model, prompts, size, CONFIG)
    schedule = model.diffusion.schedule()
    sizes = torch.tensor([size] * 2)
    context, pooled = encode_prompts(prompts, model.tokenizer, model.encoder_l, model.encoder_g)
    null_context, null_pooled = model.null_condition()
    for t in (0, 500, 999):
        ts = torch.full((2,), t)
        cond = model.unet(x, ts, context, vector_conditioning(pooled, sizes))
        uncond = model.unet(
            x, ts, null_context.repeat(2, 2, 1), vector_conditioning(null_pooled.repeat(2, 1), sizes)
        )
        v = predict_v(x, schedule.sigma_edm[t])
        torch.testing.assert_close(
            v, cfg(cond, uncond, CONFIG.guidance), rtol=NETWORK_FLOAT32, atol=NETWORK_FLOAT32
        )


def test_without_guidance_the_network_runs_once_a_step(model: Model) -> None:
    calls = []
    handle = model.unet.register_forward_hook(lambda *_: calls.append(1))
    draw_images(model, replace(CONFIG, guidance=1.0))
    assert len(calls) == 3
    calls.clear()
    draw_images(model, CONFIG)
    assert len(calls) == 6
    handle.remove()


def test_the_first_call_gets_pure_noise_at_the_last_timestep(model: Model) -> None:
    """N App. A.1: at ∞ the network's input is the noise itself, bit for bit, and its timestep 999, the last."""
    seen = []
    hook = lambda _, arguments: seen.append((arguments[0].clone(), arguments[1].clone()))  # noqa: E731
    handle = model.unet.register_forward_pre_hook(hook)
    draw_images(model, replace(CONFIG, prompts=("red circle",), guidance=1.0))
    handle.remove()
    ids = torch.full((2,), sample_id("red circle"))
    noise = keyed_normal(draw_key(CONFIG.seed, ids, torch.arange(2), Purpose.INIT_NOISE), (4, 6, 4))
    assert torch.equal(seen[0][0], noise)
    assert (seen[0][1] == len(model.diffusion.schedule().sigma_edm) - 1).all()
    assert [float(t[0]) for _, t in seen] == [999, 499.5, 0]


def test_a_finite_start_hands_the_network_that_level(model: Model) -> None:
    """The first input is noise of variance sigma², sigma < 1, at the timestep of the level (N Fig. 6)."""
    seen = []
    hook = lambda _, arguments: seen.append((arguments[0].clone(), arguments[1].clone()))  # noqa: E731
    handle = model.unet.register_forward_pre_hook(hook)
    infinite = draw_images(model, CONFIG)
    finite = draw_images(model, CONFIG, start_sigma=1.5)
    handle.remove()
    assert not torch.equal(infinite, finite)
    noise, x = seen[0][0], seen[6][0]
    assert (seen[0][1] == 999).all()
    torch.testing.assert_close(x, noise * (1.5**2 / (1 + 1.5**2)) ** 0.5, rtol=NETWORK_FLOAT32, atol=0)
    sigma = zero_terminal_snr(model.diffusion.schedule()).t_to_sigma_edm(seen[6][1])
    torch.testing.assert_close(sigma, torch.full_like(sigma, 1.5))


@pytest.mark.parametrize("terminal", ["20000", "4518.7637", "4096"])
def test_a_terminal_level_is_the_last_timestep_at_that_level(terminal: str, model: Model) -> None:
    """N App. A.2: the first network call is that of ∞ but for the level, all others are at the grid's own levels."""
    seen = []
    hook = lambda _, arguments: seen.append((arguments[0].clone(), arguments[1].clone()))  # noqa: E731
    handle = model.unet.register_forward_pre_hook(hook)
    exact = draw_images(model, CONFIG)
    clamped = draw_images(model, replace(CONFIG, terminal=terminal))
    handle.remove()
    assert len(seen) == 12
    assert not torch.equal(exact, clamped)
    assert (seen[6][1] == 999).all()
    torch.testing.assert_close(seen[6][0], seen[0][0], rtol=NETWORK_FLOAT32, atol=0)
    assert [pair[1].tolist() for pair in seen[8:]] == [pair[1].tolist() for pair in seen[2:6]]


def test_the_canvas_grid_follows_the_latent_canvas(model: Model) -> None:
    timesteps = []
    handle = model.unet.register_forward_pre_hook(lambda _, arguments: timesteps.append(arguments[1].clone()))
    draw_images(model, replace(CONFIG, grid="canvas", guidance=1.0))
    handle.remove()
    sigmas = canvas(model.diffusion.schedule(), 3, 6, 4)[:-1]
    expected = model.diffusion.schedule().sigma_edm_to_t(sigmas)
    torch.testing.assert_close(torch.stack([t[0] for t in timesteps]), expected)


def test_an_eps_network_is_read_as_one(model: Model) -> None:
    plain = replace(
        model, diffusion=replace(model.diffusion, parameterisation="eps", zero_terminal_snr=False)
    )
    images = draw_images(plain, CONFIG)
    assert images.isfinite().all()
    assert not torch.equal(images, draw_images(model, CONFIG))


@pytest.mark.parametrize(
    ("changes", "start_sigma", "message"),
    [
        ({"width": 36}, None, "36×48 px is not a multiple of the VAE's 8"),
        ({"grid": "leading"}, None, "leading"),
        ({"grid": "trailing"}, 14.6, r"has a fixed start, so sigma_max=14\.6 cannot apply"),
        ({"grid": "community_trainer"}, None, "3 steps asked for; it is a fixed list of 10"),
        ({"terminal": "20000"}, 14.6, r"terminal 20000 replaces σ = ∞, but the grid starts at 14\.6"),
        ({}, -1.0, "-1"),
        ({}, float("nan"), "nan"),
    ],
)
def test_what_cannot_be_drawn_is_said(
    changes: dict, start_sigma: float | None, message: str, model: Model
) -> None:
    with pytest.raises(InputError, match=message):
        draw_images(model, replace(CONFIG, **changes), start_sigma=start_sigma)


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and bool((a - b).abs().max() <= NETWORK_FLOAT32)


def test_images_that_are_not_finite_are_refused(model: Model) -> None:
    """A run whose weights have diverged would otherwise be drawn as black squares."""
    astray = replace(model, unet=copy.deepcopy(model.unet))
    with torch.no_grad():
        astray.unet.out[2].weight.fill_(torch.nan)
    with pytest.raises(InputError, match=r"is not finite: the weights are not, or sample\.guidance"):
        draw_images(astray, CONFIG)


def test_attention_is_changed_while_drawing_alone(model: Model) -> None:
    """Off, trained on another canvas, and attending to neighbours only; a window over the whole canvas is off."""
    plain = draw_images(model, CONFIG)
    scaled = draw_images(model, replace(CONFIG, attention_train_side=512))
    near = draw_images(model, replace(CONFIG, attention_window=8))
    assert not torch.equal(plain, scaled)
    assert not torch.equal(plain, near)
    assert torch.equal(plain, draw_images(model, replace(CONFIG, attention_window=4096)))
    assert torch.equal(plain, draw_images(model, CONFIG))


@pytest.mark.parametrize("name", ["attention_train_side", "attention_window"])
def test_negative_attention_settings_are_named(name: str) -> None:
    with pytest.raises(InputError, match=rf"sample\.{name} -1 must be at least 0"):
        replace(CONFIG, **{name: -1})
