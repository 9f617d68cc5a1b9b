"""Conversion of every colour mode to sRGB."""

import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from refimpl.data.images.decode import BadImage, decode
from tests.data.files import (
    cmyk_profile_with_green_cyan,
    linear_grey_profile,
    png_chunk,
    profile_with_red_and_blue_exchanged,
    quadrants,
    write_png,
)
from tests.tolerances import ICC_LEVELS, LAB_LEVELS

TEAL = (0, 100, 200)


def decoded(path: Path, background: tuple[int, int, int] = TEAL) -> np.ndarray:
    image = decode(path, background)
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


def saved(image: Image.Image, path: Path, **options: object) -> Path:
    image.save(path, **options)
    return path


def over(colour: np.ndarray, alpha: np.ndarray, background: tuple[int, int, int]) -> np.ndarray:
    """Alpha compositing, rounded to the nearest level."""
    alpha = alpha[..., None]
    return (2 * (colour * alpha + np.array(background) * (255 - alpha)) + 255) // 510


ALPHA = np.add.outer(np.arange(32) * 3, np.arange(64) * 2).clip(0, 255).astype(np.uint8)
GREY = np.add.outer(np.arange(32) * 4, np.arange(64) * 2).clip(0, 255).astype(np.uint8)


def grey_pixels() -> np.ndarray:
    return np.repeat(GREY[:, :, None], 3, 2).astype(int)


def test_rgb_and_grey_are_unchanged(tmp_path: Path) -> None:
    assert (decoded(saved(Image.fromarray(quadrants()), tmp_path / "a.png")) == quadrants()).all()
    assert (decoded(saved(Image.fromarray(GREY), tmp_path / "b.png")) == grey_pixels()).all()


@pytest.mark.parametrize("background", [(0, 0, 0), (255, 255, 255), TEAL])
def test_alpha_is_laid_over_the_background(background: tuple[int, int, int], tmp_path: Path) -> None:
    rgba = np.dstack([quadrants(), ALPHA])
    for name in ("a.png", "a.webp", "a.tif"):
        path = saved(
            Image.fromarray(rgba), tmp_path / name, **({"lossless": True} if name == "a.webp" else {})
        )
        assert (
            decoded(path, background) == over(quadrants().astype(int), ALPHA.astype(int), background)
        ).all()
    la = Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(ALPHA)])
    expected = over(grey_pixels(), ALPHA.astype(int), background)
    assert (decoded(saved(la, tmp_path / "la.png"), background) == expected).all()


def test_white_is_the_background_unless_given(tmp_path: Path) -> None:
    path = saved(Image.new("RGBA", (4, 4), (9, 9, 9, 0)), tmp_path / "a.png")
    assert decode(path).getcolors() == [(16, (255, 255, 255))]


def test_sixteen_bit_grey_is_scaled_to_the_nearest_level(tmp_path: Path) -> None:
    samples = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    expected = np.rint(samples / 257).astype(int)
    for name in ("a.png", "a.tif"):
        assert (decoded(saved(Image.fromarray(samples), tmp_path / name))[..., 1] == expected).all()
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    trns = png_chunk(b"tRNS", struct.pack(">H", 5000))
    pixels = decoded(write_png(tmp_path / "t.png", 256, 256, 16, 0, rows, trns))
    assert (pixels[samples == 5000] == TEAL).all()
    assert (pixels[..., 0] == np.where(samples == 5000, TEAL[0], expected)).all()


def test_big_endian_sixteen_bit_grey(tmp_path: Path) -> None:
    image = Image.frombytes("I;16B", (3, 1), struct.pack(">3H", 0, 257 * 100, 65535))
    assert decoded(saved(image, tmp_path / "a.tif"))[0, :, 0].tolist() == [0, 100, 255]


