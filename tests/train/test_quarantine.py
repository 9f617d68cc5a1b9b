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


def test_each_is_noted_once_also_by_a_later_process(tmp_path: Path) -> None:
    for _ in range(2):
        quarantine = Quarantine(tmp_path, runs.ALONE)
        quarantine.add([bad("a"), bad("b")], 1000)
        quarantine.add([bad("a")], 1000)
    lines = (tmp_path / "quarantine-rank0.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"path": f"images/{name}.png", "kind": "empty", "reason": "the file is empty"} for name in "ab"
    ]


@pytest.mark.parametrize(("ranks", "allowed"), [(1, 3), (3, 1)])
def test_more_than_a_hundredth_of_a_ranks_share_stops_it(ranks: int, allowed: int, tmp_path: Path) -> None:
    quarantine = Quarantine(tmp_path, World(ranks - 1, ranks, torch.device("cpu")))
    quarantine.add([bad(str(number)) for number in range(allowed)], 300)
    with pytest.raises(InputError, match=rf"rank {ranks - 1}: {allowed + 1} bad images, more than 1% of its"):
        quarantine.add([bad("last")], 300)


def test_a_run_of_too_many_bad_images_stops_again_until_they_are_repaired(tmp_path: Path) -> None:
    for _ in range(2):
        quarantine = Quarantine(tmp_path, runs.ALONE)
        quarantine.add([bad("a")], 100)
        with pytest.raises(InputError, match="2 bad images, more than 1% of its 100"):
            quarantine.add([bad("b")], 100)
    Quarantine(tmp_path, runs.ALONE).add([bad("c")], 100)  # a and b are whole again


@pytest.mark.parametrize("torn", ['{"path": "images/b.p', "[1]\n", '"x"\n{}\n', "\udcff"])
def test_a_line_that_was_cut_is_passed_over(torn: str, tmp_path: Path) -> None:
    Quarantine(tmp_path, runs.ALONE).add([bad("a")], 1000)
    path = tmp_path / "quarantine-rank0.jsonl"
    path.write_bytes(path.read_bytes() + torn.encode("utf-8", "surrogateescape"))
    Quarantine(tmp_path, runs.ALONE).add([bad("a"), bad("b")], 1000)
    lines = path.read_text(errors="replace").splitlines()
    assert json.loads(lines[0])["path"] == "images/a.png"
    assert json.loads(lines[-1])["path"] == "images/b.png"
    assert sum("images/a.png" in line for line in lines) == 1


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"could not write .*quarantine-rank0\.jsonl"):
        Quarantine(tmp_path / "gone", runs.ALONE).add([bad("a")], 1000)


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
    lines = (folder / "quarantine-rank0.jsonl").read_text().splitlines()
    assert [Path(json.loads(line)["path"]).name for line in lines] == ["007.png"]
    losses = [row["loss"] for row in runs.rows(folder) if "loss" in row]
    assert len(losses) == 30
    (root / "train" / "008.png").unlink()
    config = runs.config(
        root,
        tmp_path / "run",
        train={"steps": 60, "validate_every": 30, "checkpoint_every": 30, "resume": True},
    )
    with pytest.raises(InputError, match="rank 0: 2 bad images, more than 1% of its 120"):
        train(config, folder, prepared, runs.ALONE)
