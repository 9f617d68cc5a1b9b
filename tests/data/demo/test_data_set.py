"""The demo data set: the captions describe the pixels, and a seed always gives the same bytes."""

import hashlib
import importlib.util
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from refimpl.data.demo import data_set as demo_images
from refimpl.data.demo.data_set import DEMO_TAG_CLASSES, read_demo_manifest, write_demo_images
from refimpl.data.demo.drawings import COLOURS, draw, kinds
from refimpl.data.demo.photographs import PHOTOGRAPHS, _crop
from refimpl.errors import InputError
from tests.tolerances import ANTIALIASED_AREA


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "demo"
    write_demo_images(folder)
    return folder


def images(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix != ".txt")


def caption(path: Path) -> str:
    return path.with_suffix(".txt").read_text(encoding="utf-8").strip()


def digest(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_counts_of_the_issue_and_of_the_manifest(demo):
    manifest = read_demo_manifest(demo)
    for split in ("train", "heldout"):
        photographs = [path for path in images(demo / split) if path.name.startswith("photo_")]
        drawings = len(images(demo / split)) - len(photographs)
        assert manifest.counts[split] == {"photographs": len(photographs), "illustrations": drawings}
    assert manifest.counts["train"]["photographs"] >= 60
    assert manifest.counts["train"]["illustrations"] == 360
    assert min(manifest.counts["heldout"].values()) >= 20


def test_every_image_has_a_caption_of_tags_in_known_classes(demo):
    for path in [*images(demo / "train"), *images(demo / "heldout")]:
        tags = caption(path).split(", ")
        assert all(tag.partition(":")[0] in DEMO_TAG_CLASSES and tag.partition(":")[2] for tag in tags), path


def test_sizes_and_aspects_cover_one_to_four_either_way(demo):
    sizes = np.array([Image.open(path).size for path in images(demo / "train")])
    aspects = sizes[:, 0] / sizes[:, 1]
    assert sizes.min() >= 64
    assert sizes.max() <= 400
    edges = [0.25, 0.3, 0.42, 0.6, 0.85, 1.15, 1.7, 2.4, 3.4, 4.0]
    assert (aspects >= edges[0]).all()
    assert (aspects <= edges[-1]).all()
    assert np.histogram(aspects, edges)[0].min() >= 20  # each of nine ranges of aspect is used


def test_photographs_have_texture_and_their_least_side(demo):
    for path in images(demo / "train"):
        if path.name.startswith("photo_"):
            pixels = np.asarray(Image.open(path).convert("RGB"))
            assert min(pixels.shape[:2]) >= 72
            assert len(np.unique(pixels)) > 64, path


def test_flat_drawings_are_exactly_the_prompted_colour(demo):
    counted = Counter()
    for path in images(demo / "train"):
        if path.name.startswith("flat_"):
            name = caption(path).removeprefix("colour:completely ")
            pixels = np.asarray(Image.open(path))
            assert (pixels == COLOURS[name]).all(), path
            counted[name] += 1
    assert set(counted) == set(COLOURS)
    assert 0.35 * 360 <= counted.total() <= 0.45 * 360
    assert min(counted[name] for name in ("black", "white", "red")) >= 18


def test_shape_captions_name_the_colours_that_are_drawn():
    """The background and the shape's colour make up nearly all pixels; the rest is the antialiased edge."""
    for number in range(20):
        image, text = draw("shape", number, seed=3)
        tags = dict(tag.split(":") for tag in text.split(", "))
        pixels = np.asarray(image).reshape(-1, 3)
        shape = (pixels == COLOURS[tags["shape"].split()[0]]).all(1).mean()
        background = (pixels == COLOURS[tags["background"].split()[0]]).all(1).mean()
        assert shape > 0
        assert shape + background > 1 - ANTIALIASED_AREA, text


def test_gradients_run_between_the_named_colours():
    for number in range(8):
        image, text = draw("gradient", number, seed=1)
        first, second, style = (tag.split(":")[1] for tag in text.split(", "))
        pixels = np.asarray(image)
        end = pixels[0, -1] if style.startswith("horizontal") else pixels[-1, 0]
        assert tuple(pixels[0, 0]) == COLOURS[first]
        assert tuple(end) == COLOURS[second]


def test_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path):
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        write_demo_images(tmp_path / name, seed=seed, illustrations=20)
    a, b, c = (digest(tmp_path / name) for name in "abc")
    assert a == b
    assert a.keys() == c.keys()
    assert a != c