def test_sixteen_bit_colour_with_trns(tmp_path: Path) -> None:
    row = b"\0" + struct.pack(">9H", 65535, 0, 0, 0x0A00, 0x0B00, 0x0C00, 0, 0, 65535)
    trns = png_chunk(b"tRNS", struct.pack(">3H", 0x0A00, 0x0B00, 0x0C00))
    pixels = decoded(write_png(tmp_path / "a.png", 3, 1, 16, 2, row, trns))
    assert pixels[0].tolist() == [[255, 0, 0], list(TEAL), [0, 0, 255]]


def test_sixteen_bit_alpha(tmp_path: Path) -> None:
    row = b"\0" + struct.pack(">8H", 65535, 0, 0, 65535, 65535, 0, 0, 0)
    assert decoded(write_png(tmp_path / "a.png", 2, 1, 16, 6, row))[0].tolist() == [[255, 0, 0], list(TEAL)]
    row = b"\0" + struct.pack(">4H", 65535, 65535, 65535, 0)
    assert decoded(write_png(tmp_path / "b.png", 2, 1, 16, 4, row))[0].tolist() == [[255] * 3, list(TEAL)]


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_trns_of_grey_of_every_depth(depth: int, tmp_path: Path) -> None:
    """Value 0 and the transparent value 1, in the first byte of the only row."""
    row = b"\0" + (bytes([0, 1]) if depth == 8 else bytes([1 << (8 - 2 * depth)]))
    trns = png_chunk(b"tRNS", struct.pack(">H", 1))
    assert decoded(write_png(tmp_path / "a.png", 2, 1, depth, 0, row, trns))[0].tolist() == [
        [0] * 3,
        list(TEAL),
    ]


def test_trns_of_colour(tmp_path: Path) -> None:
    path = saved(Image.fromarray(quadrants()), tmp_path / "a.png", transparency=(0, 255, 0))
    expected = quadrants().astype(int)
    expected[:16, 32:] = TEAL
    assert (decoded(path) == expected).all()


def palette_image() -> Image.Image:
    image = Image.fromarray(np.arange(4, dtype=np.uint8).reshape(1, 4), "L")
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 9, 9], "RGB")
    return image


def test_palettes(tmp_path: Path) -> None:
    colours = [[255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 9, 9]]
    for name in ("a.png", "a.gif", "a.bmp", "a.tif"):
        assert decoded(saved(palette_image(), tmp_path / name))[0].tolist() == colours
    for name in ("b.png", "b.gif"):
        pixels = decoded(saved(palette_image(), tmp_path / name, transparency=3))
        assert pixels[0].tolist() == [*colours[:3], list(TEAL)]
    pixels = decoded(saved(palette_image(), tmp_path / "c.png", transparency=b"\xff\x00\x80\xff"))
    assert pixels[0].tolist() == [colours[0], list(TEAL), over_blue_by_half(), colours[3]]


def over_blue_by_half() -> list[int]:
    return over(np.array([[0, 0, 255]]), np.array([128]), TEAL)[0].tolist()


def test_bilevel(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 255, 0]], np.uint8)).convert("1")
    for name in ("a.png", "a.tif", "a.bmp", "a.gif"):
        assert decoded(saved(image, tmp_path / name))[0, :, 0].tolist() == [0, 255, 0]


def test_cmyk_is_ink(tmp_path: Path) -> None:
    inks = np.zeros((8, 32, 4), np.uint8)
    inks[:, 8:16, 0] = inks[:, 16:24, 1] = inks[:, 24:, 3] = 255
    expected = [[255, 255, 255], [0, 255, 255], [255, 0, 255], [0, 0, 0]]
    for name in ("a.tif", "a.jpg"):
        path = saved(
            Image.fromarray(inks, "CMYK"), tmp_path / name, **({"quality": 100} if name == "a.jpg" else {})
        )
        assert np.abs(decoded(path)[4, 4::8] - expected).max() <= ICC_LEVELS


