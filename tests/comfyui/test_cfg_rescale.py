"""Guidance in ComfyUI, numerically: against the project's cfg and rescale on v, for every method."""

import math

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from refimpl.comfyui.cfg_rescale import METHODS, strength
from refimpl.comfyui.model_sampling import noise_level
from refimpl.comfyui.nodes import (
    CFGRescaleNode,
    LaplaceSchedulerNode,
    NAINativeSchedulerNode,
    ZsnrVpredConditioningNode,
)
from refimpl.diffusion.preconditioner import scalings
from refimpl.sample.grids import native
from refimpl.sample.guidance import cfg, rescale
from refimpl.sample.samplers import euler
from tests.comfyui import stub
from tests.comfyui.gaussian_model import DATA, model, network, noise, zsnr_model
from tests.sample.schedules import PLAIN, ZERO_SNR
from tests.tolerances import ESTIMATE_IN_COMFYUI, FLOAT64_ROUNDING, SAMPLED_FLOAT32

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
    other, *_ = ZsnrVpredConditioningNode().apply_conditioning(
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


def guided_estimate(
    sampling, sigma: Tensor, x: Tensor, outputs: dict[str, Tensor], scale: float, factor: float
):
    """x0 in float64 from what the network said of a state: eq. 1 with the guided, rescaled v."""
    v, v_uncond = outputs["positive"].double(), outputs.get("negative", outputs["positive"]).double()
    v = rescale(cfg(v, v_uncond, scale), v, factor)
    level = noise_level(sampling, sigma).double()
    c_skip, c_out, _ = scalings(level, float(sampling.sigma_data))
    return c_skip * x.double() + c_out * v


@given(
    seed=st.integers(0, 2**31),
    method=st.sampled_from([None, *METHODS]),
    own_sampling=st.booleans(),
    rescale_first=st.booleans(),
    laplace=st.booleans(),
    size=st.floats(0.01, 30),
    scale=st.sampled_from([1.0, 4.5, 7.0, -3.0]),  # it multiplies float32's rounding: 12 alone costs 1e-6
)
@example(
    seed=1, method="standard", own_sampling=False, rescale_first=False, laplace=False, size=1.0, scale=5.0
)
@example(seed=2, method=None, own_sampling=False, rescale_first=False, laplace=False, size=1.0, scale=5.0)
@example(seed=3, method="karras", own_sampling=True, rescale_first=True, laplace=True, size=1.0, scale=5.0)
def test_the_estimate_is_right_at_every_step(
    seed: int,
    method: str | None,
    own_sampling: bool,
    rescale_first: bool,
    laplace: bool,
    size: float,
    scale: float,
) -> None:
    """x0 in float32 against the formula in float64, for any network, every node, and at the first step as well."""
    generator = torch.Generator().manual_seed(seed)
    said: list[dict[str, Tensor]] = []

    def predict(x: Tensor, t: Tensor, condition: str) -> Tensor:
        if condition == "positive":
            said.append({})
        said[-1][condition] = size * torch.randn(x.shape, generator=generator)
        return said[-1][condition]

    patched = model(stub.plain_sampling(zsnr=True), predict)
    if method is not None and rescale_first:
        patched = rescaled(patched, method, 0.8)
    if not own_sampling:
        inputs = ("true", "true", 0.0, 1.0, 5.0, "true")
        patched, *_ = ZsnrVpredConditioningNode().apply_conditioning(patched, *inputs)
    if method is not None and not rescale_first:
        patched = rescaled(patched, method, 0.8)
    sampling = patched.get_model_object("model_sampling")
    if laplace:
        (sigmas,) = LaplaceSchedulerNode().apply_scheduler(patched, 0.0, 0.5, steps=7)
    else:
        (sigmas,) = NAINativeSchedulerNode().apply_scheduler(patched, 7)
    seen: list[tuple[Tensor, Tensor]] = []
    n = torch.randn(SHAPE, generator=generator)
    stub.sample(patched, n, sigmas, scale=scale, callback=lambda i, x0, x, total: seen.append((x0, x)))
    assert len(seen) == len(said) == 7
    for step, ((x0, x), outputs) in enumerate(zip(seen, said, strict=True)):
        assert x0.dtype == x.dtype == torch.float32
        factor = 0.8 * float(strength(method, sigmas[step : step + 1], sampling)) if method else 0.0
        expected = guided_estimate(sampling, sigmas[step], x, outputs, scale, factor)
        error = (x0.double() - expected).abs().max() / expected.abs().max()
        assert error <= ESTIMATE_IN_COMFYUI, f"step {step}: {error:.1e}"


def test_other_functions_see_the_estimate_in_float32_and_keep_their_order() -> None:
    """A function that another node put after guidance, before or after this node was applied."""
    seen: list[torch.dtype] = []

    def doubled(args: dict) -> Tensor:
        seen.append(args["denoised"].dtype)
        return 2 * args["denoised"]

    (sigmas,), n = NAINativeSchedulerNode().apply_scheduler(zsnr_model(), 1), noise(*SHAPE)
    plain = stub.sample(rescaled(zsnr_model()), n, sigmas, scale=4.0)
    for theirs_first in (True, False):
        patched = zsnr_model()
        if theirs_first:
            patched.set_model_sampler_post_cfg_function(doubled)
        patched = rescaled(rescaled(patched))
        if not theirs_first:
            patched.set_model_sampler_post_cfg_function(doubled)
        assert len(patched.model_options["sampler_post_cfg_function"]) == 2
        assert torch.equal(stub.sample(patched, n, sigmas, scale=4.0), 2 * plain)
    assert seen == [torch.float32] * 2


def test_another_guidance_function_set_later_replaces_this_one() -> None:
    (sigmas,), n = NAINativeSchedulerNode().apply_scheduler(zsnr_model(), 3), noise(*SHAPE)
    plain, replaced = zsnr_model(), rescaled(zsnr_model())
    for patched in (plain, replaced):
        patched.set_model_sampler_cfg_function(lambda args: args["input"] - 0.5 * args["cond_denoised"])
    assert torch.equal(*(stub.sample(patched, n, sigmas, scale=4.0) for patched in (plain, replaced)))
