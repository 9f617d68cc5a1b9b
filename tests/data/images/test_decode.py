"""Decoding: orientation, what is accepted, and what is wrong with the rest."""

import contextlib
import multiprocessing
import os
import pickle
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from refimpl.data.images.decode import Accepted, BadImage, decode, read_size
from refimpl.errors import InputError
from tests.data.files import encoded, exif_bytes, png_chunk, quadrants, write_png
from tests.tolerances import LOSSY_LEVELS

# Stored pixels of an upright image U, with EXIF's own terms for the visual sides of the 0th row and column.
STORED = {
    1: lambda upright: upright,  # top, left
    2: lambda upright: upright[:, ::-1],  # top, right
    3: lambda upright: upright[::-1, ::-1],  # bottom, right
    4: lambda upright: upright[::-1],  # bottom, left
    5: lambda upright: upright.swapaxes(0, 1),  # left, top
    6: lambda upright: upright[:, ::-1].swapaxes(0, 1),  # right, top
    7: lambda upright: upright[::-1, ::-1].swapaxes(0, 1),  # right, bottom
    8: lambda upright: upright[::-1].swapaxes(0, 1),  # left, bottom
}
FORMATS = {
    "JPEG": (".jpg", {"quality": 95, "subsampling": 0}),
    "PNG": (".png", {}),
    "WEBP": (".webp", {"lossless": True}),
    "TIFF": (".tif", {}),
    "TIFF deflate": (".tiff", {"compression": "tiff_deflate"}),
    "AVIF": (".avif", {"quality": 95}),
}


def assert_upright(path: Path, upright: np.ndarray) -> None:
    pixels = decode(path)
    assert pixels.mode == "RGB"
    assert pixels.info == {}
    assert pixels.size == read_size(path) == upright.shape[1::-1]
    middle = np.abs(np.asarray(pixels).astype(int) - upright)[
        8::16, 8::16
    ]  # off the edges that lossy formats blur
    assert middle.max() <= LOSSY_LEVELS


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("kind", FORMATS)
def test_orientations(kind: str, orientation: int, tmp_path: Path) -> None:
    suffix, options = FORMATS[kind]
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](quadrants())))
    path = tmp_path / f"image{suffix}"
    stored.save(path, exif=exif, **options)
    assert_upright(path, quadrants())


def rgb_rows(array: np.ndarray) -> bytes:
    return b"".join(b"\0" + row.tobytes() for row in array)


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("place", ["before", "after"])
@pytest.mark.parametrize("kind", ["exif", "xmp"])
def test_png_orientation_wherever_it_stands(kind: str, place: str, orientation: int, tmp_path: Path) -> None:
    xmp = b'XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation="%d"/>' % orientation
    chunk = png_chunk(b"eXIf", exif_bytes(orientation)) if kind == "exif" else png_chunk(b"iTXt", xmp)
    stored = STORED[orientation](quadrants())
    before, after = ((chunk,), b"") if place == "before" else ((), chunk)
    height, width, _ = stored.shape
    path = write_png(tmp_path / "image.png", width, height, 8, 2, rgb_rows(stored), *before, after=after)
    assert_upright(path, quadrants())


@pytest.mark.parametrize(
    "exif", [b"II*\0", b"rubbish", exif_bytes(0), exif_bytes(9), exif_bytes(6)[:-9], b""]
)
def test_senseless_exif_leaves_an_image_as_stored(exif: bytes, tmp_path: Path) -> None:
    path = write_png(tmp_path / "a.png", 64, 32, 8, 2, rgb_rows(quadrants()), png_chunk(b"eXIf", exif))
    assert_upright(path, quadrants())


@pytest.mark.parametrize(
    ("name", "kind"),
    [("A.JPG", "JPEG"), ("a.JpEg", "JPEG"), ("a.b.png", "PNG"), ("bare", "PNG"), ("a.bmp", "BMP")],
)
def test_suffixes_in_any_case_and_none(name: str, kind: str, tmp_path: Path) -> None:
    Image.fromarray(quadrants()).save(tmp_path / name, kind)
    assert_upright(tmp_path / name, quadrants())


