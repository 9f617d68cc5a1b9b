"""Cover, crop, flip and the size integers (N §4.1.3; S Alg. 1)."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from refimpl.data.crop import (
    SCALED_WHOLE,
    SizeInts,
    conditioning_at_inference,
    cover_and_crop,
    cover_size,
    flip,
)
from refimpl.errors import InputError
from tests.conforming import conforms
from tests.tolerances import LANCZOS_BOX_LEVELS

BUCKETS = [(8, 8), (8, 16), (24, 8), (32, 32), (64, 16)]


class At:
    """Draws the given numbers, top first, and records the ranges requested."""

    def __init__(self, *values: int) -> None:
        self.values = list(values)
        self.ranges: list[tuple[int, int]] = []

    def integers(self, low: int, high: int) -> int:
        self.ranges.append((low, high))
        value = self.values.pop(0)
        assert low <= value < high
        return value


def gradient(width: int, height: int) -> Image.Image:
    """Red increases to the right, green downwards; blue is noise whose filtered values stay within the scale."""
    noise = np.random.default_rng(0).integers(80, 176, (height, width))
    red = np.broadcast_to(np.linspace(0, 255, width), (height, width))
    green = np.broadcast_to(np.linspace(0, 255, height)[:, None], (height, width))
    return Image.fromarray(np.stack([red, green, noise], 2).astype(np.uint8))


@given(
    st.integers(1, 3000) | st.sampled_from((1, 10_000, 2**31 - 1)),
    st.integers(1, 3000),
    st.sampled_from(BUCKETS),
)
def test_cover_size_is_the_least_that_covers(width: int, height: int, bucket: tuple[int, int]) -> None:
    across, down = cover_size(width, height, bucket)
    scale = max(Fraction(bucket[0], width), Fraction(bucket[1], height))
    assert across >= bucket[0]
    assert down >= bucket[1]
    assert (across, down)[scale != Fraction(bucket[0], width)] == bucket[scale != Fraction(bucket[0], width)]
    assert 0 <= across - scale * width < 1
    assert 0 <= down - scale * height < 1


@given(st.integers(1, 90), st.integers(1, 90), st.sampled_from(BUCKETS), st.integers(0, 2**32 - 1))
def test_crop_is_the_crop_of_the_whole_image_scaled(
    width: int, height: int, bucket: tuple[int, int], seed: int
) -> None:
    image = gradient(width, height)
    cropped, ints = cover_and_crop(image, bucket, np.random.default_rng(seed))
    scaled = image.resize(cover_size(width, height, bucket), Image.Resampling.LANCZOS)
    box = (ints.crop_left, ints.crop_top, ints.crop_left + bucket[0], ints.crop_top + bucket[1])
    expected = np.asarray(scaled.crop(box)).astype(int)
    largest = np.abs(np.asarray(cropped).astype(int) - expected).max()
    assert cropped.size == bucket
    is_long = scaled.width * scaled.height > SCALED_WHOLE * bucket[0] * bucket[1]
    assert largest <= (LANCZOS_BOX_LEVELS if is_long else 0)
    assert 0 <= ints.crop_top <= scaled.height - bucket[1]
    assert 0 <= ints.crop_left <= scaled.width - bucket[0]
    assert 0 in (ints.crop_top, ints.crop_left)


def test_a_wide_image_is_cropped_from_the_left_a_tall_one_from_the_top() -> None:
    wide, ints = cover_and_crop(gradient(40, 10), (10, 10), rng := At(0, 30))
    assert rng.ranges == [(0, 1), (0, 31)]
    assert ints == SizeInts(10, 40, 0, 30, 10, 10)
    assert (np.asarray(wide) == np.asarray(gradient(40, 10))[:, 30:]).all()
    tall, ints = cover_and_crop(gradient(10, 40), (10, 10), rng := At(7, 0))
    assert rng.ranges == [(0, 31), (0, 1)]
    assert ints == SizeInts(40, 10, 7, 0, 10, 10)
    assert (np.asarray(tall) == np.asarray(gradient(10, 40))[7:17]).all()


def test_order_of_the_ints() -> None:
    conforms("size_ints.order")


@pytest.mark.parametrize(
    "check",
    [
        "integers_name_the_crop", "integers_of_a_survey", "keeps_aspect", "stays_inside", "least_cover",
        "original_size", "target_size",
    ],
)  # fmt: skip
def test_a_crop_is_what_its_integers_say(check: str) -> None:
    conforms(f"crop.{check}")


def test_every_offset_is_drawn() -> None:
    generator = np.random.default_rng(0)
    image = gradient(13, 10)
    lefts = {cover_and_crop(image, (10, 10), generator)[1].crop_left for _ in range(100)}
    assert lefts == {0, 1, 2, 3}


def test_downscaling_is_antialiased() -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    small, _ = cover_and_crop(stripes, (8, 8), At(0, 0))
    assert set(np.unique(small[:, 3:-3])) <= {127, 128}  # inside, where no weights are cut off


@pytest.mark.parametrize("bucket", [(64, 64), (832, 1216), (2048, 512), (512, 2048)])
@pytest.mark.parametrize("size", [(1, 1), (1, 10_000), (10_000, 1), (3, 2), (1, 3_000_000)])
def test_extreme_sizes(size: tuple[int, int], bucket: tuple[int, int]) -> None:
    image = Image.new("RGB", size, (10, 200, 30))
    cropped, ints = cover_and_crop(image, bucket, np.random.default_rng(0))
    assert cropped.size == bucket
    assert cropped.getextrema() == ((10, 10), (200, 200), (30, 30))
    assert ints[:2] == size[::-1]


@pytest.mark.parametrize("size", [(60, 2000), (2000, 60), (5, 400)])
def test_the_part_computed_of_a_long_image_is_that_of_the_whole(size: tuple[int, int]) -> None:
    column, row = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    # As wide as the lobes of the filter, and along one axis only, so there is no rounding between two passes.
    stripes = (column if size[0] > size[1] else row) // 8 % 2 * 255
    image = Image.fromarray(np.repeat(stripes[:, :, None], 3, 2).astype(np.uint8))
    across, down = cover_size(*size, (8, 8))
    assert across * down > SCALED_WHOLE * 8 * 8
    scaled = image.resize((across, down), Image.Resampling.LANCZOS)
    for share in (0, 0.37, 1):
        top, left = int(share * (down - 8)), int(share * (across - 8))
        cropped, _ = cover_and_crop(image, (8, 8), At(top, left))
        assert (np.asarray(cropped) == np.asarray(scaled.crop((left, top, left + 8, top + 8)))).all()


def test_the_crop_of_a_very_long_image_is_where_it_says() -> None:
    """Row i of 10,000 has grey i // 100; scaled by 8, the crop from row 8 · 5,000 shows grey 50."""
    rows = np.repeat(np.arange(100, dtype=np.uint8), 100)
    image = Image.fromarray(np.broadcast_to(rows[:, None, None], (10_000, 1, 3)).copy())
    cropped, _ = cover_and_crop(image, (8, 80), At(8 * 5_050, 0))
    assert cropped.getextrema() == ((50, 50),) * 3


@given(st.integers(1, 90), st.integers(1, 90), st.sampled_from(BUCKETS), st.integers(0, 2**32 - 1))
def test_arrays_and_images_agree(width: int, height: int, bucket: tuple[int, int], seed: int) -> None:
    image = gradient(width, height)
    cropped, ints = cover_and_crop(image, bucket, np.random.default_rng(seed))
    array, array_ints = cover_and_crop(np.asarray(image)[::-1][::-1], bucket, np.random.default_rng(seed))
    assert ints == array_ints
    assert array.flags.writeable
    assert (array == np.asarray(cropped)).all()
    flipped, flipped_ints = flip(cropped, ints)
    flipped_array, flipped_array_ints = flip(array, ints)
    assert flipped_ints == flipped_array_ints
    assert (flipped_array == np.asarray(flipped)).all()


def test_a_flip_mirrors_left() -> None:
    image = gradient(43, 10)
    for left in range(34):
        cropped, ints = cover_and_crop(image, (10, 10), At(0, left))
        mirrored, mirrored_ints = flip(cropped, ints)
        assert mirrored_ints == ints._replace(crop_left=33 - left)
        of_mirrored, of_mirrored_ints = cover_and_crop(
            image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), (10, 10), At(0, 33 - left)
        )
        assert mirrored_ints == of_mirrored_ints
        assert (np.asarray(mirrored) == np.asarray(of_mirrored)).all()


@given(st.integers(1, 90), st.integers(1, 90), st.sampled_from(BUCKETS), st.integers(0, 2**32 - 1))
def test_a_flip_undoes_itself(width: int, height: int, bucket: tuple[int, int], seed: int) -> None:
    cropped, ints = cover_and_crop(gradient(width, height), bucket, np.random.default_rng(seed))
    again, ints_again = flip(*flip(cropped, ints))
    assert ints_again == ints
    assert (np.asarray(again) == np.asarray(cropped)).all()
    assert 0 <= flip(cropped, ints)[1].crop_left <= cover_size(width, height, bucket)[0] - bucket[0]


def test_inference_crops_nothing() -> None:
    assert conditioning_at_inference(1216, 832) == (1216, 832, 0, 0, 1216, 832)
    assert conditioning_at_inference(64, 96, original_height=512) == (512, 96, 0, 0, 64, 96)


@pytest.mark.parametrize("mode", ["P", "1", "RGBA", "CMYK", "I;16", "F"])
def test_other_modes_are_refused(mode: str) -> None:
    with pytest.raises(InputError, match=f"mode {mode}"):
        cover_and_crop(Image.new(mode, (8, 8)), (8, 8), At(0, 0))


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((8, 8), np.uint8),
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((8, 8, 3)),
        np.zeros((0, 8, 3), np.uint8),
    ],
)
def test_other_arrays_are_refused(array: np.ndarray) -> None:
    with pytest.raises(InputError, match="give uint8"):
        cover_and_crop(array, (8, 8), At(0, 0))


@pytest.mark.parametrize(("size", "bucket"), [((8, 8), (0, 8)), ((8, 8), (8, -8)), ((0, 8), (8, 8))])
def test_sizes_without_area_are_refused(size: tuple[int, int], bucket: tuple[int, int]) -> None:
    with pytest.raises(InputError, match="below 1"):
        cover_and_crop(Image.new("RGB", size), bucket, At(0, 0))
