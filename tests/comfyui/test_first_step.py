"""Whole sampling runs as ComfyUI does them against the project's samplers, and their step from infinity."""

import pytest
import torch
from torch import Tensor

from refimpl.comfyui.first_step import patch_first_step
from refimpl.comfyui.levels import STAND_IN_FOR_INFINITY, levels_for
from refimpl.comfyui.nodes import NAINativeSchedulerNode
from refimpl.errors import InputError
from refimpl.sample.grids import native
from refimpl.sample.samplers import SAMPLERS
from refimpl.sample.stepping import sdedit_start
from tests.comfyui import stub
from tests.comfyui.gaussian_model import DATA, model, network, noise, zsnr_model
from tests.sample.schedules import ZERO_SNR
from tests.tolerances import EULER_FROM_STAND_IN, SAMPLED_FLOAT32

THEIRS = {"euler": stub.euler, "dpmpp_2m": stub.dpmpp_2m}
SHAPE = (2, 4, 6, 5)


def ours(name: str, x: Tensor, sigmas: Tensor) -> Tensor:
    return SAMPLERS[name](DATA["positive"].predict_v, x.double(), sigmas)


@pytest.mark.parametrize("steps", [1, 2, 28])
@pytest.mark.parametrize("name", list(THEIRS))
def test_a_run_is_the_projects_own(name: str, steps: int) -> None:
    patched, n = zsnr_model(), noise(*SHAPE)
    (sigmas,) = NAINativeSchedulerNode().apply_scheduler(patched, steps)
    assert float(sigmas[0]) == STAND_IN_FOR_INFINITY
    latent = 5 * torch.ones(SHAPE)  # nothing of it is left at ∞
    drawn = stub.sample(patched, n, sigmas, THEIRS[name], latent_image=latent)
    assert (drawn - ours(name, n, native(ZERO_SNR, steps))).abs().max() <= SAMPLED_FLOAT32


def test_the_network_is_first_asked_about_the_noise_itself() -> None:
    asked: list[tuple[Tensor, Tensor]] = []

    def predict(x: Tensor, t: Tensor, condition: str) -> Tensor:
        asked.append((x, t))
        return network()(x, t, condition)

    patched, n = zsnr_model(), noise(*SHAPE)
    patched.model.network = predict
    (sigmas,) = NAINativeSchedulerNode().apply_scheduler(patched, 28)
    stub.sample(patched, n, sigmas)
    assert torch.equal(asked[0][0], n)
    assert [float(t[0]) for _, t in asked] == torch.linspace(999, 0, 28, dtype=torch.float64).tolist()


def test_the_first_step_is_eq_18_and_the_trivial_variant_is_not() -> None:
    """Euler from 20000 shrinks the first estimate by 1 − σ₁/20000; from ∞ it is whole."""
    states: dict[str, Tensor] = {}
    n = noise(*SHAPE)
    for terminal in ("exact", "20000"):
        patched = zsnr_model(terminal_sigma=terminal)
        (sigmas,) = NAINativeSchedulerNode().apply_scheduler(patched, 28)
        seen: list[Tensor] = []
        stub.sample(patched, n, sigmas, callback=lambda i, x0, x, total, seen=seen: seen.append(x))
        states[terminal] = seen[1].double()
    x0 = -DATA["positive"].predict_v(n.double(), torch.tensor(torch.inf))
    sigma_1 = float(sigmas[1])
    exact = sigma_1 * n.double() + x0
    assert (states["exact"] - exact).abs().max() <= sigma_1 * SAMPLED_FLOAT32
    short = exact - sigma_1 / 20000 * x0
    assert (states["20000"] - short).abs().max() <= EULER_FROM_STAND_IN


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_progress_counts_every_step_once(steps: int) -> None:
    patched, seen = zsnr_model(), []
    (sigmas,) = NAINativeSchedulerNode().apply_scheduler(patched, steps)
    stub.sample(patched, noise(*SHAPE), sigmas, callback=lambda i, x0, x, total: seen.append((i, total)))
    assert seen == [(i, steps) for i in range(steps)]


def test_image_to_image_starts_at_its_own_level() -> None:
    patched, n, latent = zsnr_model(), noise(*SHAPE), 0.4 + noise(*SHAPE).flip(0)
    (sigmas,) = NAINativeSchedulerNode().apply_scheduler(patched, 28)
    tail = native(ZERO_SNR, 28)[10:]
    drawn = stub.sample(patched, n, sigmas[10:], latent_image=latent)
    expected = ours("euler", sdedit_start(latent.double(), n.double(), float(tail[0])), tail)
    assert (drawn - expected).abs().max() <= SAMPLED_FLOAT32


def test_inpainting_is_left_to_the_sampler() -> None:
    """The latent image is what the mask preserves, so the sampler starts from the stand-in, at little cost."""
    patched, n = zsnr_model(), noise(*SHAPE)
    (sigmas,) = NAINativeSchedulerNode().apply_scheduler(patched, 28)
    started: list[Tensor] = []

    def sampler(predict, x: Tensor, given: Tensor, *arguments) -> Tensor:
        started.append(given)
        return stub.euler(predict, x, given, *arguments)

    drawn = stub.sample(patched, n, sigmas, sampler, denoise_mask=torch.ones(SHAPE))
    assert torch.equal(started[0], sigmas)
    assert (drawn - ours("euler", n, native(ZERO_SNR, 28))).abs().max() <= EULER_FROM_STAND_IN


def test_patching_again_replaces_the_first_patch() -> None:
    twice = zsnr_model()
    patch_first_step(twice, levels_for(ZERO_SNR, "exact", 0.0, None))
    (by_key,) = twice.model_options["wrappers"].values()
    assert [len(several) for several in by_key.values()] == [1]
    patch_first_step(twice, levels_for(ZERO_SNR, "20000", 0.0, None))
    assert by_key == {}


def test_the_model_given_is_left_as_it_was() -> None:
    given = model()
    clone = given.clone()
    patch_first_step(clone, levels_for(ZERO_SNR, "exact", 0.0, None))
    assert given.model_options["wrappers"] == {}
    assert given.object_patches == {}


def test_an_old_comfyui_is_told_what_it_lacks() -> None:
    class Old:
        """A model patcher from before ComfyUI had wrappers."""

    with pytest.raises(InputError, match="update ComfyUI, or set terminal_sigma to 20000"):
        patch_first_step(Old(), levels_for(ZERO_SNR, "exact", 0.0, None))
    patch_first_step(Old(), levels_for(ZERO_SNR, "20000", 0.0, None))