def test_a_larger_set_begins_with_the_smaller_one(tmp_path):
    write_demo_images(tmp_path / "small", illustrations=15)
    write_demo_images(tmp_path / "large", illustrations=40)
    small, large = digest(tmp_path / "small"), digest(tmp_path / "large")
    del small["manifest.json"]
    assert small.items() <= large.items()


@pytest.mark.parametrize("illustrations", [1, 6, 7, 300])
def test_training_drawings_are_exactly_as_many_as_asked(tmp_path, illustrations):
    manifest = write_demo_images(tmp_path / "demo", illustrations=illustrations)
    assert manifest.counts["train"]["illustrations"] == illustrations


def test_held_out_drawings_are_of_every_kind():
    held = {kind for kind, number in kinds(360) if demo_images._held_out(number)}
    assert held == {kind for kind, _ in kinds(360)}


def test_photograph_parts_are_disjoint_and_both_large_enough():
    """Crops come from the columns left or right of the split, so no held-out pixel was trained on."""
    for photograph in PHOTOGRAPHS:
        assert photograph.licence.licence
        assert photograph.licence.author
        assert photograph.split >= 94


@pytest.mark.parametrize("size", [(94, 303), (350, 300), (950, 1411), (120, 400)])
def test_crops_keep_the_least_and_greatest_side(size):
    source = Image.new("RGB", size)
    for number in range(50):
        cut = _crop(source, 1.0, np.random.default_rng(number))
        assert min(cut.size) >= 72
        assert max(cut.size) <= 400


def test_a_complete_folder_is_reused_untouched(demo):
    before = {path: path.stat().st_mtime_ns for path in demo.rglob("*")}
    manifest = write_demo_images(demo)
    assert manifest == read_demo_manifest(demo)
    assert before == {path: path.stat().st_mtime_ns for path in demo.rglob("*")}


def test_progress_counts_every_image(tmp_path):
    calls = []
    write_demo_images(
        tmp_path / "demo", illustrations=6, progress=lambda done, total: calls.append((done, total))
    )
    total = calls[0][1]
    assert calls == [(done, total) for done in range(1, total + 1)]


def test_other_content_is_refused_and_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match=r"manifest\.json: no such file"):
        write_demo_images(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    with pytest.raises(InputError, match="is a file"):
        write_demo_images(tmp_path / "mine.txt")


def test_another_seed_or_a_damaged_set_is_refused(tmp_path):
    folder = tmp_path / "demo"
    write_demo_images(folder, illustrations=5)
    with pytest.raises(InputError, match=r"holds demo images of .*delete it"):
        write_demo_images(folder, seed=1, illustrations=5)
    picture = next((folder / "train").glob("*.png"))
    picture.write_bytes(picture.read_bytes() + b"more")
    with pytest.raises(InputError, match="is missing or changed"):
        write_demo_images(folder, illustrations=5)
    picture.unlink()
    with pytest.raises(InputError, match="is missing or changed"):
        write_demo_images(folder, illustrations=5)
    (folder / "manifest.json").write_text("[]")
    with pytest.raises(InputError, match="is not a demo manifest"):
        write_demo_images(folder, illustrations=5)


def test_nothing_is_left_when_a_package_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r'scikit-image is not installed.*pip install "scikit-image>=0.25"'):
        write_demo_images(tmp_path / "demo")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("argument", "value"), [("illustrations", 0), ("seed", -1)])
def test_impossible_arguments_name_the_value(tmp_path, argument, value):
    with pytest.raises(InputError, match=f"{argument} is {value}"):
        write_demo_images(tmp_path / "demo", **{argument: value})


def test_the_loser_of_a_race_takes_the_winners_folder(tmp_path, monkeypatch):
    """Two processes of one run may both find the folder absent; the second rename fails and reuses."""
    folder = tmp_path / "demo"
    winner = demo_images._write_all

    def write_after_another(partial, seed, illustrations, progress):
        winner(partial, seed, illustrations, progress)
        folder.mkdir()
        winner(folder, seed, illustrations, progress)

    monkeypatch.setattr(demo_images, "_write_all", write_after_another)
    assert write_demo_images(folder, illustrations=5) == read_demo_manifest(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]
