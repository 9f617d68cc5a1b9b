"""Guidance in ComfyUI, numerically: against the project's cfg and rescale on v, for every method."""

import math

import pytest
import torch
from torch import Tensor

from refimpl.comfyui.cfg_rescale import METHODS, strength
from refimpl.comfyui.nodes import CFGRescaleNode, NAINativeSchedulerNode, ZsnrVpredConditioningNode
from refimpl.sample.grids import native
from refimpl.sample.guidance import cfg, rescale
from refimpl.sample.samplers import euler
from tests.comfyui import stub
from tests.comfyui.gaussian_model import DATA, model, network, noise, zsnr_model
from tests.sample.schedules import PLAIN, ZERO_SNR
from tests.tolerances import FLOAT64_ROUNDING, SAMPLED_FLOAT32

SHAPE = (2, 4, 6, 5)


def rescaled(
    patched: stub.ModelPatcher, method: str = "standard", multiplier: float = 0.7
) -> stub.ModelPatcher:
    return CFGRescaleNode().apply_rescale(patched, "true", method, multiplier)[0]


def guided_v(scale: float, factor: float):
    def predict_v(x: Tensor, sigma: Tensor) -> Tensor:
        v, v_uncond = (DATA[name].predict_v(x, sigma) for name in ("positive", "negative"))
        return rescale(cfg(v, v_uncond, scale), v, factor)

    return predict_v


@pytest.mark.parametrize(("scale", "factor"), [(1.0, 0.7), (4.0, 0.0), (4.0, 0.7), (7.0, 1.0)])
def test_a_guided_run_is_the_projects_own(scale: float, factor: float) -> None:
    patched, n = rescaled(zsnr_model(), multiplier=factor), noise(*SHAPE)
    (sigmas,) = NAINativeSchedulerNode().apply_scheduler(patched, 28)
    drawn = stub.sample(patched, n, sigmas, scale=scale)
    expected = euler(guided_v(scale, factor), n.double(), native(ZERO_SNR, 28))
    assert (drawn - expected).abs().max() <= abs(scale) * SAMPLED_FLOAT32


def test_the_order_of_the_nodes_does_not_matter() -> None:
    n = noise(*SHAPE)
    one = rescaled(zsnr_model())
    other, _ = ZsnrVpredConditioningNode().apply_conditioning(
        rescaled(model()), "true", "true", 0.0, 1.0, 5.0, "true"
    )
    (sigmas,) = NAINativeSchedulerNode().apply_scheduler(one, 4)
    assert torch.equal(stub.sample(one, n, sigmas, scale=4.0), stub.sample(other, n, sigmas, scale=4.0))


def test_a_model_that_the_first_node_did_not_set_is_rescaled_too() -> None:
    """ComfyUI's own v-prediction without zero SNR, from its own largest level."""
    patched, n = rescaled(model(predict=network(PLAIN))), noise(*SHAPE)
    (sigmas,) = NAINativeSchedulerNode().apply_scheduler(patched, 28)
    drawn = stub.sample(patched, n, sigmas, scale=4.0)
    expected = euler(guided_v(4.0, 0.7), n.double(), native(PLAIN, 28))
    assert (drawn - expected).abs().max() <= 4 * SAMPLED_FLOAT32


def test_false_leaves_guidance_to_comfyui() -> None:
    patched = zsnr_model()
    (same,) = CFGRescaleNode().apply_rescale(patched, "false", "karras", 0.7)
    assert same is not patched
    assert "sampler_cfg_function" not in same.model_options


@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs_from_all_to_its_own_end(method: str) -> None:
    sampling = zsnr_model().get_model_object("model_sampling")
    sigmas = sampling.sigmas.flip(0)
    part = strength(method, sigmas, sampling)
    assert part[0] == 1
    if method == "standard":
        assert (part == 1).all()
    else:
        assert part[-1] == 0
        assert (part.diff() < 0).all()


def test_methods_fall_as_the_schedulers_of_their_names_space_levels() -> None:
    """At the level that a scheduler reaches halfway, half of φ is left."""
    sampling = zsnr_model().get_model_object("model_sampling")
    low, high = float(sampling.sigma_min), float(sampling.sigma_max)
    halfway = {
        "karras": ((low ** (1 / 7) + high ** (1 / 7)) / 2) ** 7,
        "exponential": math.sqrt(low * high),
    }
    for method in ("sgm_uniform", "simple", "ddim_uniform", "normal"):
        halfway[method] = float(ZERO_SNR.t_to_sigma_edm(999 / 2))
    assert set(halfway) | {"standard"} == set(METHODS)
    for method, level in halfway.items():
        half = strength(method, torch.tensor([level], dtype=torch.float64), sampling)
        assert float(half) == pytest.approx(0.5, abs=SAMPLED_FLOAT32), method


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("sigma_data", [1.0, 0.5])
def test_each_sample_is_rescaled_for_its_own_level(method: str, sigma_data: float) -> None:
    """One call with a different level per sample: std of the guided output against the formula, sample by sample."""
    patched = rescaled(zsnr_model(sigma_data=sigma_data), method, 0.9)
    sampling = patched.get_model_object("model_sampling")
    guide = patched.model_options["sampler_cfg_function"]
    sigma = torch.tensor([float(sampling.sigma_max), 56.178238, 0.5], dtype=torch.float64)
    patched.model.model_sampling = sampling
    x = (sigma.reshape(3, 1, 1, 1) + 1) * noise(3, 4, 5, 2).double()
    outputs = noise(3, 4, 2, 5).double().transpose(2, 3), noise(3, 5, 4, 2).double().transpose(1, 2)
    cond, uncond = (sampling.calculate_denoised(sigma, output, x) for output in outputs)
    given = {
        "input": x,
        "sigma": sigma,
        "cond_denoised": cond,
        "uncond_denoised": uncond,
        "cond_scale": 5.0,
        "model": patched.model,
    }
    denoised = x - guide(given)
    factor = 0.9 * strength(method, sigma, sampling)
    for i in range(3):
        v_cond, v_uncond = (output[i] for output in outputs)
        v = v_uncond + 5 * (v_cond - v_uncond)
        v = factor[i] * v * v_cond.std() / v.std() + (1 - factor[i]) * v
        expected = sampling.calculate_denoised(sigma[i], v[None], x[i : i + 1])
        assert (denoised[i] - expected[0]).abs().max() <= FLOAT64_ROUNDING * x[i].abs().max()
