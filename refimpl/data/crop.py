"""Scale to cover a bucket, then crop at random (N §4.1.3; S Alg. 1)."""

from typing import Literal, NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from refimpl.data.bucket_sizes import Bucket
from refimpl.errors import InputError

SCALED_WHOLE = 8  # bucket areas that a scaled image may have before the crop
LANCZOS_REACH = 3  # pixels of the coarser of the two grids, to either side
Picture = TypeVar("Picture", Image.Image, npt.NDArray[np.uint8])
Resampler = Literal["pillow", "torch"]


class SizeInts(NamedTuple):
    """The six conditioning integers of one image, in the order the network takes them (S §2.2), in pixels."""

    original_height: int  # after EXIF rotation, before resizing
    original_width: int
    crop_top: int  # removed after resizing
    crop_left: int
    target_height: int  # of the bucket
    target_width: int


class IntegerSource(Protocol):
    """The source of a crop's random integers: a NumPy Generator, or anything else with its `integers` method."""

    def integers(self, low: int, high: int, /) -> int | np.integer:
        """A random integer in [low, high)."""
        ...


def cover_size(width: int, height: int, bucket: Bucket) -> tuple[int, int]:
    """Smallest size (width, height) to which an image can be scaled to cover `bucket`: one side fits exactly.

    The scale is the larger of the two ratios; the other side is rounded up in integer arithmetic, so it is never
    too short and never a pixel longer than needed.
    """
    across, down = bucket
    if across * height >= down * width:
        return across, -(-height * across // width)
    return -(-width * down // height), down


def cover_and_crop(
    image: Picture, bucket: Bucket, rng: IntegerSource, resampler: Resampler = "pillow"
) -> tuple[Picture, SizeInts]:
    """Scale `image`, keeping its aspect, to cover `bucket`; crop the excess at a random offset.

    image    PIL image of mode RGB or L, or uint8 array [H, W, 3]; upright (EXIF rotation applied)
    bucket   (width, height)
    rng      drawn from twice, for the top and then for the left, each from 0 to the excess, inclusive
    resampler  antialiased Lanczos by "pillow" or, for arrays, by "torch": faster, within 2 levels of Pillow's
    returns  an image of the bucket's size, of the same type as `image`, and its SizeInts
    An image so elongated that the scaled whole would take gigabytes (such as 1x10000 for a bucket of 512x512) is
    resampled by Pillow within the crop only.
    Raises InputError for an image of another mode, shape or type, and for a bucket with a side below 1.
    """
    bucket = int(bucket[0]), int(bucket[1])
    if isinstance(image, Image.Image):
        return _cover_and_crop(image, bucket, rng)
    _check_array(image)
    across, down = bucket
    height, width = image.shape[:2]
    if resampler == "torch" and _can_be_scaled_whole((width, height), bucket):
        size_ints = drawn_crop((width, height), bucket, rng)
        top, left = size_ints.crop_top, size_ints.crop_left
        from refimpl.data.images.lanczos import lanczos  # it brings torch, which `drawn_crop` does without

        scaled = lanczos(image, *cover_size(width, height, bucket))
        return scaled[top : top + down, left : left + across], size_ints
    cropped, size_ints = _cover_and_crop(Image.fromarray(np.ascontiguousarray(image)), bucket, rng)
    return np.array(cropped), size_ints


def _cover_and_crop(image: Image.Image, bucket: Bucket, rng: IntegerSource) -> tuple[Image.Image, SizeInts]:
    scaled = cover(image, bucket)
    if scaled is not None:
        return crop(scaled, image.size, bucket, rng)
    (width, height), (across, down) = image.size, bucket
    covering_width, covering_height = cover_size(width, height, bucket)
    size_ints = drawn_crop(image.size, bucket, rng)
    columns = _span(size_ints.crop_left, across, width, covering_width)
    rows = _span(size_ints.crop_top, down, height, covering_height)
    part = image.crop((columns.first, rows.first, columns.last, rows.last))
    box = (columns.start, rows.start, columns.stop, rows.stop)
    return part.resize((across, down), Image.Resampling.LANCZOS, box=box), size_ints


def cover(image: Image.Image, bucket: Bucket) -> Image.Image | None:
    """The whole image scaled to cover `bucket`, or None if its area would exceed SCALED_WHOLE times the bucket's.

    Raises InputError for an image of a mode other than RGB and L, and for a side below 1.
    """
    if image.mode not in ("RGB", "L"):
        raise InputError(f"image of mode {image.mode}: give RGB or L; use images.decode")
    if not _can_be_scaled_whole(image.size, bucket):
        return None
    return image.resize(cover_size(*image.size, bucket), Image.Resampling.LANCZOS)


def _can_be_scaled_whole(size: tuple[int, int], bucket: Bucket) -> bool:
    across, down = bucket
    if min(across, down, *size) < 1:
        raise InputError(f"image {size[0]}x{size[1]}, bucket {across}x{down}: a side is below 1")
    width, height = cover_size(*size, bucket)
    return width * height <= SCALED_WHOLE * across * down


def crop(
    scaled: Image.Image, original: tuple[int, int], bucket: Bucket, rng: IntegerSource
) -> tuple[Image.Image, SizeInts]:
    """A random crop of what `cover` returned for an image of size `original`, (width, height)."""
    size_ints = drawn_crop(original, bucket, rng)
    left, top = size_ints.crop_left, size_ints.crop_top
    return scaled.crop((left, top, left + bucket[0], top + bucket[1])), size_ints


def drawn_crop(original: tuple[int, int], bucket: Bucket, rng: IntegerSource) -> SizeInts:
    """Where `cover_and_crop` cuts an image of size `original`, (width, height); no pixel is needed."""
    (width, height), (across, down) = original, bucket
    covering_width, covering_height = cover_size(width, height, bucket)
    top = int(rng.integers(0, covering_height - down + 1))
    left = int(rng.integers(0, covering_width - across + 1))
    return SizeInts(height, width, top, left, down, across)


class _Span(NamedTuple):
    """Source pixels [first, last) that a crop's filter reaches, and the crop itself, counted from `first`."""

    first: int
    last: int
    start: float
    stop: float


def _span(offset: int, length: int, size: int, covering: int) -> _Span:
    """Where pixels [offset, offset + length) of an axis scaled from `size` to `covering` come from.

    Pillow rounds the box to float32, so it is measured from a whole pixel nearby, not from the image's edge.
    """
    reach = 1 + LANCZOS_REACH * max(1, -(-size // covering))
    first = max(0, offset * size // covering - reach)
    last = min(size, -(-(offset + length) * size // covering) + reach)
    start = (offset * size - first * covering) / covering
    stop = ((offset + length) * size - first * covering) / covering
    return _Span(first, last, start, stop)


def _check_array(array: npt.NDArray[np.uint8]) -> None:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or array.size == 0:
        raise InputError(f"image array of shape {array.shape}, {array.dtype}: give uint8 [H, W, 3]")


def flip(image: Picture, size_ints: SizeInts) -> tuple[Picture, SizeInts]:
    """Mirror a cropped image left to right, and update its crop_left to match (S §2.2).

    The mirrored image's crop_left is the number of pixels that the crop had removed on the right.
    """
    original = size_ints.original_width, size_ints.original_height
    covering_width, _ = cover_size(*original, (size_ints.target_width, size_ints.target_height))
    left = covering_width - size_ints.target_width - size_ints.crop_left
    size_ints = size_ints._replace(crop_left=left)
    if isinstance(image, Image.Image):
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), size_ints
    return np.ascontiguousarray(image[:, ::-1]), size_ints


def conditioning_at_inference(
    height: int, width: int, original_height: int | None = None, original_width: int | None = None
) -> SizeInts:
    """SizeInts for sampling a height x width image: nothing cropped, and never resized (S §2.2).

    The original size is the target size unless given.
    """
    return SizeInts(original_height or height, original_width or width, 0, 0, height, width)
