"""Paths of the settings: each problem is named with its setting, all of them at once, before anything is loaded."""

from pathlib import Path
from typing import Any

import pytest

from refimpl.autoencoder.training import SCALE_SHIFTS
from refimpl.data.index.index_file import FORMAT
from refimpl.errors import InputError
from refimpl.interop.run.run_folder import CONFIG
from refimpl.latents.config import SCALE_SHIFT_NAMES
from refimpl.run.config import Config
from refimpl.run.presets import load_config
from refimpl.run.settings import paths
from refimpl.run.settings.paths import (
    DRAWN,
    check_here,
    data_problem,
    has_tokenizer,
    out_problem,
    path_problems,
)
from refimpl.storage.manifest import MANIFEST
from refimpl.tables import from_table
from refimpl.train.setup.run_lock import LOCK
from tests.run.here.test_machine import without_libraries
from tests.train import runs

NO_TENSORS = (8).to_bytes(8, "little") + b"{}      "  # a .safetensors file
JPEG = b"\xff\xd8\xff\xe0" + bytes(100)


def settings(root: Path, out: Path, **sections: Any) -> Config:
    return runs.config(root, out, **sections)


def full_size(**sections: Any) -> Config:
    """SDXL's towers and networks, with no path at all but those given."""
    return from_table(Config, {"data": {"folder": "."}, **sections}, "test")


def test_names_of_files_are_those_of_their_writers() -> None:
    assert (paths.MANIFEST, paths.RUN_SETTINGS, paths.RUN_LOCK) == (MANIFEST, CONFIG, LOCK)
    assert tuple(SCALE_SHIFTS) == SCALE_SHIFT_NAMES
    tiny = load_config("tiny").data
    assert (Path(tiny.folder).name, Path(tiny.heldout).name) == DRAWN


def test_good_paths_have_no_problem(root: Path, trained: Path, tmp_path: Path) -> None:
    check_here(settings(root, tmp_path / "out"))
    check_here(settings(root, tmp_path / "out", train={"init_from": str(trained)}))
    newest = str(trained / "checkpoints" / "step-00000004")
    check_here(settings(root, tmp_path / "out", train={"init_from": newest}))


def test_what_the_system_refuses_to_look_at_hides_no_other_path(root: Path, tmp_path: Path) -> None:
    long = "x" * 300
    wrong = {"data": {"folder": "no/images"}, "latents": {"weights": "", "folder": long, "train_steps": 1},
             "train": {"init_from": long}}  # fmt: skip
    said = path_problems(settings(root, tmp_path / "out", **wrong))
    assert [line.partition(":")[0] for line in said] == [
        "data.folder no/images",
        f"train.init_from {long} can't be read",
    ]
    assert path_problems(settings(root, Path(long), train={"resume": True})) == []


def test_images_that_stages_lack_are_missed_once(root: Path, tmp_path: Path) -> None:
    stages = {"stages": [{"from_step": 0}, {"from_step": 5}], "data": {"folder": ""}}
    assert [line[:21] for line in path_problems(settings(root, tmp_path / "out", **stages))] == [
        "data.folder is empty;"
    ]


