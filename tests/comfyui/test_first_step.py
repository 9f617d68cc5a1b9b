"""Whole sampling runs as ComfyUI does them against the project's samplers, and their step from infinity."""

import pytest
import torch
from torch import Tensor

from refimpl.comfyui.first_step import patch_first_step
from refimpl.comfyui.levels import STAND_IN_FOR_INFINITY, levels_for
from refimpl.comfyui.nodes import NAINativeSchedulerNode
from refimpl.errors import InputError
from refimpl.sample.grids import native, with_terminal
from refimpl.sample.samplers import SAMPLERS
from refimpl.sample.stepping import sdedit_start
from tests.comfyui import stub
from tests.comfyui.gaussian_model import DATA, model, network, noise, zsnr_model
from tests.sample.schedules import ZERO_SNR
from tests.tolerances import EULER_FROM_STAND_IN, SAMPLED_FLOAT32

THEIRS = {"euler": stub.euler, "heun": stub.heun, "dpmpp_2m": stub.dpmpp_2m}
FINITE = ("20000", "4518.7637", "4096")
SHAPE = (2, 4, 6, 5)


def ours(name: str, x: Tensor, sigmas: Tensor) -> Tensor:
    """The project's sampler; any level above the schedule's finite ones is t = 999 to the network, as in ComfyUI."""

    def predict_v(x: Tensor, sigma: Tensor) -> Tensor:
        last = sigma > ZERO_SNR.sigma_edm[-2]
        return DATA["positive"].predict_v(x, torch.where(last, torch.inf, sigma))

    return SAMPLERS[name](predict_v, x.double(), sigmas)


@pytest.mark.parametrize("steps", [1, 2, 28])
@pytest.mark.parametrize("name", list(THEIRS))
def test_a_run_is_the_projects_own(name: str, steps: int) -> None:
    patched, n = zsnr_model(), noise(*SHAPE)
    (sigmas,) = NAINativeSchedulerNode().apply_scheduler(patched, steps)
    assert float(sigmas[0]) == STAND_IN_FOR_INFINITY
    latent = 5 * torch.ones(SHAPE)  # nothing of it is left at ∞
    drawn = stub.sample(patched, n, sigmas, THEIRS[name], latent_image=latent)
    assert (drawn - ours(name, n, native(ZERO_SNR, steps))).abs().max() <= SAMPLED_FLOAT32


@pytest.mark.parametrize("terminal", FINITE)
@pytest.mark.parametrize("name", list(THEIRS))
def test_a_run_from_a_huge_finite_level_is_the_projects_own(name: str, terminal: str) -> None:
    """Its first step is of first order: Heun's own would be off by tens of the spread."""
    patched, n = zsnr_model(terminal_sigma=terminal), noise(*SHAPE)
    (sigmas,) = NAINativeSchedulerNode().apply_scheduler(patched, 28)
    assert float(sigmas[0]) == pytest.approx(float(terminal))
    drawn = stub.sample(patched, n, sigmas, THEIRS[name])
    expected = ours(name, n, with_terminal(native(ZERO_SNR, 28), terminal))
    assert (drawn - expected).abs().max() <= SAMPLED_FLOAT32


def test_the_latent_image_stays_in_a_state_at_a_huge_finite_level() -> None:
    """ComfyUI adds it to the noise at any finite level, where it shows as little as the level is large."""
    patched, n, latent = zsnr_model(terminal_sigma="4096"), noise(*SHAPE), torch.full(SHAPE, 500.0)
    (sigmas,) = NAINativeSchedulerNode().apply_scheduler(patched, 28)
    drawn = stub.sample(patched, n, sigmas, latent_image=latent)
    grid = with_terminal(native(ZERO_SNR, 28), "4096")
    expected = ours("euler", sdedit_start(latent.double(), n.double(), 4096.0), grid)
    assert (drawn - expected).abs().max() <= SAMPLED_FLOAT32


def test_one_step_from_a_finite_level_is_the_samplers() -> None:
    patched, n, steps = zsnr_model(terminal_sigma="20000"), noise(*SHAPE), []
    sigmas = torch.tensor([20000.0, 0.0])
    stub.sample(patched, n, sigmas, callback=lambda i, x0, x, total: steps.append((i, total)))
    assert steps == [(0, 1)]


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
    assert [len(several) for several in by_key.values()] == [1]


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
