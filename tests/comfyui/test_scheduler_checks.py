"""Which of ComfyUI's schedulers the levels suit: the facts, and that a run says so."""

import math

import pytest
import torch

from refimpl.comfyui.levels import NEAR_THE_LAST, SAME_FLOAT32, STAND_IN_FOR_INFINITY
from refimpl.comfyui.nodes import NODE_CLASS_MAPPINGS, ZsnrVpredConditioningNode
from refimpl.comfyui.scheduler_checks import MOST_BEYOND, USABLE
from refimpl.errors import InputError
from tests.comfyui import stub
from tests.comfyui.gaussian_model import DATA, noise, zsnr_model
from tests.comfyui.schedulers import SCHEDULERS
from tests.sample.schedules import PLAIN, ZERO_SNR
from tests.tolerances import ESTIMATE_IN_COMFYUI

SHAPE = (2, 4, 3, 5)
PUBLISHED_END = float(PLAIN.sigma_edm[-1])  # 14.6, the largest level of SDXL as published
LARGEST_FINITE = float(ZERO_SNR.sigma_edm[-2])  # 2254
WASTEFUL = ("karras", "exponential", "linear_quadratic")


def levels_of(name: str, steps: int):
    return SCHEDULERS[name](zsnr_model().get_model_object("model_sampling"), steps)


@pytest.mark.parametrize("steps", [12, 20, 28, 50, 100, 250])
def test_where_each_scheduler_puts_its_steps(steps: int) -> None:
    """What the note on the node and the documentation say of each, computed."""
    for name in SCHEDULERS:
        sigmas = levels_of(name, steps)[:-1]
        finite = sigmas[sigmas < STAND_IN_FOR_INFINITY * (1 - NEAR_THE_LAST)]
        beyond = int((finite > LARGEST_FINITE * (1 + SAME_FLOAT32)).sum())
        high = int((sigmas > PUBLISHED_END).sum())
        starts_in_noise = len(finite) < len(sigmas)
        if name in WASTEFUL:
            assert starts_in_noise, name
            assert beyond >= MOST_BEYOND * len(sigmas), name
            assert high >= len(sigmas) / 2, name  # most steps, where little of the picture is decided
        else:
            assert starts_in_noise == (name in USABLE) == (name != "ddim_uniform"), name
            assert beyond == 0, name
            assert high <= len(sigmas) / 4, name
    assert set(SCHEDULERS) == {*USABLE, *WASTEFUL, "ddim_uniform"}


def test_the_documented_counts_of_28_steps() -> None:
    counts = {}
    for name in SCHEDULERS:
        sigmas = levels_of(name, 28)[:-1]
        counts[name] = (
            round(float(sigmas[0])),
            int((sigmas > PUBLISHED_END).sum()),
            int(((sigmas > LARGEST_FINITE + 1) & (sigmas < STAND_IN_FOR_INFINITY - 1)).sum()),
        )
    assert counts == {
        "simple": (32768, 4, 0),
        "sgm_uniform": (32768, 4, 0),
        "normal": (32768, 4, 0),
        "beta": (32768, 6, 0),
        "kl_optimal": (32815, 2, 0),
        "karras": (32768, 21, 9),
        "exponential": (32768, 15, 5),
        "linear_quadratic": (32768, 28, 27),
        "ddim_uniform": (120, 3, 0),
    }


@pytest.mark.parametrize("name", USABLE)
@pytest.mark.parametrize("steps", [8, 28])
def test_usable_schedulers_run_from_pure_noise(name: str, steps: int) -> None:
    patched, n, asked = zsnr_model(), noise(*SHAPE), []
    own = patched.model.network

    def predict(x, t, condition):
        asked.append(t)
        return own(x, t, condition)

    patched.model.network = predict
    drawn = stub.sample(patched, n, levels_of(name, steps))
    assert drawn.isfinite().all()
    assert len(asked) == steps
    assert (asked[0] == 999).all()
    assert (asked[1] < 999).all()


@pytest.mark.parametrize("name", WASTEFUL)
def test_schedulers_that_waste_steps_are_refused_with_the_reason(name: str) -> None:
    with pytest.raises(InputError, match=r"\d+ of 28 steps lie between 2254, .* never trained") as refused:
        stub.sample(zsnr_model(), noise(*SHAPE), levels_of(name, 28))
    for word in (*USABLE, name, "terminal_sigma to 20000"):
        assert word in str(refused.value)
    stub.sample(zsnr_model(terminal_sigma="20000"), noise(*SHAPE), levels_of(name, 28))  # as the message says


def test_skipping_pure_noise_is_refused_for_an_empty_image_alone() -> None:
    sigmas, n = levels_of("ddim_uniform", 28), noise(*SHAPE)
    with pytest.raises(
        InputError, match=r"empty latent image starts at level 120\.\d+ instead of pure noise"
    ):
        stub.sample(zsnr_model(), n, sigmas)
    picture = 0.4 * torch.ones(SHAPE)
    assert stub.sample(zsnr_model(), n, sigmas, latent_image=picture).isfinite().all()
    continued = torch.zeros_like(n)  # a second sampler that adds no noise
    assert stub.sample(zsnr_model(), continued, sigmas).isfinite().all()
    mask = torch.ones(SHAPE)
    assert stub.sample(zsnr_model(), n, sigmas, denoise_mask=mask).isfinite().all()


def test_a_level_that_a_scheduler_rounded_is_infinity_still() -> None:
    """karras and exponential miss the stand-in by float32 rounding; with few steps they are not refused."""
    for name in ("karras", "exponential"):
        sigmas = levels_of(name, 3)
        assert STAND_IN_FOR_INFINITY * (1 - NEAR_THE_LAST) < float(sigmas[0]) < STAND_IN_FOR_INFINITY
        patched = zsnr_model()
        levels = patched.get_model_object("model_sampling").levels
        assert levels.level(sigmas[0]) == math.inf
        expected = -DATA["positive"].predict_v(noise(*SHAPE).double(), torch.tensor(math.inf))
        assert (first_estimate(patched, sigmas) - expected).abs().max() <= ESTIMATE_IN_COMFYUI


def first_estimate(patched: stub.ModelPatcher, sigmas: torch.Tensor) -> torch.Tensor:
    seen: list[torch.Tensor] = []
    stub.sample(patched, noise(*SHAPE), sigmas, callback=lambda i, x0, x, total: seen.append(x0))
    return seen[0]


def test_the_node_names_them_where_a_user_looks() -> None:
    tooltip = ZsnrVpredConditioningNode.INPUT_TYPES()["optional"]["terminal_sigma"][1]["tooltip"]
    for text in (tooltip, NODE_CLASS_MAPPINGS["ZsnrVpredConditioningNode"].DESCRIPTION):  # type: ignore[attr-defined]
        for name in (*USABLE, *WASTEFUL, "ddim_uniform"):
            assert name in text
