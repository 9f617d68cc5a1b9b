"""Image files to upright sRGB pixels, and what is wrong with those that can't be (N §4.1.3)."""

import os
import stat
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from PIL import Image, ImageFile, UnidentifiedImageError

from refimpl.data.colour import to_srgb
from refimpl.errors import InputError

SUFFIXES = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "BMP": (".bmp", ".dib"),
    "TIFF": (".tif", ".tiff"),
    "AVIF": (".avif",),
}
FORMAT_OF = {suffix: name for name, suffixes in SUFFIXES.items() for suffix in suffixes}
WHITE = (255, 255, 255)

_UPRIGHT = {  # by EXIF orientation; 1, or anything else, is upright as stored
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SWAPS_SIDES = (5, 6, 7, 8)


class BadImage(InputError):
    """An image file that can't be used, its `path` and the `reason`; it survives the way between processes."""

    def __init__(self, path: str | os.PathLike[str], reason: str) -> None:
        name = os.fspath(path)
        shown = name if name.isprintable() else name.encode("unicode_escape").decode()
        super().__init__(f"{shown}: {reason}")
        self.path = Path(path)
        self.reason = reason

    def __reduce__(self) -> tuple[type["BadImage"], tuple[Path, str]]:
        return type(self), (self.path, self.reason)


@dataclass(frozen=True)
class Accepted:
    """Which image files are let in."""

    formats: tuple[str, ...] = tuple(SUFFIXES)
    """names of SUFFIXES"""
    max_pixels: int = 100_000_000
    """width · height, read from the header before anything is decoded; Pillow itself stops at 178,956,970"""
    animations: bool = True
    """take the first frame of an animation or the first page of a TIFF; False refuses them"""
    any_suffix: bool = False
    """take files whose suffix is that of another format; False refuses them"""

    def __post_init__(self) -> None:
        unknown = [name for name in self.formats if name not in SUFFIXES]
        if unknown or not self.formats:
            raise InputError(
                f"image formats {', '.join(unknown) or 'none'}: choose from {', '.join(SUFFIXES)}"
            )
        if self.max_pixels < 1:
            raise InputError(
                f"max_pixels = {self.max_pixels}: no image would be let in; give a positive number"
            )


DEFAULT_ACCEPTED = Accepted()


def decode(
    path: str | os.PathLike[str],
    background: tuple[int, int, int] = WHITE,
    accepted: Accepted = DEFAULT_ACCEPTED,
) -> Image.Image:
    """Decode an image file to 8-bit sRGB, upright.

    EXIF orientation is applied, an embedded ICC profile converted from, transparency (alpha or tRNS) laid over
    `background`, 16-bit grey scaled to 8; CMYK, grey, palette and bilevel images become RGB. Of an animation
    it is the first frame.
    returns  PIL image of mode RGB without metadata
    Raises BadImage for anything that is not a whole image of an accepted kind.
    """
    with _opened(path, accepted) as image:
        pixels = to_srgb(image, background)
        orientation = _orientation(image)
        if orientation in _UPRIGHT:
            pixels = pixels.transpose(_UPRIGHT[orientation])
    pixels.info = {}
    return pixels


def read_size(path: str | os.PathLike[str], accepted: Accepted = DEFAULT_ACCEPTED) -> tuple[int, int]:
    """(width, height) that `decode` will give, from the file's header alone.

    Raises BadImage for a file that is seen there not to be an accepted image.
    """
    with _opened(path, accepted) as image:
        if image.format == "PNG" and "exif" not in image.info and _metadata_follows_pixels(image.fp):
            image.load()
        width, height = image.size
        return (height, width) if _orientation(image) in _SWAPS_SIDES else (width, height)


@contextmanager
def _opened(path: str | os.PathLike[str], accepted: Accepted) -> Iterator[ImageFile.ImageFile]:
    """An accepted image, its header read; whatever Pillow raises inside the block becomes a BadImage."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on damage that Pillow mends and on sizes, checked here
            if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would wait for its other end
                raise BadImage(path, "not a regular file")
            with Image.open(path, formats=accepted.formats) as image:
                _check_accepted(path, image, accepted)
                yield image
    except BadImage:
        raise
    except Exception as error:  # of any class: hostile files reach every corner of the decoders
        raise BadImage(path, _reason(path, error, accepted)) from error


def _check_accepted(path: str | os.PathLike[str], image: ImageFile.ImageFile, accepted: Accepted) -> None:
    width, height = image.size
    if width * height > accepted.max_pixels:
        raise BadImage(
            path, f"{width}x{height} pixels exceed the limit of {accepted.max_pixels}; scale it down"
        )
    found = "JPEG" if image.format == "MPO" else image.format  # a JPEG with further views of the same scene
    suffix = Path(path).suffix.lower()
    if not accepted.any_suffix and FORMAT_OF.get(suffix, found) != found:
        raise BadImage(path, f"the content is {found}, but the suffix is {suffix}; rename it")
    if not accepted.animations and image.format != "MPO" and getattr(image, "is_animated", False):
        raise BadImage(path, "it has more than one frame; extract one, or accept animations")


def _reason(path: str | os.PathLike[str], error: Exception, accepted: Accepted) -> str:
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if isinstance(error, UnidentifiedImageError):
        if os.path.getsize(path) == 0:
            return "the file is empty"
        return f"not an image of an accepted format ({', '.join(accepted.formats)}), or its header is damaged"
    if isinstance(error, Image.DecompressionBombError):
        return f"more pixels than the limit of {accepted.max_pixels}; scale it down"
    return f"can't be decoded ({type(error).__name__}: {error}); replace or remove it"


def _orientation(image: Image.Image) -> int:
    """EXIF orientation still to be applied; Pillow applies a TIFF's own when it decodes."""
    if image.format == "TIFF":
        return 1
    try:
        return int(Image.Image.getexif(image).get(0x0112, 1))  # not PNG's override, which decodes the pixels
    except Exception:  # damaged EXIF: the image is taken as it is stored, as browsers take it
        return 1


def _metadata_follows_pixels(file: IO[bytes] | None) -> bool:
    """Whether a PNG holds EXIF or text after its pixels, found by hopping from chunk to chunk."""
    assert file is not None
    file.seek(8)
    pixels_seen = False
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        if pixels_seen and kind in (b"eXIf", b"iTXt", b"tEXt", b"zTXt"):
            return True
        pixels_seen = pixels_seen or kind == b"IDAT"
        file.seek(length + 4, os.SEEK_CUR)
    return False
