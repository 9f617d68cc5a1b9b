"""Golden pixels of the thirteen colour modes that accepted files can hold; the two others have no defined white."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from refimpl.data.images.decode import decode, read_size
from tests.tolerances import ICC_LEVELS, LAB_LEVELS

BACKGROUND = (200, 100, 0)
RED, HALF, CLEAR = (255, 0, 0), (128, 128, 128), (9, 9, 9)
OVER = tuple(
    (2 * (128 * 102 + side * 153) + 255) // 510 for side in BACKGROUND
)  # grey 128 at alpha 102 of 255


def palette(mode: str) -> Image.Image:
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "L")
    image.putpalette([*RED, *HALF, *CLEAR], "RGB")
    if mode == "P":
        return image
    mixed = image.convert("PA")
    mixed.putalpha(Image.fromarray(np.array([[255, 255, 0]], np.uint8)))
    return mixed


def of(mode: str, *pixels: tuple[int, ...]) -> Image.Image:
    image = Image.new(mode, (len(pixels), 1))
    for place, pixel in enumerate(pixels):
        image.putpixel((place, 0), pixel if len(pixel) > 1 else pixel[0])
    return image


# mode → the image as it is stored, and what its pixels are in sRGB over BACKGROUND
GOLDEN: dict[str, tuple[Image.Image, list[tuple[int, ...]]]] = {
    "1": (of("1", (0,), (255,)), [(0, 0, 0), (255, 255, 255)]),
    "L": (of("L", (0,), (77,)), [(0, 0, 0), (77, 77, 77)]),
    "LA": (of("LA", (77, 255), (128, 102), (5, 0)), [(77, 77, 77), OVER, BACKGROUND]),
    "P": (palette("P"), [RED, HALF, CLEAR]),
    "PA": (palette("PA"), [RED, HALF, BACKGROUND]),
    "RGB": (of("RGB", RED, CLEAR), [RED, CLEAR]),
    "RGBA": (of("RGBA", (*RED, 255), (*HALF, 102), (*CLEAR, 0)), [RED, OVER, BACKGROUND]),
    "RGBX": (of("RGBX", (*RED, 0), (*CLEAR, 77)), [RED, CLEAR]),
    "CMYK": (of("CMYK", (0, 0, 0, 0), (0, 255, 255, 0), (0, 0, 0, 255)), [(255, 255, 255), RED, (0, 0, 0)]),
    "YCbCr": (of("YCbCr", (76, 85, 255), (128, 128, 128)), [(254, 0, 0), HALF]),  # BT.601, full range
    "LAB": (of("LAB", (0, 128, 128), (255, 128, 128), (137, 128, 128)), [(0, 0, 0), (255, 255, 255), HALF]),
    "I;16": (Image.fromarray(np.array([[0, 32896, 65535]], np.uint16)), [(0, 0, 0), HALF, (255, 255, 255)]),
    "I;16B": (
        Image.frombytes("I;16B", (3, 1), np.array([0, 32896, 65535], ">u2").tobytes()),
        [(0, 0, 0), HALF, (255, 255, 255)],
    ),
}
LEVELS = {"YCbCr": ICC_LEVELS, "LAB": LAB_LEVELS}  # the others are exact


@pytest.mark.parametrize("mode", GOLDEN)
def test_every_mode_has_the_pixels_that_it_says(mode: str, tmp_path: Path) -> None:
    image, expected = GOLDEN[mode]
    path = tmp_path / "a.tif"
    image.save(path)
    with Image.open(path) as stored:
        assert stored.mode == mode.replace("X", "")
    pixels = decode(path, BACKGROUND)
    assert pixels.mode == "RGB"
    assert pixels.size == read_size(path) == image.size
    assert np.abs(np.asarray(pixels).astype(int)[0] - expected).max() <= LEVELS.get(mode, 0)


def test_a_colour_jpeg_of_inks(tmp_path: Path) -> None:
    """Adobe's CMYK JPEGs store inverted ink values; Pillow writes and reads them that way."""
    image = of("CMYK", (0, 0, 0, 0), (0, 255, 255, 0), (0, 0, 0, 255)).resize(
        (48, 16), Image.Resampling.NEAREST
    )
    image.save(tmp_path / "a.jpg", quality=100)
    with Image.open(tmp_path / "a.jpg") as stored:
        assert (stored.mode, stored.info["adobe"]) == ("CMYK", 100)
    pixels = np.asarray(decode(tmp_path / "a.jpg")).astype(int)[8, 8::16]
    assert np.abs(pixels - [(255, 255, 255), RED, (0, 0, 0)]).max() <= ICC_LEVELS


def test_the_first_frame_is_the_canvas_with_its_transparency(tmp_path: Path) -> None:
    frames = [of("P", (0,), (1,)), of("P", (1,), (1,))]
    for frame in frames:
        frame.putpalette([*RED, *CLEAR], "RGB")
    for name, options in (("a.gif", {"disposal": 2}), ("a.png", {})):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], transparency=1, **options)
        assert np.asarray(decode(tmp_path / name, BACKGROUND))[0].tolist() == [list(RED), list(BACKGROUND)]
    clear = [Image.new("RGBA", (16, 8), (*RED, alpha)) for alpha in (255, 128)]
    clear[0].paste((0, 0, 0, 0), (8, 0, 16, 8))
    clear[0].save(tmp_path / "a.webp", save_all=True, append_images=clear[1:], lossless=True)
    assert np.asarray(decode(tmp_path / "a.webp", BACKGROUND))[4, ::8].tolist() == [
        list(RED),
        list(BACKGROUND),
    ]