def test_all_problems_are_listed_at_once(root: Path, tmp_path: Path) -> None:
    wrong = {
        "data": {"folder": "no/images", "heldout": "no/heldout", "cache": "no/cache"},
        "latents": {"weights": "no/vae.safetensors", "scale_shift": "no/shift.json"},
        "text": {"tokenizer": "no/clip"},
        "train": {"init_from": "no/model.safetensors", "out": str(root)},
    }
    with pytest.raises(InputError) as error:
        check_here(settings(root, tmp_path, **wrong))
    first, *listed = str(error.value).splitlines()
    assert first == "8 paths of the settings are wrong"
    named = ["data.folder no/images: there is no such folder", "data.heldout no/heldout: there is no such folder",
             "data.cache no/cache: there is no such folder; write it with `refimpl cache`",
             "train.init_from no/model.safetensors does not exist",
             "latents.weights no/vae.safetensors does not exist",
             "latents.scale_shift 'no/shift.json' is neither measure, checkpoint, sdxl, novelai_anime nor",
             "text.tokenizer no/clip has no tokenizer.json or vocab.json",
             f"train.out {root} holds other files; choose an empty folder"]  # fmt: skip
    assert [line.strip().startswith(name) for line, name in zip(listed, named, strict=True)] == [True] * 8


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"data": {"folder": ""}}, ["data.folder is empty", "no autoencoder", "text.folder is empty"]),
        (
            {"text": {"folder": "."}, "latents": {"weights": "."}},
            ["latents.weights . is a folder", "text.folder . has no text_encoder/, text_encoder_2/"],
        ),
        (
            {"text": {"folder": "no"}, "latents": {"train_steps": 1}},
            ["text.folder no: there is no such folder"],
        ),
        (
            {"image_prompt": {"folder": "no"}, "train": {"init_from": "no"}},
            ["image_prompt.folder no: there is no such folder", "train.init_from no does not exist"],
        ),
    ],
)
def test_what_full_size_settings_lack(
    sections: dict[str, Any], said: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.png").touch()
    problems = path_problems(full_size(**sections))
    assert len(problems) == len(said)
    assert all(problem.startswith(start) for problem, start in zip(problems, said, strict=True))


def test_a_single_file_needs_a_tokenizer_beside_it_or_named(tmp_path: Path) -> None:
    start = tmp_path / "model.safetensors"
    start.write_bytes(NO_TENSORS)
    lacking = path_problems(full_size(train={"init_from": str(start)}))
    assert [line.split(";")[0] for line in lacking] == [
        f"train.init_from {start} comes without a tokenizer, and there is none beside it"
    ]
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "vocab.json").touch()
    assert has_tokenizer(str(tmp_path))
    assert path_problems(full_size(train={"init_from": str(start)})) == []


