"""PSNR, SSIM and blockiness against scikit-image and hand-computed values."""

import io
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from skimage.data import astronaut
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from refimpl.errors import InputError
from refimpl.latents.image_quality import blockiness, psnr, ssim
from tests.tolerances import FLOAT64_ROUNDING

FIRST, SECOND = (torch.rand(3, 3, 24, 17, generator=torch.Generator().manual_seed(s)) * 2 - 1 for s in (0, 1))


def as_images(x: torch.Tensor) -> list[np.ndarray]:
    return [image.permute(1, 2, 0).double().numpy() for image in x]


def test_psnr_and_ssim_are_those_of_scikit_image() -> None:
    mixed = 0.7 * FIRST + 0.3 * SECOND
    for i, (a, b) in enumerate(zip(as_images(mixed), as_images(FIRST), strict=True)):
        assert (
            abs(psnr(mixed, FIRST)[i] - peak_signal_noise_ratio(b, a, data_range=2)) <= FLOAT64_ROUNDING * 100
        )
        expected = structural_similarity(
            b, a, channel_axis=2, data_range=2, gaussian_weights=True, use_sample_covariance=False
        )
        assert abs(ssim(mixed, FIRST)[i] - expected) <= FLOAT64_ROUNDING * 100


def test_equal_pictures() -> None:
    assert psnr(FIRST, FIRST).tolist() == [math.inf] * 3
    assert torch.allclose(
        ssim(FIRST, FIRST), torch.ones(3, dtype=torch.float64), rtol=0, atol=FLOAT64_ROUNDING
    )


def test_blockiness_by_hand() -> None:
    """Steps of 2 across block boundaries and of 1 elsewhere."""
    steps = torch.tensor([2.0 if i % 8 == 0 else 1.0 for i in range(1, 24)])
    row = torch.cat([torch.zeros(1), steps.cumsum(0)])
    picture = (row[:, None] + row[None, :]).expand(2, 1, 24, 24)
    assert blockiness(picture).tolist() == [2.0, 2.0]
    assert blockiness(torch.zeros(1, 3, 9, 9)).tolist() == [1.0]
    blocks = torch.arange(3.0).repeat_interleave(8).expand(1, 1, 24, 24)
    assert blockiness(blocks).tolist() == [math.inf]


@given(scale=st.sampled_from([1e-3, 1.0, 100.0]), shift=st.floats(-1, 1), height=st.integers(9, 40))
def test_blockiness_ignores_scale_and_shift_and_turns_with_the_picture(
    scale: float, shift: float, height: int
) -> None:
    x = torch.rand(2, 3, height, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(height))
    expected = blockiness(x)
    assert torch.allclose(blockiness(scale * x + shift), expected, rtol=FLOAT64_ROUNDING * 1e4, atol=0)
    assert torch.allclose(blockiness(x.transpose(2, 3)), expected, rtol=FLOAT64_ROUNDING, atol=0)


def test_jpeg_is_blockier_the_lower_its_quality() -> None:
    image = Image.fromarray(astronaut()[:200, :200])
    values = [blockiness(torch.tensor(np.asarray(image)).permute(2, 0, 1)[None].float()).item()]
    for quality in (30, 10, 3):
        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality)
        pixels = np.asarray(Image.open(file).convert("RGB"))
        values.append(blockiness(torch.tensor(pixels).permute(2, 0, 1)[None].float()).item())
    assert values == sorted(values)
    assert values[0] < 1.1
    assert values[-1] > 1.5


def test_wrong_shapes_are_named() -> None:
    with pytest.raises(InputError, match=r"\[3, 3, 24, 17\] and their originals \[1, 3, 24, 17\]"):
        psnr(FIRST, FIRST[:1])
    with pytest.raises(InputError, match="10 × 24: both sides must be at least 11"):
        ssim(FIRST[..., :10], FIRST[..., :10])
    with pytest.raises(InputError, match="sides above 8"):
        blockiness(FIRST[..., :8])
