"""PNG files are whole or absent."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from refimpl.errors import InputError
from refimpl.sample.images.picture_files import GAP, write_grid, write_image


def test_values_are_rounded_to_the_nearest_level_and_cut_to_the_range(tmp_path: Path) -> None:
    levels = torch.tensor([0.4, 0.6, 127.4, 127.6, 254.6, 300.0, -20.0]) / 255
    write_image(levels.expand(3, 1, 7), tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as picture:
        assert [pixel[0] for pixel in picture.get_flattened_data()] == [0, 1, 127, 128, 255, 255, 0]


def test_a_grid_has_its_rows_below_each_other_and_grey_between(tmp_path: Path) -> None:
    images = torch.linspace(0, 1, 6).view(2, 3, 1, 1, 1).expand(2, 3, 3, 4, 5)
    write_grid(images, tmp_path / "grid.png")
    with Image.open(tmp_path / "grid.png") as picture:
        assert picture.size == (3 * 5 + 2 * GAP, 2 * 4 + GAP)
        for row in range(2):
            for column in range(3):
                place = column * (5 + GAP), row * (4 + GAP)
                assert picture.getpixel(place) == (round(51 * (3 * row + column)),) * 3
        assert picture.getpixel((5, 0)) == picture.getpixel((0, 4)) == (128,) * 3


def test_a_full_disk_leaves_no_half_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def save(_: Image.Image, path: Path, pnginfo: object) -> None:
        path.write_bytes(b"\x89PNG")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", save)
    with pytest.raises(InputError, match=r"could not write the picture .*a\.png: .*No space left on device"):
        write_image(torch.zeros(3, 4, 4), tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []
