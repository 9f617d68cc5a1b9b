"""Which sizes are trained on: NovelAI's algorithm and the published sets (N §4.1.2; S §2.3, App. H)."""

from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import Literal

from refimpl.errors import InputError

Bucket = tuple[int, int]  # (width, height) in pixels
Metric = Literal["linear", "log"]

MAX_SIDE = 2**20  # pixels, of a bucket


def make_buckets(
    max_area: int, max_side: int, min_side: int, step: int, extra: Iterable[Bucket] = ()
) -> list[Bucket]:
    """Bucket sizes by NovelAI's algorithm (N §4.1.2), with its constants as arguments.

    For every width that is a multiple of `step` from `min_side` to `max_side`, the largest such height with
    width·height ≤ `max_area`; the same with width and height exchanged; duplicates pruned; then `extra`.
    A width for which even `min_side` is too high gives no bucket.

    max_area  pixels          max_side, min_side, step  pixels          extra  (width, height) pairs
    returns   (width, height) pairs: from the square outwards (by max/min side), portrait before landscape, then
              the extras that are not among them. The set, extras aside, is closed under transposing, and so
              is the order: of two portrait buckets, the first is also the first when both are turned.
    Raises InputError when no bucket fits or an argument is impossible.
    """
    for name, value in (("step", step), ("min_side", min_side), ("max_area", max_area)):
        if value <= 0:
            raise InputError(f"bucket {name} = {value}: it is in pixels and must be positive")
    if min_side > max_side:
        raise InputError(
            f"bucket min_side = {min_side} is above max_side = {max_side}: no side fits; swap them"
        )
    if max_side > MAX_SIDE:
        raise InputError(f"bucket max_side = {max_side} is above {MAX_SIDE}: lower it")
    shortest = -(-min_side // step) * step
    found: set[Bucket] = set()
    for width in range(shortest, max_side + 1, step):
        height = min(max_side, max_area // width) // step * step
        if height >= min_side:
            found |= {(width, height), (height, width)}
    if not found:
        raise InputError(
            f"no bucket fits max_area = {max_area} with sides {min_side} to {max_side} in steps of {step}: "
            f"the smallest is {shortest}x{shortest} = {shortest**2} pixels; raise max_area or lower min_side"
        )
    buckets = sorted(found, key=_from_square_outwards)
    buckets += [bucket for bucket in dict.fromkeys((w, h) for w, h in extra) if bucket not in found]
    check_buckets(buckets)
    return buckets


def _from_square_outwards(bucket: Bucket) -> tuple[Fraction, int, int]:
    width, height = bucket
    return Fraction(max(bucket), min(bucket)), width * height, width


def check_buckets(buckets: Sequence[Bucket]) -> None:
    """Raise InputError unless `buckets` is a non-empty list of pairs of positive integers up to 2^20."""
    if len(buckets) == 0:
        raise InputError("the bucket list is empty: give at least one (width, height)")
    for position, bucket in enumerate(buckets):
        if len(bucket) != 2 or not all(int(side) == side and 0 < side <= MAX_SIDE for side in bucket):
            raise InputError(
                f"bucket {position} is {tuple(bucket)}: give (width, height) in pixels, 1 to {MAX_SIDE}"
            )


_SDXL_HEIGHT_WIDTH = """
    512x2048 512x1984 512x1920 512x1856 576x1792 576x1728 576x1664 640x1600 640x1536 704x1472
    704x1408 704x1344 768x1344 768x1280 832x1216 832x1152 896x1152 896x1088 960x1088 960x1024
    1024x1024 1024x960 1088x960 1088x896 1152x896 1152x832 1216x832 1280x768 1344x768 1408x704
    1472x704 1536x640 1600x640 1664x576 1728x576 1792x576 1856x512 1920x512 1984x512 2048x512
"""  # S App. H, in its order and its notation, height first


def _parse_height_width(table: str) -> list[Bucket]:
    sizes = [entry.split("x") for entry in table.split()]
    return [(int(width), int(height)) for height, width in sizes]


PRESETS: dict[str, list[Bucket]] = {
    "novelai_v1": make_buckets(512 * 768, 1024, 256, 64, extra=[(512, 512)]),  # N §4.1.2
    "novelai_v3": make_buckets(1024 * 1024, 2048, 512, 64, extra=[(1024, 1024)]),
    "sdxl": _parse_height_width(_SDXL_HEIGHT_WIDTH),
}
