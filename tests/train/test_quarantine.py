"""Images that turn out bad while a run reads them."""

import json
from pathlib import Path

import pytest
import torch

from refimpl.data.images.decode import BadImage
from refimpl.errors import InputError
from refimpl.run.world import World
from refimpl.train.loop import train
from refimpl.train.quarantine import Quarantine
from refimpl.train.setup.out_folder import run_folder
from refimpl.train.setup.prepare import prepare
from tests.train import runs


def bad(name: str) -> BadImage:
    return BadImage(f"images/{name}.png", "the file is empty", "empty")


def told(quarantine: Quarantine, images: list[BadImage], number: int) -> None:
    quarantine.add(images, number)
    quarantine.share()


def test_each_is_noted_once_also_by_a_later_process(tmp_path: Path) -> None:
    for _ in range(2):
        quarantine = Quarantine(tmp_path, runs.ALONE)
        assert not quarantine.has_news()
        quarantine.add([bad("a"), bad("b")], 1000)
        assert quarantine.has_news()
        quarantine.share()
        quarantine.add([bad("a")], 1000)
        assert not quarantine.has_news()
    lines = (tmp_path / "quarantine.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"path": f"images/{name}.png", "kind": "empty", "reason": "the file is empty"} for name in "ab"
    ]


def three_ranks(folder: Path, monkeypatch: pytest.MonkeyPatch, found: list[list[BadImage]]) -> Quarantine:
    """Rank 1 of three, which have met the images of `found` in a data set of 300."""
    monkeypatch.setattr(
        "refimpl.train.quarantine.gathered", lambda world, own: [(found[0], 300), own, (found[2], 300)]
    )
    quarantine = Quarantine(folder, World(1, 3, torch.device("cpu")))
    quarantine.add(found[1], 300)
    return quarantine


def test_more_than_a_hundredth_met_by_all_ranks_together_stops_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An image that two ranks have met counts once; only rank 0 writes."""
    found = [[bad("a"), bad("b")], [bad("b"), bad("c")], []]
    quarantine = three_ranks(tmp_path, monkeypatch, found)
    quarantine.share()
    found[2] = [bad("d")]
    quarantine.add([bad("a"), bad("c")], 300)  # known by now, from another rank too
    assert not quarantine.has_news()
    with pytest.raises(
        InputError, match=r"^4 bad images, more than 1% of the 300; .*the last is images/d.png"
    ):
        quarantine.share()
    assert not list(tmp_path.iterdir())


def test_a_run_of_too_many_bad_images_stops_again_until_they_are_repaired(tmp_path: Path) -> None:
    for _ in range(2):
        quarantine = Quarantine(tmp_path, runs.ALONE)
        told(quarantine, [bad("a")], 100)
        with pytest.raises(InputError, match="2 bad images, more than 1% of the 100"):
            told(quarantine, [bad("b")], 100)
    told(Quarantine(tmp_path, runs.ALONE), [bad("c")], 100)  # a and b are whole again


@pytest.mark.parametrize("torn", ['{"path": "images/b.p', "[1]\n", '"x"\n{}\n', "\udcff"])
def test_a_line_that_was_cut_is_passed_over(torn: str, tmp_path: Path) -> None:
    told(Quarantine(tmp_path, runs.ALONE), [bad("a")], 1000)
    path = tmp_path / "quarantine.jsonl"
    path.write_bytes(path.read_bytes() + torn.encode("utf-8", "surrogateescape"))
    told(Quarantine(tmp_path, runs.ALONE), [bad("a"), bad("b")], 1000)
    lines = path.read_text(errors="replace").splitlines()
    assert json.loads(lines[0])["path"] == "images/a.png"
    assert json.loads(lines[-1])["path"] == "images/b.png"
    assert sum("images/a.png" in line for line in lines) == 1


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"could not write .*quarantine\.jsonl"):
        told(Quarantine(tmp_path / "gone", runs.ALONE), [bad("a")], 1000)


def test_a_run_goes_on_over_an_image_that_broke_after_it_began(tmp_path: Path) -> None:
    root = tmp_path / "data"
    runs.write_images(root / "train", 120)
    runs.write_autoencoder(root / "autoencoder.safetensors")
    config = runs.config(
        root, tmp_path / "run", train={"steps": 30, "validate_every": 30, "checkpoint_every": 30}
    )
    folder = run_folder(config, "test", runs.ALONE)
    prepared = prepare(config, folder, runs.ALONE)
    (root / "train" / "007.png").write_bytes(b"")
    train(config, folder, prepared, runs.ALONE)
    lines = (folder / "quarantine.jsonl").read_text().splitlines()
    assert [Path(json.loads(line)["path"]).name for line in lines] == ["007.png"]
    losses = [row["loss"] for row in runs.rows(folder) if "loss" in row]
    assert len(losses) == 30
    (root / "train" / "008.png").unlink()
    config = runs.config(
        root,
        tmp_path / "run",
        train={"steps": 60, "validate_every": 30, "checkpoint_every": 30, "resume": True},
    )
    with pytest.raises(InputError, match="2 bad images, more than 1% of the 120"):
        train(config, folder, prepared, runs.ALONE)
