"""Known answers: what the suite finds on other projects' own functions is what was measured on them before.

diffusers and k-diffusion are installed with the tests. The others are read from checkouts in REFIMPL_PEERS, and
skipped by name where there is none.
"""

from functools import cache
from typing import Any

import pytest
import torch

from refimpl.conformance.adapters.kdiffusion import KDiffusion
from refimpl.conformance.check import Outcome
from refimpl.conformance.checks.exact import NATIVE_SECOND, rms, unit_noise
from refimpl.conformance.evaluate import Effort, run_check
from refimpl.conformance.load import SHIPPED, load_adapter
from refimpl.conformance.registry import all_checks
from refimpl.conformance.results.known import judge, known_deviations
from refimpl.diffusion.preconditioner import PARITY_SIGMA_MAX
from refimpl.errors import InputError
from tests.conformance.planted import clamped_step

CHECKS = all_checks()
INSTALLED = ("diffusers", "k-diffusion", "k-diffusion-clamped")
SAMPLES = (16, 4, 64, 64)

# adapter, check, the text that says it (a part of it), the deviation as printed to the digits that are known
ANSWERS = [
    ("diffusers", "schedule.zero_snr_table", "", "1.9e-05"),
    ("sd-scripts", "schedule.zero_snr_table", "", "1.9e-05"),
    ("simpletuner", "schedule.zero_snr_table", "", "1.9e-05"),
    ("naifu", "schedule.zero_snr_table", "", "1.9e-05"),
    ("comfyui", "schedule.zero_snr_table", "", "5.9e-08"),
    ("sd-scripts", "weight.mass_from_800", "1.115 %", ""),
    ("sd-scripts", "weight.mass_from_950", "0.107", ""),
    ("diffusers", "weight.mass_from_800", "0.356 %", ""),
    ("naifu", "weight.mass_from_950", "0.0034 %", ""),
    ("diffusers", "noised.low_noise_in_bfloat16", "0, 0, 0.845 of", ""),
    ("comfyui", "sigma_to_t.at_infinity", "t(∞) = 0", ""),
    ("k-diffusion-clamped", "sigma_to_t.at_infinity", "t(∞) = 0", ""),
    ("k-diffusion", "grid.native_start", "sigma_edm nan", ""),
    ("k-diffusion", "sigma_to_t.beyond_the_last_finite", "t(20000) = 998", ""),
    ("k-diffusion", "scalings.at_infinity", "c_out nan", ""),
    ("generative-models", "scalings.at_infinity", "c_out nan", ""),
    ("comfyui", "scalings.at_infinity", "c_skip nan, c_out nan", ""),
    ("diffusers", "grid.trailing_length", "62 of 1000 n", ""),
    ("diffusers", "grid.leading_start", "sigma_edm 37.9", ""),
    ("comfyui", "grid.leading_start", "sigma_edm 120.5, 29 steps", ""),
    ("comfyui", "grid.ends_in_zero", "laplace ends in 0.02917", ""),
    ("diffusers", "first_step.from_infinity", "rms 0.0137", ""),
    ("comfyui", "first_step.from_infinity", "rms 0.0124", ""),
    ("k-diffusion-clamped", "first_step.from_infinity", "", "0.003"),
    ("simpletuner", "size_ints.of_1217", "1217 → 1216", ""),
    ("onetrainer", "size_ints.of_1217", "1217 → 1216", ""),
    ("novelai-bucketing", "assign.pruning", "prunes 900×100, keeps 100×900", ""),
    ("novelai-bucketing", "epoch.equal_shapes", "0 of 78 steps of equal shape on 8 ranks", ""),
    ("diffusers", "guide.flat_sample", "nan in 256 of 256", ""),
]


@cache
def adapter_of(name: str) -> Any:
    try:
        return load_adapter(name)
    except InputError as error:
        if name in INSTALLED:
            raise
        pytest.skip(f"{name}: {error}")


def run(name: str, check: str) -> Outcome:
    return run_check(CHECKS[check], adapter_of(name), Effort(examples=10, check_seconds=300))


@pytest.mark.parametrize(("name", "check", "text", "deviation"), ANSWERS, ids=lambda value: str(value)[:40])
def test_known_answers(name: str, check: str, text: str, deviation: str) -> None:
    outcome = run(name, check)
    assert text in outcome.text
    assert outcome.deviation is not None
    assert not deviation or f"{outcome.deviation:.2g}" == deviation


@pytest.mark.parametrize("name", [name for name in SHIPPED if name != "refimpl"])
def test_deviations_are_the_known_ones(name: str) -> None:
    """All checks that take no drawn arguments; those that do find the worst only with the full number of them."""
    known = known_deviations(name)
    adapter_of(name)
    whole = [
        check for check in CHECKS.values() if not check.draws and check.name != "crop.integers_of_a_survey"
    ]
    complaints = [judge(check, run(name, check.name), known.get(check.name)) for check in whole]
    assert [text for text in complaints if text] == []


@pytest.mark.parametrize(
    ("clamp", "in_float32", "in_bfloat16"),
    [("diffusers", "0.0137", "5.9"), ("comfyui", "0.0124", "10"), ("novelai", "0.0030", "56")],
)
def test_what_a_clamp_costs_the_first_step(clamp: str, in_float32: str, in_bfloat16: str) -> None:
    """In float32 by k-diffusion's own sampler; in bfloat16 by the same arithmetic, with its state in bfloat16."""
    sigma = PARITY_SIGMA_MAX[clamp]
    sampler = type("Clamped", (KDiffusion,), {"clamp": sigma})()
    noise, v = unit_noise(0, *SAMPLES), unit_noise(1, *SAMPLES)
    step = sampler.first_step(noise.float(), lambda x: v.float(), NATIVE_SECOND)
    assert f"{rms(step - (NATIVE_SECOND * noise - v)):.4f}" == in_float32
    noise, v = noise.bfloat16(), v.bfloat16()
    step = clamped_step(noise, lambda x: v, NATIVE_SECOND, sigma)
    error = rms(step.double() - (NATIVE_SECOND * noise.double() - v.double()))
    assert f"{error:.2g}" == in_bfloat16


def test_their_inputs_stay_as_they_are() -> None:
    noise = torch.ones(1, 4, 2, 2)
    adapter_of("diffusers").noised(noise, noise, torch.tensor([3]))
    assert bool((noise == 1).all())
