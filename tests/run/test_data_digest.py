"""A run continues with the images that it began with, or says what has changed."""

import contextlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from refimpl.errors import InputError
from refimpl.run import data_digest as module
from refimpl.run.data_digest import DATA, check_same_data, data_digest, files_digest
from refimpl.run.stage import StageData, read_stage
from refimpl.run.world import World
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


def repainted(images: Path) -> None:
    Image.new("RGB", Image.open(images / "003.png").size, "red").save(images / "003.png")


def touched(images: Path) -> None:
    os.utime(images / "003.png", ns=(1, 1))


def repainted_unseen(images: Path) -> None:
    """Other bytes of the same number, at the same time."""
    path = images / "003.png"
    data, times = bytearray(path.read_bytes()), path.stat()
    data[-20] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.mark.parametrize(
    ("change", "how", "what"),
    [(repainted, "stat", "image files of other sizes in bytes: their pixels have changed"),
     (repainted, "sha256", "other bytes in the image files: their pixels have changed"),
     (repainted_unseen, "sha256", "other bytes in the image files"),
     (touched, "stat", "the image files have the same sizes in bytes, but other modification times: they were")],
)  # fmt: skip
def test_changed_pixels_are_noticed(
    change: Callable[[Path], Any], how: str, what: str, root: Path, images: Path, tmp_path: Path
) -> None:
    stages = read(root, images)
    check_same_data(tmp_path, stages, False, how)
    check_same_data(tmp_path, stages, False, how)
    change(images)
    with pytest.raises(InputError, match=rf"stage 0, {images}: {what}"):
        check_same_data(tmp_path, stages, False, how)
    check_same_data(tmp_path, stages, True, how)
    check_same_data(tmp_path, stages, False, how)


def test_by_sha256_a_copy_is_the_same_data(root: Path, images: Path, tmp_path: Path) -> None:
    check_same_data(tmp_path, read(root, images), False, "sha256")
    touched(images)
    check_same_data(tmp_path, read(root, images), False, "sha256")


@pytest.mark.parametrize("kept", [[], ["bytes"], ["pixels"]])
def test_a_record_of_an_earlier_version_or_another_digest_is_accepted(
    kept: list[str], root: Path, images: Path, tmp_path: Path
) -> None:
    stages = read(root, images)
    check_same_data(tmp_path, stages, False, "sha256")
    pixels = json.loads((tmp_path / DATA).read_text())[0]["pixels"]
    check_same_data(tmp_path, stages, False)
    (record,) = json.loads((tmp_path / DATA).read_text())
    record = {key: value for key, value in (record | {"pixels": pixels}).items() if key in {
        "folder", "images", "ids", "sizes", "captions", *kept}}  # fmt: skip
    (tmp_path / DATA).write_text(json.dumps([record]))
    touched(images)
    check_same_data(tmp_path, stages, accept=False)
    assert {"bytes", "times"} <= set(json.loads((tmp_path / DATA).read_text())[0])


def test_large_data_sets_are_sampled_at_even_distances(
    root: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_STAMPED", 6)  # every third of 18
    index = read(root, images)[0].index
    before = files_digest(index, "stat")
    touched(images)
    assert files_digest(index, "stat") != before
    before = files_digest(index, "stat")
    os.utime(images / "004.png", ns=(1, 1))
    assert files_digest(index, "stat") == before


def test_the_ranks_share_the_reading(root: Path, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = read(root, images)[0].index
    shares: dict[int, Any] = {}
    for size in (2, 3):
        monkeypatch.setattr(
            module, "gathered", lambda world, own: shares.setdefault(world.rank, own) and [own]
        )
        for rank in range(size):
            with contextlib.suppress(ValueError):  # of one part alone there is no digest
                files_digest(index, "stat", World(rank, size, runs.ALONE.device))
        monkeypatch.setattr(
            module, "gathered", lambda world, own, size=size: [shares[r] for r in range(size)]
        )
        found = files_digest(index, "stat", World(0, size, runs.ALONE.device))
        monkeypatch.undo()
        assert found == files_digest(index, "stat")
        shares.clear()


def test_files_that_are_gone_are_the_loaders_matter(root: Path, images: Path, tmp_path: Path) -> None:
    stages = read(root, images)
    (images / "003.png").unlink()
    for how in ("stat", "sha256"):
        assert files_digest(stages[0].index, how) == files_digest(stages[0].index, how)


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