def test_links_to_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(Image.fromarray(quadrants()), "PNG"))
    (tmp_path / "b.png").symlink_to("a.png")
    assert_upright(tmp_path / "b.png", quadrants())


def frames() -> list[Image.Image]:
    return [Image.new("RGB", (20, 10), colour) for colour in ("red", "lime", "blue")]


@pytest.mark.parametrize(
    ("kind", "suffix"), [("GIF", ".gif"), ("WEBP", ".webp"), ("PNG", ".png"), ("TIFF", ".tif")]
)
def test_the_first_frame_or_a_refusal(kind: str, suffix: str, tmp_path: Path) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    path = tmp_path / f"moving{suffix}"
    path.write_bytes(encoded(frames()[0], kind, save_all=True, append_images=frames()[1:], **options))
    assert decode(path).getcolors() == [(200, (255, 0, 0))]
    still = Accepted(animations=False)
    for read in (decode, read_size):
        with pytest.raises(BadImage, match="more than one frame"):
            read(path, accepted=still)
    (tmp_path / f"still{suffix}").write_bytes(encoded(frames()[0], kind, **options))
    assert decode(tmp_path / f"still{suffix}", accepted=still).getcolors() == [(200, (255, 0, 0))]


def test_a_jpeg_with_further_views_is_a_jpeg(tmp_path: Path) -> None:
    path = tmp_path / "phone.jpg"
    path.write_bytes(encoded(frames()[0], "MPO", save_all=True, append_images=frames()[1:]))
    with Image.open(path) as image:
        assert image.format == "MPO"
    assert (
        read_size(path, Accepted(animations=False)) == decode(path, accepted=Accepted(animations=False)).size
    )


def test_pixel_limit_is_read_from_the_header(tmp_path: Path) -> None:
    path = write_png(tmp_path / "large.png", 4000, 5000, 8, 2, b"")
    for read in (decode, read_size):
        with pytest.raises(BadImage, match="4000x5000 pixels exceed the limit of 19999999"):
            read(path, accepted=Accepted(max_pixels=19_999_999))
    assert read_size(path, Accepted(max_pixels=20_000_000)) == (4000, 5000)


@pytest.mark.parametrize("sides", [(10_001, 10_000), (100_000, 100_000), (2**31 - 1, 2**31 - 1)])
def test_bombs_are_refused_before_they_are_decoded(sides: tuple[int, int], tmp_path: Path) -> None:
    path = write_png(tmp_path / "bomb.png", *sides, 8, 2, b"")
    for read in (decode, read_size):
        with pytest.raises(BadImage, match=r"limit of 100000000"):
            read(path)


def test_a_text_bomb_is_refused(tmp_path: Path) -> None:
    bomb = png_chunk(b"zTXt", b"k\0\0" + zlib.compress(b"x" * 80_000_000, 9))
    path = write_png(tmp_path / "bomb.png", 64, 32, 8, 2, rgb_rows(quadrants()), bomb)
    with pytest.raises(BadImage, match=r"bomb\.png: can't be decoded"):
        decode(path)


def good_files() -> dict[str, bytes]:
    image = Image.fromarray(quadrants())
    return {
        "a.jpg": encoded(image, "JPEG"),
        "a.png": encoded(image, "PNG"),
        "a.webp": encoded(image, "WEBP", lossless=True),
        "a.gif": encoded(image, "GIF"),
        "a.bmp": encoded(image, "BMP"),
        "a.tif": encoded(image, "TIFF", compression="tiff_lzw"),
        "a.avif": encoded(image, "AVIF"),
    }


@pytest.mark.parametrize("name", list(good_files()))
@pytest.mark.parametrize("share", [0.05, 0.5, 0.8])
def test_truncated_files_are_named(name: str, share: float, tmp_path: Path) -> None:
    whole = good_files()[name]
    path = tmp_path / name
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(BadImage, match=name) as caught:
        decode(path)
    assert caught.value.path == path
    assert caught.value.reason


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.png", b"", "the file is empty"),
        ("a.png", b"not an image at all", "not an image of an accepted format"),
        ("a.jpg", b"\xff\xd8\xff", "a.jpg: "),
        ("a.png", b"\x89PNG\r\n\x1a\n", "a.png: "),
        (
            "a.png",
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
            "not an image of an accepted format",
        ),
    ],
)
def test_bad_files_are_named(name: str, content: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    for read in (decode, read_size):
        with pytest.raises(BadImage, match=reason):
            read(tmp_path / name)


@pytest.mark.parametrize("content", list(good_files()))
@pytest.mark.parametrize("name", list(good_files()))
def test_a_file_is_what_its_bytes_are(name: str, content: str, tmp_path: Path) -> None:
    """Each format under the suffix of every other: the pixels are those that it has under its own."""
    for path in (tmp_path / f"as-{name}", tmp_path / content):
        path.write_bytes(good_files()[content])
    assert read_size(tmp_path / f"as-{name}") == (64, 32)
    assert np.array_equal(decode(tmp_path / f"as-{name}"), decode(tmp_path / content))


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.jpg", "a.gif", r"content is GIF, but the suffix is \.jpg; rename"),
        ("a.png", "a.jpg", r"content is JPEG, but the suffix is \.png"),
    ],
)
def test_own_suffix_by_option(name: str, content: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(good_files()[content])
    for read in (decode, read_size):
        with pytest.raises(BadImage, match=reason):
            read(tmp_path / name, accepted=Accepted(own_suffix=True))


def test_formats_by_option(tmp_path: Path) -> None:
    (tmp_path / "a.bmp").write_bytes(good_files()["a.bmp"])
    with pytest.raises(BadImage, match=r"not an image of an accepted format \(JPEG, PNG\)"):
        decode(tmp_path / "a.bmp", accepted=Accepted(formats=("JPEG", "PNG")))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"formats": ("JPG",)}, "image formats JPG"),
        ({"formats": ()}, "formats none"),
        ({"max_pixels": 0}, "= 0"),
    ],
)
def test_senseless_options_are_named(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Accepted(**options)


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "loop.png").symlink_to("loop.png")
    for name, reason in (
        ("none.png", "no such file"),
        ("folder.png", "folder.png"),
        ("loop.png", "loop.png"),
    ):
        for read in (decode, read_size):
            with pytest.raises(BadImage, match=reason):
                read(tmp_path / name)


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    for read in (decode, read_size):
        with pytest.raises(BadImage, match="not a regular file"):
            read(tmp_path / "pipe.png")


def test_bad_image_is_an_input_error_that_travels(tmp_path: Path) -> None:
    error = BadImage(tmp_path / "a.png", "the reason")
    again = pickle.loads(pickle.dumps(error))
    assert isinstance(again, InputError)
    assert (again.path, again.reason, str(again)) == (error.path, error.reason, str(error))
    with multiprocessing.get_context("fork").Pool(1) as pool, pytest.raises(BadImage, match="no such file"):
        pool.apply(decode, (tmp_path / "none.png",))


@given(name=st.sampled_from(sorted(good_files())), data=st.data())
def test_mutated_files_give_an_image_or_a_named_error(tmp_path: Path, name: str, data: st.DataObject) -> None:
    content = bytearray(good_files()[name])
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(content) - 1))
        content[position] = data.draw(st.integers(0, 255))
    path = tmp_path / name
    path.write_bytes(content)
    sizes = set()
    for read in (lambda: read_size(path), lambda: decode(path).size):
        with contextlib.suppress(BadImage):
            sizes.add(read())
    assert len(sizes) <= 1
