"""Buckets and the assignment of images to them (N §4.1.2; S App. H)."""

import math
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refimpl.conformance.checks.data.assign import turned_differently
from refimpl.conformance.checks.data.buckets import NOVELAI_SET
from refimpl.data.bucket_sizes import check_buckets
from refimpl.data.buckets import (
    CHUNK,
    PRESETS,
    assign,
    assign_and_prune,
    make_buckets,
    pixel_budget_batch_sizes,
)
from refimpl.errors import InputError
from tests import strategies
from tests.conforming import conforms
from tests.tolerances import FLOAT64_ROUNDING

# S App. H, as (height, width) pairs read row by row.
APP_H = """
512 2048 512 1984 512 1920 512 1856 576 1792 576 1728 576 1664 640 1600 640 1536 704 1472
704 1408 704 1344 768 1344 768 1280 832 1216 832 1152 896 1152 896 1088 960 1088 960 1024
1024 1024 1024 960 1088 960 1088 896 1152 896 1152 832 1216 832 1280 768 1344 768 1408 704
1472 704 1536 640 1600 640 1664 576 1728 576 1792 576 1856 512 1920 512 1984 512 2048 512
"""


def transposed(buckets: list[tuple[int, int]]) -> list[tuple[int, int]]:
    return [(height, width) for width, height in buckets]


def test_novelai_v1_is_the_19_buckets_of_the_paper() -> None:
    conforms("buckets.novelai_set", within=0)
    assert sorted(PRESETS["novelai_v1"]) == sorted([*NOVELAI_SET, (512, 512)])
    assert PRESETS["novelai_v1"][-1] == (512, 512)


@pytest.mark.parametrize("check", ["within_area", "within_sides", "multiples", "turned", "distinct"])
def test_buckets_keep_their_limits(check: str) -> None:
    conforms(f"buckets.{check}")


def test_novelai_v3_has_33_buckets() -> None:
    buckets = PRESETS["novelai_v3"]
    assert len(buckets) == len(set(buckets)) == 33
    assert {(832, 1216), (1216, 832), (1024, 1024)} <= set(buckets)
    assert min(min(bucket) for bucket in buckets) == 512
    assert max(max(bucket) for bucket in buckets) == 2048


def test_sdxl_is_appendix_h_in_its_order() -> None:
    numbers = [int(number) for number in APP_H.split()]
    assert PRESETS["sdxl"] == list(zip(numbers[1::2], numbers[::2], strict=True))
    assert len(PRESETS["sdxl"]) == 40


@given(strategies.bucket_arguments())
def test_make_buckets_is_the_papers_algorithm(arguments: tuple[int, int, int, int]) -> None:
    max_area, max_side, min_side, step = arguments
    sides = [side for side in range(1, max_side + 1) if side % step == 0 and side >= min_side]
    expected = set()
    for width in sides:
        heights = [height for height in sides if width * height <= max_area]
        if heights:
            expected |= {(width, max(heights)), (max(heights), width)}
    assert sorted(make_buckets(*arguments)) == sorted(expected)


@given(strategies.bucket_arguments())
def test_generated_buckets_are_closed_under_transposing_in_one_order(
    arguments: tuple[int, int, int, int],
) -> None:
    buckets = make_buckets(*arguments)
    portrait = [bucket for bucket in buckets if bucket[0] < bucket[1]]
    landscape = [bucket for bucket in buckets if bucket[0] > bucket[1]]
    assert landscape == transposed(portrait)


