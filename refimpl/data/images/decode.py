"""Image files decoded to upright sRGB pixels, and what is wrong with those that can't be (N §4.1.3)."""

import os
import stat
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO

from PIL import Image, ImageFile, UnidentifiedImageError

from refimpl.data.config import MAX_PIXELS
from refimpl.data.images.archives import ArchiveChanged, ImageSource, Packed
from refimpl.data.images.colour import to_srgb
from refimpl.data.images.webp_header import webp_size
from refimpl.errors import InputError
from refimpl.file_kinds import PEEK, kind_of
from refimpl.printable import printable

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

UPRIGHT = {  # by EXIF orientation; 1, or anything else, is upright as stored
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
    """An image file that can't be used: its `path`, the `reason`, and the `kind` of problem in a word or two.

    It can be pickled, and so passed between processes. For an image in an archive, `path` is the archive's path
    followed by the name inside it, as in messages.
    """

    def __init__(self, path: ImageSource, reason: str, kind: str = "damaged") -> None:
        name = os.fspath(path)
        shown = printable(name, kept="")
        super().__init__(f"{shown}: {reason}")
        self.path = Path(path)
        self.reason = reason
        self.kind = kind

    def __reduce__(self) -> tuple[type["BadImage"], tuple[Path, str, str]]:
        return type(self), (self.path, self.reason, self.kind)


@dataclass(frozen=True)
class Accepted:
    """Which image files are accepted."""

    formats: tuple[str, ...] = tuple(SUFFIXES)
    """names of SUFFIXES"""
    max_pixels: int = MAX_PIXELS
    """width · height, read from the header before anything is decoded"""
    animations: bool = True
    """take the first frame of an animation or the first page of a TIFF; False rejects them"""
    own_suffix: bool = False
    """refuse files whose suffix is that of another format; False takes every file for what its bytes are"""

    def __post_init__(self) -> None:
        unknown = [name for name in self.formats if name not in SUFFIXES]
        if unknown or not self.formats:
            raise InputError(
                f"image formats {', '.join(unknown) or 'none'}: choose from {', '.join(SUFFIXES)}"
            )
        if self.max_pixels < 1:
            raise InputError(
                f"max_pixels = {self.max_pixels}: no image would be accepted; give a positive number"
            )


DEFAULT_ACCEPTED = Accepted()


def decode(
    path: ImageSource,
    background: tuple[int, int, int] = WHITE,
    accepted: Accepted = DEFAULT_ACCEPTED,
) -> Image.Image:
    """Decode an image, from a file or from inside an archive, to 8-bit sRGB, upright.

    EXIF orientation and an embedded ICC profile are applied, transparency (alpha or tRNS) is composited over
    `background`, 16-bit grey is scaled to 8 bits; CMYK, grey, palette and bilevel images become RGB. Of an
    animation, the first frame is decoded.
    returns  PIL image of mode RGB without metadata
    Raises BadImage for anything that is not a complete image of an accepted format.
    """
    with opened_image(path, accepted) as image:
        pixels = to_srgb(image, background)
        orientation = exif_orientation(image)
        if orientation in UPRIGHT:
            pixels = pixels.transpose(UPRIGHT[orientation])
    pixels.info = {}
    return pixels


def read_size(path: ImageSource, accepted: Accepted = DEFAULT_ACCEPTED) -> tuple[int, int]:
    """(width, height) of what `decode` will return, from the file's header alone.

    Raises BadImage for a file whose header shows that it is not an accepted image.
    """
    with _readable(path, accepted) as file:
        if accepted.animations and "WEBP" in accepted.formats:
            found = webp_size(file, _length(path, file))
            if found is not None:
                width, height, orientation = found
                _check_header(path, "WEBP", width, height, accepted)
                return (height, width) if orientation in _SWAPS_SIDES else (width, height)
            file.seek(0)
        with _image(path, file, accepted) as image:
            if image.format == "PNG" and "exif" not in image.info and _metadata_follows_pixels(image.fp):
                image.load()
            width, height = image.size
            return (height, width) if exif_orientation(image) in _SWAPS_SIDES else (width, height)


@contextmanager
def opened_image(path: ImageSource, accepted: Accepted) -> Iterator[ImageFile.ImageFile]:
    """An accepted image whose header has been read; whatever Pillow raises inside the block becomes a BadImage."""
    with _readable(path, accepted) as file, _image(path, file, accepted) as image:
        yield image


@contextmanager
def _readable(path: ImageSource, accepted: Accepted) -> Iterator[BinaryIO]:
    """The image's bytes as a file; whatever is raised inside the block becomes a BadImage."""
    try:
        if isinstance(path, Packed):
            opened = path.open()
        else:
            if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would wait for its other end
                raise BadImage(path, "not a regular file", "not a file")
            opened = open(path, "rb")  # noqa: SIM115
        with opened as file:
            yield file
    except InputError:
        raise
    except Exception as error:  # of any class: hostile files reach every corner of the decoders
        raise BadImage(path, *_reason(path, error, accepted)) from error


@contextmanager
def _image(path: ImageSource, file: BinaryIO, accepted: Accepted) -> Iterator[ImageFile.ImageFile]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on damage that Pillow mends and on sizes, checked here
        with Image.open(file, formats=accepted.formats) as image:
            _check_accepted(path, image, accepted)
            yield image


def _length(path: ImageSource, file: BinaryIO) -> int:
    return (
        file.seek(0, os.SEEK_END) + file.seek(0)
        if isinstance(path, Packed)
        else os.fstat(file.fileno()).st_size
    )


def _check_accepted(path: ImageSource, image: ImageFile.ImageFile, accepted: Accepted) -> None:
    found = "JPEG" if image.format == "MPO" else image.format  # a JPEG with further views of the same scene
    assert found is not None
    _check_header(path, found, *image.size, accepted)
    if not accepted.animations and image.format != "MPO" and getattr(image, "is_animated", False):
        raise BadImage(path, "it has more than one frame; extract one, or allow animations", "animation")


def _check_header(path: ImageSource, found: str, width: int, height: int, accepted: Accepted) -> None:
    if width * height > accepted.max_pixels:
        reason = f"{width}x{height} pixels exceed the limit of {accepted.max_pixels}; scale it down"
        raise BadImage(path, reason, "too large")
    suffix = os.path.splitext(os.fspath(path))[1].lower()
    if accepted.own_suffix and FORMAT_OF.get(suffix, found) != found:
        raise BadImage(path, f"the content is {found}, but the suffix is {suffix}; rename it", "wrong suffix")


def _reason(path: ImageSource, error: Exception, accepted: Accepted) -> tuple[str, str]:
    """The reason and the kind of a problem, for BadImage."""
    if isinstance(error, FileNotFoundError):
        gone = f"its archive {path.archive} is gone" if isinstance(path, Packed) else "there is no such file"
        return gone, "missing"
    if isinstance(error, ArchiveChanged):
        return str(error), "changed"
    if isinstance(error, UnidentifiedImageError):
        return _unidentified(path, accepted)
    if isinstance(error, Image.DecompressionBombError):
        return f"more pixels than the limit of {accepted.max_pixels}; scale it down", "too large"
    if isinstance(error, OSError) and error.errno is not None:
        return f"can't be read ({error.strerror}); repair or remove it", "unreadable"
    return f"can't be decoded ({type(error).__name__}: {error}); replace or remove it", "damaged"


def _unidentified(path: ImageSource, accepted: Accepted) -> tuple[str, str]:
    """What a file is that Pillow does not take for an image of the accepted formats, and the kind of problem."""
    with path.open() if isinstance(path, Packed) else open(path, "rb") as file:
        begin = file.read(PEEK)
    if not begin:
        return "the file is empty", "empty"
    wanted = f"not an image of an accepted format ({', '.join(accepted.formats)})"
    kind = kind_of(begin)
    if kind is None:
        return f"{wanted}, or its header is damaged", "not an image"
    if any(name.lower() in kind.what.lower() for name in accepted.formats):
        return (
            f"it begins as {kind.what} does, but its header is damaged; replace or remove it",
            "not an image",
        )
    return f"{wanted}: it is {kind.what}{f'; {kind.advice}' if kind.advice else ''}", "not an image"


def exif_orientation(image: Image.Image) -> int:
    """EXIF orientation still to be applied; for a TIFF, Pillow applies it when decoding, so it is 1."""
    if image.format == "TIFF":
        return 1
    try:
        return int(Image.Image.getexif(image).get(0x0112, 1))  # not PNG's override, which decodes the pixels
    except Exception:  # damaged EXIF: the image is taken as it is stored, as browsers take it
        return 1


def _metadata_follows_pixels(file: IO[bytes] | None) -> bool:
    """Whether a PNG has EXIF or text after its pixels, found by skipping from chunk to chunk."""
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
