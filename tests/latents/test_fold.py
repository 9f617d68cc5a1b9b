"""Statistics folded into the autoencoder: a tool that knows only 0.13025 gets the same data and pictures."""

import math

import pytest
import torch

from refimpl.errors import InputError
from refimpl.latents.fold import fold_scale_shift
from refimpl.latents.scale_shift import NOVELAI_ANIME, SDXL_DEFAULT, SDXL_FACTOR, ScaleShift
from refimpl.latents.vae import VAE, VAEConfig
from tests.tolerances import BFLOAT16_ROUNDING, NETWORK_FLOAT32, NETWORK_FLOAT64

SMALL = VAEConfig(channels=4, channel_mult=(1, 2, 2), res_blocks=1, groups=2)
UNEVEN = ScaleShift((-3.0, 0.0, 2.0, 20.0), (0.5, 1.0, 40.0, 7.5))


def small_vae(dtype: torch.dtype = torch.float64) -> VAE:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return VAE(SMALL).to(dtype)


def relative_error(value: torch.Tensor, expected: torch.Tensor) -> float:
    return float((value - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("factor", [SDXL_FACTOR, 1.0, 0.5])
@pytest.mark.parametrize("scale_shift", [NOVELAI_ANIME, SDXL_DEFAULT, UNEVEN])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, NETWORK_FLOAT64), (torch.float32, NETWORK_FLOAT32)]
)
@torch.no_grad()
def test_the_plain_factor_does_what_the_statistics_did(
    dtype: torch.dtype, tolerance: float, scale_shift: ScaleShift, factor: float
) -> None:
    vae = small_vae(dtype)
    folded = fold_scale_shift(vae, scale_shift, factor)
    images = torch.rand(2, 3, 8, 12, generator=torch.Generator().manual_seed(0), dtype=dtype) * 2 - 1
    x = scale_shift.standardise(vae.encode(images))
    assert relative_error(folded.encode(images) * factor, x) <= tolerance
    assert relative_error(folded.decode(x / factor), vae.decode(scale_shift.restore(x))) <= tolerance


@torch.no_grad()
def test_the_posterior_keeps_its_spread() -> None:
    vae = small_vae()
    images = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    std = torch.exp(vae.moments(images)[1] / 2)
    folded_std = torch.exp(fold_scale_shift(vae, NOVELAI_ANIME).moments(images)[1] / 2)
    sigma = torch.tensor(NOVELAI_ANIME.std, dtype=torch.float64).view(-1, 1, 1)
    assert relative_error(folded_std * SDXL_FACTOR, std / sigma) <= NETWORK_FLOAT64


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@torch.no_grad()
def test_only_the_1x1_convolutions_of_a_copy_change(dtype: torch.dtype) -> None:
    vae = small_vae(dtype)
    before = {name: tensor.clone() for name, tensor in vae.state_dict().items()}
    folded = fold_scale_shift(vae, NOVELAI_ANIME)
    changed = {name for name, tensor in folded.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {
        f"{kind}.{name}" for kind in ("quant_conv", "post_quant_conv") for name in ("weight", "bias")
    }
    assert all(torch.equal(tensor, before[name]) for name, tensor in vae.state_dict().items())
    same = fold_scale_shift(vae, SDXL_DEFAULT).state_dict()
    assert all(torch.equal(tensor, before[name]) for name, tensor in same.items())
    assert {tensor.dtype for tensor in folded.state_dict().values()} == {dtype}
    exact = fold_scale_shift(vae.double(), NOVELAI_ANIME).post_quant_conv.weight
    assert relative_error(folded.post_quant_conv.weight.double(), exact) <= BFLOAT16_ROUNDING


def test_statistics_of_another_vae_and_senseless_factors_are_refused() -> None:
    with pytest.raises(InputError, match="statistics of 1 channels do not fit a VAE of 4"):
        fold_scale_shift(small_vae(), ScaleShift((0.0,), (1.0,)))
    for factor in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(InputError, match="scaling factor is"):
            fold_scale_shift(small_vae(), NOVELAI_ANIME, factor)
