"""Small JPEGs of a data set's images, decoded as training decodes them, one at a time and in bounded memory."""

import io
import os
import threading
from collections import OrderedDict

from PIL import Image

from refimpl.data.images.archives import ImageSource
from refimpl.data.images.colour import to_srgb
from refimpl.data.images.decode import (
    DEFAULT_ACCEPTED,
    UPRIGHT,
    WHITE,
    BadImage,
    exif_orientation,
    opened_image,
)

CACHE_BYTES = 2**24  # of JPEGs: some 2,000 thumbnails, a dozen screens
MOST_PIXELS = 2**24  # decoded at once; JPEGs are scaled down while they are decoded, and may be larger
QUALITY = 80

_decoding = threading.Lock()  # one image's pixels at a time


class Thumbnails:
    """The last thumbnails that were asked for."""

    def __init__(self, most_bytes: int = CACHE_BYTES) -> None:
        self._most, self._bytes = most_bytes, 0
        self._kept: OrderedDict[tuple[int, int], bytes] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, row: int, source: ImageSource, side: int) -> bytes:
        """The image of a row as a JPEG. Raises BadImage as `small_jpeg` does."""
        key = (row, side)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        made = small_jpeg(source, side)
        with self._lock:
            self._bytes += len(made) - len(self._kept.get(key, b""))
            self._kept[key] = made
            while self._bytes > self._most:
                self._bytes -= len(self._kept.popitem(last=False)[1])
        return made


def small_jpeg(source: ImageSource, side: int) -> bytes:
    """An image as a JPEG whose longer side is at most `side` pixels, upright.

    Raises BadImage for what is no image, is gone, or would take too much memory.
    """
    with _decoding, opened_image(source, DEFAULT_ACCEPTED) as image:
        image.draft(None, (2 * side, 2 * side))
        width, height = image.size
        if width * height > MOST_PIXELS:
            raise BadImage(source, f"{width}×{height} pixels are too many to show here", "too large")
        pixels, turn = to_srgb(image, WHITE), UPRIGHT.get(exif_orientation(image))
        pixels.thumbnail((side, side), Image.Resampling.BICUBIC, reducing_gap=2.0)
        if turn is not None:
            pixels = pixels.transpose(turn)
        buffer = io.BytesIO()
        pixels.info = {}
        pixels.save(buffer, "JPEG", quality=QUALITY)
        return buffer.getvalue()


def name_of(source: ImageSource) -> str:
    """What an image is called on the page."""
    return os.fsencode(source).decode("utf-8", "replace")
