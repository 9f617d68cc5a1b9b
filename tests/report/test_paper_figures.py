"""The three figures of N that need no trained network are written as PNG files."""

import pytest
from PIL import Image

from refimpl.errors import InputError
from refimpl.report.noised_image import example_image
from refimpl.report.paper_figures import paper_figures


def test_three_png_files_of_the_width_of_the_page(tmp_path):
    paths = paper_figures(tmp_path / "new" / "figures", image=example_image(200))
    assert [path.name for path in paths] == [f"novelai_v3_figure_{number}.png" for number in (1, 5, 8)]
    assert sorted(paths) == sorted((tmp_path / "new" / "figures").iterdir())
    for path in paths:
        with Image.open(path) as image:
            assert image.format == "PNG"
            assert image.width == 1800


def test_a_file_in_the_place_is_refused(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(InputError, match="is a file; name a folder"):
        paper_figures(tmp_path / "taken")


def test_a_small_image_leaves_no_folder(tmp_path):
    with pytest.raises(InputError, match="100 pixels"):
        paper_figures(tmp_path / "new", image=Image.new("RGB", (64, 64)))
    assert list(tmp_path.iterdir()) == []
