"""Lanczos by torch against Pillow's."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from refimpl.data.crop import cover_and_crop
from refimpl.data.images import lanczos as module
from refimpl.data.images.lanczos import check_torch_lanczos, lanczos
from refimpl.errors import InputError
from tests.data.lanczos import needs_lanczos
from tests.tolerances import LANCZOS_LEVELS

side = st.integers(1, 150)


def picture(kind: str, width: int, height: int) -> np.ndarray:
    """Black and white pixels overshoot the most, and so reveal the order of the passes."""
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3))
    columns = np.broadcast_to(np.linspace(0, 255, width)[None, :, None], noise.shape)
    kinds = {"noise": noise, "black or white": noise % 2 * 255, "ramp": columns, "flat": noise * 0 + 7}
    return kinds[kind].astype(np.uint8)


@needs_lanczos
@pytest.mark.parametrize("kind", ["noise", "black or white", "ramp", "flat"])
@given(width=side, height=side, across=side, down=side)
def test_it_is_within_two_levels_of_pillows(
    kind: str, width: int, height: int, across: int, down: int
) -> None:
    pixels = picture(kind, width, height)
    expected = Image.fromarray(pixels).resize((across, down), Image.Resampling.LANCZOS)
    scaled = lanczos(pixels, across, down)
    assert scaled.shape == (down, across, 3)
    assert scaled.dtype == np.uint8
    assert np.abs(scaled.astype(int) - np.asarray(expected)).max() <= LANCZOS_LEVELS


@needs_lanczos
@given(width=side, height=side, bucket=st.sampled_from([(8, 8), (24, 8), (64, 16)]), seed=st.integers(0, 99))
def test_crops_agree_with_pillows_and_their_integers_are_the_same(
    width: int, height: int, bucket: tuple[int, int], seed: int
) -> None:
    pixels = picture("noise", width, height)
    expected, ints = cover_and_crop(pixels, bucket, np.random.default_rng(seed))
    cropped, torch_ints = cover_and_crop(pixels, bucket, np.random.default_rng(seed), "torch")
    assert ints == torch_ints
    assert cropped.shape == expected.shape
    assert np.abs(cropped.astype(int) - expected).max() <= LANCZOS_LEVELS


@needs_lanczos
def test_arrays_that_cannot_be_written_to_or_are_strided_are_taken() -> None:
    check_torch_lanczos()
    pixels = picture("noise", 20, 30)
    pixels.flags.writeable = False
    assert (lanczos(pixels, 10, 10) == lanczos(pixels.copy(), 10, 10)).all()
    assert (lanczos(pixels[::2, ::-1], 10, 10) == lanczos(pixels[::2, ::-1].copy(), 10, 10)).all()


def test_a_torch_without_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def without(*arguments: object, **options: object) -> None:
        raise NotImplementedError

    monkeypatch.setattr(module, "interpolate", without)
    with pytest.raises(InputError, match=r"has no Lanczos filter .* data\.decoder = 'pillow'"):
        check_torch_lanczos()