def test_cmyk_through_its_profile(tmp_path: Path) -> None:
    inks = np.array([[[0, 0, 0, 0], [255, 0, 0, 0], [255, 255, 255, 255]]], np.uint8)
    path = saved(
        Image.fromarray(inks, "CMYK"), tmp_path / "a.tif", icc_profile=cmyk_profile_with_green_cyan()
    )
    white, green, black = decoded(path)[0]
    assert np.abs(white - 255).max() <= ICC_LEVELS
    assert black.max() <= ICC_LEVELS
    assert green[1] > green[0] + 50
    assert green[1] > green[2] + 50


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif", ".avif"])
def test_profiles_are_converted_from(suffix: str, tmp_path: Path) -> None:
    options = {
        ".jpg": {"quality": 100, "subsampling": 0},
        ".webp": {"lossless": True},
        ".avif": {"quality": 100},
    }
    path = tmp_path / f"a{suffix}"
    saved(
        Image.fromarray(quadrants()),
        path,
        icc_profile=profile_with_red_and_blue_exchanged(),
        **options.get(suffix, {}),
    )
    assert np.abs(decoded(path)[8::16, 8::16] - quadrants()[8::16, 8::16, ::-1]).max() <= ICC_LEVELS


def test_profiles_of_palettes_alpha_and_grey(tmp_path: Path) -> None:
    profile = profile_with_red_and_blue_exchanged()
    pixels = decoded(saved(palette_image(), tmp_path / "p.png", icc_profile=profile))
    assert np.abs(pixels[0, :3] - [[0, 0, 255], [0, 255, 0], [255, 0, 0]]).max() <= ICC_LEVELS
    rgba = np.dstack([quadrants(), ALPHA])
    pixels = decoded(saved(Image.fromarray(rgba), tmp_path / "a.png", icc_profile=profile))
    expected = over(quadrants()[..., ::-1].astype(int), ALPHA.astype(int), TEAL)
    assert np.abs(pixels - expected).max() <= ICC_LEVELS
    pixels = decoded(saved(Image.fromarray(GREY), tmp_path / "g.png", icc_profile=profile))
    assert np.abs(pixels - grey_pixels()).max() <= ICC_LEVELS


def test_grey_profiles(tmp_path: Path) -> None:
    light = np.array([0, 0.5, 1])
    srgb = (
        np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055) * 255
    )  # IEC 61966-2-1
    grey = Image.fromarray(np.array([[0, 128, 255]], np.uint8))
    pixels = decoded(saved(grey, tmp_path / "a.png", icc_profile=linear_grey_profile()))
    assert np.abs(pixels[0] - srgb[:, None]).max() <= ICC_LEVELS
    sixteen = Image.fromarray(np.array([[0, 32768, 65535]], np.uint16))
    pixels = decoded(saved(sixteen, tmp_path / "b.png", icc_profile=linear_grey_profile()))
    assert np.abs(pixels[0] - srgb[:, None]).max() <= ICC_LEVELS


@pytest.mark.parametrize("profile", [b"rubbish", linear_grey_profile(), cmyk_profile_with_green_cyan(), b""])
def test_unreadable_and_foreign_profiles_are_passed_over(profile: bytes, tmp_path: Path) -> None:
    path = saved(Image.fromarray(quadrants()), tmp_path / "a.png", icc_profile=profile)
    assert (decoded(path) == quadrants()).all()


def test_lab(tmp_path: Path) -> None:
    muted = 64 + quadrants() // 2  # inside what Lab of 8 bits can hold
    lab = ImageCms.createProfile("LAB")
    to_lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), lab, "RGB", "LAB")
    path = saved(to_lab.apply(Image.fromarray(muted)), tmp_path / "a.tif")
    assert np.abs(decoded(path) - muted).max() <= LAB_LEVELS


def test_ycbcr_tiff(tmp_path: Path) -> None:
    path = saved(Image.fromarray(quadrants()).convert("YCbCr"), tmp_path / "a.tif")
    assert np.abs(decoded(path) - quadrants()).max() <= ICC_LEVELS


@pytest.mark.parametrize("mode", ["I", "F"])
def test_samples_without_a_defined_white_are_refused(mode: str, tmp_path: Path) -> None:
    path = saved(Image.new(mode, (4, 4)), tmp_path / "a.tif")
    with pytest.raises(BadImage, match=f"mode {mode}.* no defined white"):
        decode(path)