def test_a_diffusers_folder_needs_a_tokenizer_in_it_beside_it_or_named(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    (folder / "unet").mkdir(parents=True)  # without an index, as a folder of components is read too
    config = full_size(train={"init_from": str(folder)})
    (problem,) = path_problems(config)
    assert problem.startswith(f"train.init_from {folder} comes without a tokenizer")
    (tmp_path / "vocab.json").touch()
    assert path_problems(config) == []
    (folder / "tokenizer").mkdir()  # which is taken, empty as it is
    assert path_problems(config) == [problem]
    (folder / "tokenizer" / "vocab.json").touch()
    assert path_problems(config) == []


def test_stages_name_their_own_folders(root: Path, tmp_path: Path) -> None:
    stages = [
        {"from_step": 0, "buckets": runs.BUCKETS},
        {"from_step": 2, "buckets": runs.BUCKETS, "folder": "no/second"},
    ]
    problems = path_problems(settings(root, tmp_path / "out", stages=stages))
    assert [line.split(";")[0] for line in problems] == [
        "stages[1].folder no/second: there is no such folder"
    ]
    both = path_problems(settings(root, tmp_path / "out", stages=stages, data={"folder": "no/first"}))
    assert [line.split(":")[0] for line in both] == ["stages[1].folder no/second", "data.folder no/first"]


def test_a_demo_that_is_still_to_be_drawn_is_no_problem(root: Path, tmp_path: Path) -> None:
    folders = {"folder": str(tmp_path / "a" / DRAWN[0]), "heldout": str(tmp_path / "a" / DRAWN[1])}
    assert len(path_problems(settings(root, tmp_path / "out", data=folders))) == 2
    assert path_problems(settings(root, tmp_path / "out", data={**folders, "demo": True})) == []
    typo = {**folders, "folder": str(tmp_path / "tarin"), "demo": True}
    (problem,) = path_problems(settings(root, tmp_path / "out", data=typo))
    assert "tarin: there is no such folder" in problem
    (tmp_path / "train").mkdir()
    (problem,) = path_problems(settings(root, tmp_path / "out", data=typo))
    assert f"tarin: there is no such folder; did you mean {tmp_path / 'train'}?; give one" in problem


def test_a_resumed_run_has_its_networks_already(root: Path, trained: Path) -> None:
    gone = {"init_from": "no/longer", "resume": True}
    assert path_problems(settings(root, trained, train=gone, latents={"weights": "no/longer"})) == []


def test_a_run_that_torchrun_starts_again_goes_on_in_its_folder(
    root: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (problem,) = path_problems(settings(root, trained))
    assert "holds another run; choose an empty folder, or continue that run with --resume" in problem
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert path_problems(settings(root, trained)) == []


def test_a_folder_in_use_or_out_of_reach(tmp_path: Path) -> None:
    assert out_problem(tmp_path / "new") is None
    (tmp_path / LOCK).touch()
    assert out_problem(tmp_path) is None
    file = tmp_path / "file"
    file.touch()
    assert "holds other files" in str(out_problem(file))
    assert "cannot be made or read" in str(out_problem(tmp_path / ("long" * 100)))


def test_a_data_set_may_be_a_file(tmp_path: Path) -> None:
    (tmp_path / "images.index").write_text(f'{{"format":"{FORMAT}"}}')
    assert data_problem("data.folder", str(tmp_path / "images.index")) is None
    for name in ("a.tar.gz", "a.JSONL", "a.parquet"):
        (tmp_path / name).touch()
        assert data_problem("data.folder", str(tmp_path / name)) is None
    (tmp_path / "a.png").write_bytes(b"\xff\xd8\xff\xe0")
    assert data_problem("data.folder", str(tmp_path / "a.png")) == (
        f"data.folder {tmp_path / 'a.png'}: not a folder, and a file ending in .png is not a data set (this is a "
        "JPEG image); give a folder, or a .jsonl, .json, .parquet or .tar file"
    )


def test_what_is_there_and_is_not_what_it_should_be(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A JPEG for weights, folders without images or a cache, and a run folder below a file: all in one answer."""
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("notes.txt").write_text("x")
    for name in ("a.safetensors", "b.safetensors", "shift.json"):
        Path(name).write_bytes(JPEG)
    wrong = {
        "data": {"folder": "empty", "heldout": "", "cache": "empty"},
        "latents": {"weights": "a.safetensors", "scale_shift": "shift.json"},
        "train": {"init_from": "b.safetensors"},
    }
    assert path_problems(settings(root, Path("notes.txt/run"), **wrong)) == [
        "data.folder empty: no images in it; give a folder of images with .txt captions",
        "data.cache empty holds no finished cache; write it with `refimpl cache`",
        "train.init_from b.safetensors is a JPEG image, not a .safetensors file",
        "latents.weights a.safetensors is a JPEG image, not a .safetensors file",
        "latents.scale_shift shift.json is a JPEG image, not JSON; give what `refimpl stats` has written",
        "train.out notes.txt/run cannot be made or read: Not a directory; choose another folder",
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "a.safetensors", "b.safetensors", "empty", "notes.txt", "shift.json"
    ]  # fmt: skip


def test_the_library_and_the_gpu_are_problems_among_the_paths(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_libraries(monkeypatch)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    wrong = {"data": {"folder": "no"}, "optimizer": {"kind": "adamw8bit"}, "train": {"device": "cuda"}}
    with pytest.raises(InputError) as error:
        check_here(settings(root, tmp_path / "out", **wrong))
    first, *listed = str(error.value).splitlines()
    assert first == "3 settings can't be used here"
    assert [line.split(":")[0].strip() for line in listed] == [
        "data.folder no", "optimizer.kind 'adamw8bit' needs the torchao package", "train.device 'cuda'"
    ]  # fmt: skip


def test_a_folder_of_shards_is_told_what_to_name(tmp_path: Path) -> None:
    (tmp_path / "b.tar").touch()
    (tmp_path / "a.tar").touch()
    assert data_problem("data.folder", str(tmp_path)) == (
        f"data.folder {tmp_path}: no images in it, but a.tar; give that one, or an index of several (`refimpl data "
        "index`)"
    )
