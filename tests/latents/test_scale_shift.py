"""Scale and shift of latents (N App. B, Fig. 8)."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from hypothesis import given
from hypothesis import strategies as st

from refimpl.errors import InputError
from refimpl.latents.scale_shift import NOVELAI_ANIME, SDXL_DEFAULT, ScaleShift
from refimpl.latents.welford import Welford
from tests import strategies, tolerances

DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]


def test_novelai_numbers() -> None:
    assert NOVELAI_ANIME.mean == (4.8119, 0.1607, 1.3538, -1.7753)
    assert NOVELAI_ANIME.std == (9.9181, 6.2753, 7.5978, 5.9956)
    assert round(sum(NOVELAI_ANIME.std) / 4, 4) == 7.4467  # N App. B.2: whose reciprocal is 0.1343
    assert round(4 / sum(NOVELAI_ANIME.std), 4) == 0.1343


def test_each_channel_has_its_own_statistics() -> None:
    z = torch.zeros(1, 4, 1, 2, dtype=torch.float64)
    x = NOVELAI_ANIME.standardise(z)[0, :, 0, 0].tolist()
    for value, mean, std in zip(x, NOVELAI_ANIME.mean, NOVELAI_ANIME.std, strict=True):
        assert value == -mean / std


def test_tensors_and_arrays_are_kept_as_numbers() -> None:
    statistics = Welford(4)
    statistics.update(torch.arange(16.0).view(1, 4, 2, 2))
    measured = ScaleShift.from_welford(statistics)
    assert ScaleShift(statistics.mean, statistics.std) == measured
    assert ScaleShift(np.array(measured.mean), np.array(measured.std)) == measured
    assert hash(ScaleShift(statistics.mean, statistics.std)) == hash(measured)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sdxl_default_is_the_plain_factor(dtype: torch.dtype) -> None:
    assert SDXL_DEFAULT.mean == (0.0,) * 4
    z = torch.randn(2, 4, 8, 8, dtype=dtype, generator=torch.Generator().manual_seed(0)) * 7
    rounding = tolerances.FLOAT32_STEPS * torch.finfo(dtype).eps
    torch.testing.assert_close(SDXL_DEFAULT.standardise(z), z * 0.13025, rtol=rounding, atol=0)
    torch.testing.assert_close(SDXL_DEFAULT.restore(z), z / 0.13025, rtol=rounding, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
@given(data=st.data())
def test_restore_inverts_standardise(dtype: torch.dtype, data: st.DataObject) -> None:
    scale_shift = ScaleShift(*data.draw(strategies.scale_shifts(3)))
    batch, _, height, width = data.draw(strategies.latent_shapes())
    z = data.draw(strategies.latents((batch, 3, height, width), torch.float64)).to(dtype)
    x = scale_shift.standardise(z)
    back = scale_shift.restore(x)
    assert x.dtype == back.dtype == dtype
    assert x.shape == back.shape == z.shape
    # Only storing x rounds at the dtype's eps, relative to |x|·σ = |z − μ|; float16 may also overflow.
    mean = torch.tensor(scale_shift.mean, dtype=torch.float64).view(-1, 1, 1)
    std = torch.tensor(scale_shift.std, dtype=torch.float64).view(-1, 1, 1)
    info = torch.finfo(dtype)
    inside = x.isfinite() & back.isfinite()
    bound = tolerances.FLOAT32_STEPS * info.eps * (z.double().abs() + mean.abs()) + info.tiny * std
    assert ((back.double() - z.double()).abs() <= bound)[inside].all()
    assert dtype == torch.float16 or inside.all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_computed_in_float32_and_rounded_once(dtype: torch.dtype) -> None:
    z = (torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0)) * 9).to(dtype)
    assert torch.equal(NOVELAI_ANIME.standardise(z), NOVELAI_ANIME.standardise(z.float()).to(dtype))
    assert torch.equal(NOVELAI_ANIME.restore(z), NOVELAI_ANIME.restore(z.float()).to(dtype))


def test_without_a_batch_dimension_and_with_two() -> None:
    z = torch.randn(2, 3, 4, 5, 5, generator=torch.Generator().manual_seed(0))
    x = NOVELAI_ANIME.standardise(z)
    assert torch.equal(x[1, 2], NOVELAI_ANIME.standardise(z[1, 2]))


def test_measured_statistics_standardise_what_was_measured() -> None:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(7, 4, 5, 3, dtype=torch.float64, generator=generator)
    z = NOVELAI_ANIME.restore(z)
    statistics = Welford(4)
    statistics.update(z)
    x = ScaleShift.from_welford(statistics).standardise(z)
    after = Welford(4)
    after.update(x)
    zero, one = torch.zeros(4, dtype=torch.float64), torch.ones(4, dtype=torch.float64)
    torch.testing.assert_close(after.mean, zero, rtol=0, atol=tolerances.FLOAT64_ROUNDING)
    torch.testing.assert_close(after.std, one, rtol=tolerances.FLOAT64_ROUNDING, atol=0)


def test_statistics_of_nothing_and_of_a_constant_are_refused() -> None:
    statistics = Welford(2)
    with pytest.raises(InputError, match="0 values seen"):
        ScaleShift.from_welford(statistics)
    statistics.update(torch.ones(3, 2, 2, 2))
    with pytest.raises(InputError, match=r"std of channel 0 is 0\.0"):
        ScaleShift.from_welford(statistics)


@given(pair=strategies.scale_shifts())
def test_json_and_diffusers_keep_every_bit(pair: tuple[list[float], list[float]]) -> None:
    scale_shift = ScaleShift(*pair)
    assert ScaleShift.from_json(scale_shift.to_json()) == scale_shift
    config = json.loads(json.dumps(scale_shift.to_diffusers()))
    assert config["scaling_factor"] == 1
    assert ScaleShift.from_diffusers(config) == scale_shift


def test_diffusers_configs() -> None:
    plain = {"scaling_factor": 0.13025, "latents_mean": None, "latents_std": None, "shift_factor": None}
    assert ScaleShift.from_diffusers(plain) == SDXL_DEFAULT
    # With both, diffusers' pipelines apply (z − mean)·factor / std.
    both = ScaleShift.from_diffusers({"latents_mean": [1, 2], "latents_std": [4, 8], "scaling_factor": 0.5})
    assert both == ScaleShift((1.0, 2.0), (8.0, 16.0))
    assert ScaleShift.from_diffusers({"latents_mean": [1], "latents_std": [4]}) == ScaleShift((1.0,), (4.0,))


def test_diffusers_vae_takes_the_exported_entries() -> None:
    vae = AutoencoderKL(block_out_channels=(32,), **NOVELAI_ANIME.to_diffusers())
    assert ScaleShift.from_diffusers(vae.config) == NOVELAI_ANIME


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "neither scaling_factor nor"),
        ({"latents_mean": [0.0], "scaling_factor": 1.0}, "both be given"),
        ({"latents_std": [1.0]}, "both be given"),
        ({"scaling_factor": 0.0}, "scaling factor is 0"),
        ({"scaling_factor": "0.13"}, "must be a number"),
        ({"scaling_factor": math.nan}, "scaling factor is nan"),
        ({"scaling_factor": 0.3611, "shift_factor": 0.1159}, "shift_factor 0.1159"),
        ({"latents_mean": [0.0, 1.0], "latents_std": [1.0]}, "2 means but 1 stds"),
    ],
)
def test_contradictory_diffusers_configs_are_refused(config: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ScaleShift.from_diffusers(config)


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        ((0.0,), (0.0,), "std of channel 0 is 0"),
        ((0.0, 0.0), (1.0, -2.0), r"std of channel 1 is -2\.0"),
        ((0.0,), (math.inf,), "std of channel 0 is inf"),
        ((0.0,), (math.nan,), "std of channel 0 is nan"),
        ((math.nan,), (1.0,), "mean of channel 0 is nan"),
        ((0.0, 1.0), (1.0,), "2 means but 1 stds"),
        ((), (), "list of numbers"),
        (0.0, 1.0, "list of numbers"),
        (torch.tensor(0.0), torch.tensor(1.0), "list of numbers"),
        (torch.zeros(1, 2), torch.ones(1, 2), "must be a number"),
        (torch.zeros(2), torch.tensor([1.0, 0.0]), r"std of channel 1 is 0\.0"),
        ("0", "1", "list of numbers"),
        (("0",), ("1",), "must be a number"),
        ((True,), (1.0,), "must be a number"),
        ((10**400,), (1.0,), "beyond float64"),
    ],
)
def test_impossible_statistics_are_refused(mean, std, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ScaleShift(mean, std)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "3",
        '{"mean": [0]}',
        '{"mean": [0], "std": [1], "x": 1}',
        '{"mean": [NaN], "std": [1]}',
        '{"mean": [0], "std": [1e999]}',
        '{"mean": 0, "std": 1}',
        "[" * 100_000,
        "9" * 5_000,
    ],
    ids=lambda text: text[:30],
)
def test_damaged_json_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="ScaleShift"):
        ScaleShift.from_json(text)


@pytest.mark.parametrize("act", ["standardise", "restore"])
def test_wrong_latents_are_refused(act: str) -> None:
    with pytest.raises(InputError, match=r"expected \[..., 4, H, W\], got \[1, 3, 2, 2\]"):
        getattr(NOVELAI_ANIME, act)(torch.ones(1, 3, 2, 2))
    with pytest.raises(InputError, match="got"):
        getattr(NOVELAI_ANIME, act)(torch.ones(4))
    with pytest.raises(InputError, match=r"floating-point tensor, got torch\.int64"):
        getattr(NOVELAI_ANIME, act)(torch.ones(1, 4, 2, 2, dtype=torch.int64))


def test_statistics_cannot_drift() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        NOVELAI_ANIME.mean = (0.0,) * 4  # type: ignore[misc]
    assert hash(ScaleShift([0], [1])) == hash(ScaleShift((0.0,), (1.0,)))
