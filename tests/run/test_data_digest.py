"""A run continues with the images that it began with, or says what has changed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from refimpl.errors import InputError
from refimpl.run.data_digest import DATA, check_same_data, data_digest
from refimpl.run.stage import StageData, read_stage
from tests.train import runs


@pytest.fixture
def images(root: Path, tmp_path: Path) -> Path:
    """A data set to change."""
    shutil.copytree(root / "train", tmp_path / "images")
    return tmp_path / "images"


def read(root: Path, images: Path) -> list[StageData]:
    config = runs.config(root, root, data={"folder": str(images)})
    return [read_stage(config, stage) for stage in config.all_stages()]


def fewer(images: Path) -> None:
    (images / "003.png").unlink()
    (images / "003.txt").unlink()


def renamed(images: Path) -> None:
    for suffix in (".png", ".txt"):
        (images / f"003{suffix}").rename(images / f"103{suffix}")


def resized(images: Path) -> None:
    Image.new("RGB", (33, 64)).save(images / "003.png")


def recaptioned(images: Path) -> None:
    (images / "003.txt").write_text("blue", encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "what"),
    [(fewer, "18 images, now 17"), (renamed, "the same number of images, with other ids"), (resized, "other sizes"),
     (recaptioned, "other captions")],
)  # fmt: skip
def test_what_changed_is_said(
    change: Callable[[Path], Any], what: str, root: Path, images: Path, tmp_path: Path
) -> None:
    check_same_data(tmp_path, read(root, images), accept=False)
    note = (tmp_path / DATA).read_bytes()
    check_same_data(tmp_path, read(root, images), accept=False)
    change(images)
    with pytest.raises(
        InputError, match=rf"not those that it began with:\n  stage 0, {images}: {what}\nRestore"
    ):
        check_same_data(tmp_path, read(root, images), accept=False)
    assert (tmp_path / DATA).read_bytes() == note
    check_same_data(tmp_path, read(root, images), accept=True)
    check_same_data(tmp_path, read(root, images), accept=False)
    assert (tmp_path / DATA).read_bytes() != note


def test_the_folders_place_does_not_matter(root: Path, images: Path) -> None:
    here, there = (data_digest(read(root, place)[0].index) for place in (images, root / "train"))
    assert here | {"folder": ""} == there | {"folder": ""}


def test_another_number_of_stages_is_said(root: Path, images: Path, tmp_path: Path) -> None:
    stages = read(root, images)
    check_same_data(tmp_path, stages, accept=False)
    with pytest.raises(InputError, match="the run has 1 stages, now 2"):
        check_same_data(tmp_path, stages * 2, accept=False)


@pytest.mark.parametrize("text", ["{", "[1]", '[{"images": 3}]', "3"])
def test_a_note_that_is_none_is_named(text: str, root: Path, images: Path, tmp_path: Path) -> None:
    (tmp_path / DATA).write_text(text)
    with pytest.raises(InputError, match=r"data\.json cannot be read as the record of a run's images"):
        check_same_data(tmp_path, read(root, images), accept=False)


def test_a_run_resumed_on_other_images_stops_unless_told(run: Callable[..., Path], images: Path) -> None:
    settings = {"data": {"folder": str(images)}}
    folder = run(**settings, train={"steps": 2})
    assert json.loads((folder / DATA).read_text())[0]["images"] == 18
    fewer(images)
    with pytest.raises(InputError, match="18 images, now 17"):
        run(**settings, train={"resume": True})
    run(**settings, train={"resume": True, "accept_data": True})
