"""The three figures of N that need no trained network are written as PNG files."""

import json

import pytest
from PIL import Image

from refimpl.diffusion.schedule import sdxl_schedule
from refimpl.errors import InputError
from refimpl.latents.scale_shift import NOVELAI_ANIME
from refimpl.report.noised_image import example_image
from refimpl.report.paper_figures import paper_figures


def test_three_png_files_of_the_width_of_the_page(tmp_path):
    paths = paper_figures(tmp_path / "new" / "figures", image=example_image(200))
    names = [f"novelai_v3_figure_{number}.{kind}" for kind in ("png", "json") for number in (1, 5, 8)]
    assert [path.name for path in paths] == names
    assert sorted(paths) == sorted((tmp_path / "new" / "figures").iterdir())
    for path in paths[:3]:
        with Image.open(path) as image:
            assert image.format == "PNG"
            assert image.width == 1800


def test_the_plotted_numbers_are_beside_the_figures(tmp_path):
    paths = paper_figures(tmp_path, image=example_image(200))
    first, fifth, eighth = (json.loads(path.read_text(encoding="utf-8")) for path in paths[3:])
    assert [column["sigma"] for column in first["columns"]][-1] == "∞"
    assert fifth["published"][-1] == float(sdxl_schedule().sigma_edm[-1])
    assert fifth["zero terminal SNR"][-1] == "∞"
    assert len(fifth["published"]) == len(fifth["zero terminal SNR"]) == 1000
    assert eighth == {"mean": list(NOVELAI_ANIME.mean), "std": list(NOVELAI_ANIME.std)}


def test_a_file_in_the_place_is_refused(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(InputError, match="is a file; name a folder"):
        paper_figures(tmp_path / "taken")


def test_a_small_image_leaves_no_folder(tmp_path):
    with pytest.raises(InputError, match="100 pixels"):
        paper_figures(tmp_path / "new", image=Image.new("RGB", (64, 64)))
    assert list(tmp_path.iterdir()) == []