def test_extras_come_last_and_once() -> None:
    plain = make_buckets(512 * 768, 1024, 256, 64)
    assert make_buckets(512 * 768, 1024, 256, 64, extra=[(512, 512), (512, 768), (512, 512)]) == [
        *plain,
        (512, 512),
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((512 * 768, 1024, 256, 0), "step = 0"),
        ((512 * 768, 1024, 256, -64), "step = -64"),
        ((512 * 768, 1024, 0, 64), "min_side = 0"),
        ((0, 1024, 256, 64), "max_area = 0"),
        ((512 * 768, 256, 1024, 64), "min_side = 1024 is above max_side = 256"),
        ((256 * 256 - 1, 1024, 256, 64), "no bucket fits max_area = 65535"),
        ((512 * 768, 130, 129, 64), "no bucket fits"),
        ((512 * 768, 2**21, 256, 64), "max_side = 2097152"),
    ],
)
def test_impossible_arguments_are_named(arguments: tuple[int, int, int, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_buckets(*arguments)


@pytest.mark.parametrize("buckets", [[], [(0, 64)], [(64, -1)], [(64, 64, 64)], [(64.5, 64)], [(64, 2**21)]])
def test_impossible_buckets_are_named(buckets: list) -> None:
    with pytest.raises(InputError, match="bucket"):
        check_buckets(buckets)


def nearest_exactly(width: int, height: int, buckets: list[tuple[int, int]], metric: str) -> int:
    """The definition in rational arithmetic: least error, then nearest area, then lowest index."""

    def rank(index: int) -> tuple[Fraction, int, int]:
        across, down = buckets[index]
        ratio = Fraction(across * height, down * width)
        error = (
            max(ratio, 1 / ratio)
            if metric == "log"
            else abs(Fraction(across, down) - Fraction(width, height))
        )
        return error, abs(across * down - width * height), index

    return min(range(len(buckets)), key=rank)


@pytest.mark.parametrize("metric", ["log", "linear"])
@given(sizes=strategies.image_sizes(), buckets=strategies.bucket_sets())
def test_assign_is_exact_also_in_ties(metric: str, sizes: list, buckets: list) -> None:
    index, _ = assign([w for w, _ in sizes], [h for _, h in sizes], buckets, metric)
    assert index.tolist() == [nearest_exactly(w, h, buckets, metric) for w, h in sizes]


@pytest.mark.parametrize("metric", ["log", "linear"])
@pytest.mark.parametrize("preset", list(PRESETS))
def test_assign_is_exact_near_every_boundary_of_the_presets(preset: str, metric: str) -> None:
    buckets = PRESETS[preset]
    sizes = []
    for (w1, h1), (w2, h2) in pairwise(sorted(buckets, key=lambda bucket: bucket[0] / bucket[1])):
        width, height = w1 * h2 + w2 * h1, 2 * h1 * h2  # the linear tie, exactly
        sizes += [(width, height), (width + 1, height), (width - 1, height), (height, width)]
        root = math.isqrt(w1 * w2 * h1 * h2 << 16)  # the log tie, to eight more bits
        sizes += [(root, h1 * h2 << 8), (root + 1, h1 * h2 << 8)]
    index, _ = assign([w for w, _ in sizes], [h for _, h in sizes], buckets, metric)
    assert index.tolist() == [nearest_exactly(w, h, buckets, metric) for w, h in sizes]


@pytest.mark.parametrize(("buckets", "boundary"), [([(1, 1), (9, 4)], 1.5), ([(4, 1), (9, 1)], 6)])
def test_assign_is_exact_where_float32_sizes_round(buckets: list, boundary: float) -> None:
    """Sides above 2^24, whose float32 aspects can land on the wrong side of a boundary."""
    generator = np.random.default_rng(0)
    heights = generator.integers(2**24, int(2**31 / boundary) - 3, 300)
    widths = np.rint(heights * boundary).astype(np.int64) + generator.integers(-3, 4, 300)
    index, _ = assign(widths, heights, buckets)
    expected = [nearest_exactly(int(w), int(h), buckets, "log") for w, h in zip(widths, heights, strict=True)]
    assert index.tolist() == expected


@given(strategies.image_sizes(), strategies.bucket_arguments())
def test_log_assignment_commutes_with_transposing(sizes: list, arguments: tuple[int, int, int, int]) -> None:
    buckets = make_buckets(*arguments)
    sizes = [(w, h) for w, h in sizes if w != h]  # a square's transpose is itself, whichever way a tie goes
    widths, heights = [w for w, _ in sizes], [h for _, h in sizes]
    index, error = assign(widths, heights, buckets)
    turned_index, turned_error = assign(heights, widths, buckets)
    assert turned_differently([buckets[i] for i in index], [buckets[i] for i in turned_index]) == 0
    assert (error == turned_error).all()


def test_assignment_is_what_the_documentation_says_of_the_default_buckets() -> None:
    conforms("assign.same_shape_same_bucket")
    conforms("assign.nearest_aspect", within=0)
    conforms("assign.symmetric", within=0)
    conforms("assign.pruning", within=0)
    conforms("assign.mean_error")


@pytest.mark.parametrize("metric", ["log", "linear"])
@given(sizes=strategies.image_sizes(), buckets=strategies.bucket_sets())
def test_error_is_the_aspect_error(metric: str, sizes: list, buckets: list) -> None:
    index, error = assign([w for w, _ in sizes], [h for _, h in sizes], buckets, metric)
    for (width, height), i, value in zip(sizes, index, error, strict=True):
        bucket, image = Fraction(*buckets[i]), Fraction(width, height)
        expected = abs(bucket - image) if metric == "linear" else abs(math.log(bucket / image))
        assert value == pytest.approx(float(expected), rel=FLOAT64_ROUNDING, abs=FLOAT64_ROUNDING)
        assert (value == 0) == (bucket == image)


def test_assign_takes_any_integers_and_any_number_of_images() -> None:
    generator = np.random.default_rng(0)
    sizes = generator.integers(1, 200, (2, CHUNK + 3))
    whole, error = assign(*sizes, PRESETS["sdxl"])
    for kind in (np.uint8, np.int16, np.uint64, np.float32, np.float64):
        again, _ = assign(*sizes.astype(kind), PRESETS["sdxl"])
        assert (again == whole).all()
    parts = [
        assign(*sizes[:, part], PRESETS["sdxl"]) for part in (slice(0, 1), slice(1, 700), slice(700, None))
    ]
    assert (np.concatenate([index for index, _ in parts]) == whole).all()
    assert (np.concatenate([errors for _, errors in parts]) == error).all()
    empty, no_error = assign([], [], PRESETS["sdxl"])
    assert empty.size == no_error.size == 0


@pytest.mark.parametrize(
    ("widths", "heights", "metric", "message"),
    [
        ([4, 0], [4, 4], "log", "image 1 is 0x4"),
        ([4, 4, 4], [4, 4, -2], "log", "image 2 is 4x-2"),
        ([2**31], [4], "log", "image 0 is 2147483648x4"),
        ([4, 4], [4], "log", "2 widths but 1 heights"),
        ([4.5], [4], "log", "one integer, in pixels, per image"),
        ([math.nan], [4], "log", "one integer, in pixels, per image"),
        ([math.inf], [4], "log", "one integer, in pixels, per image"),
        ([4, 0.0], [4, 4], "log", "image 1 is 0x4"),
        ([[4]], [[4]], "log", "one integer, in pixels, per image"),
        ([4], [4], "euclidean", "unknown aspect metric 'euclidean'"),
    ],
)
def test_bad_sizes_are_named(widths: list, heights: list, metric: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        assign(widths, heights, PRESETS["sdxl"], metric)  # type: ignore[arg-type]


def test_bad_size_is_counted_from_the_start_of_the_dataset() -> None:
    sizes = np.full(CHUNK + 10, 64)
    sizes[CHUNK + 7] = 0
    with pytest.raises(InputError, match=f"image {CHUNK + 7} is 0x64"):
        assign(sizes, np.full(CHUNK + 10, 64), PRESETS["sdxl"])


@pytest.mark.parametrize("metric", ["log", "linear"])
@given(sizes=strategies.image_sizes(), limit=st.sampled_from((0.0, 0.033, math.log(1.5), math.inf)))
def test_an_image_and_its_transpose_are_pruned_together(metric: str, sizes: list, limit: float) -> None:
    buckets = PRESETS["novelai_v3"]
    widths, heights = [w for w, _ in sizes], [h for _, h in sizes]
    found = assign_and_prune(widths, heights, buckets, metric, limit)
    turned = assign_and_prune(heights, widths, buckets, metric, limit)
    assert (found.pruned == turned.pruned).all()
    least = [min(abs(math.log(w * down / (h * across))) for across, down in buckets) for w, h in sizes]
    clear = [abs(error - limit) > FLOAT64_ROUNDING for error in least]
    assert [bool(p) for p, c in zip(found.pruned, clear, strict=True) if c] == [
        error > limit for error, c in zip(least, clear, strict=True) if c
    ]


def test_mean_error_is_of_the_images_kept() -> None:
    found = assign_and_prune([512, 520, 9000], [512, 512, 512], PRESETS["novelai_v1"], "linear", 0.5)
    assert found.pruned.tolist() == [False, False, True]
    assert found.mean_error == pytest.approx((0 + 8 / 512) / 2, abs=FLOAT64_ROUNDING)
    assert math.isnan(assign_and_prune([9000], [512], PRESETS["novelai_v1"], max_log_error=0.5).mean_error)


@pytest.mark.parametrize("limit", [-0.1, math.nan])
def test_a_senseless_limit_is_refused(limit: float) -> None:
    with pytest.raises(InputError, match="max_log_error"):
        assign_and_prune([64], [64], PRESETS["sdxl"], max_log_error=limit)


def test_pixel_budget() -> None:
    buckets = [(64, 64), (128, 64), (128, 128)]
    assert pixel_budget_batch_sizes(buckets, 128 * 128).tolist() == [4, 2, 1]
    assert pixel_budget_batch_sizes(buckets, 3 * 128 * 128 - 1).tolist() == [11, 5, 2]
    with pytest.raises(InputError, match="pixel budget 16383 is below one image of bucket 128x128 = 16384"):
        pixel_budget_batch_sizes(buckets, 128 * 128 - 1)
