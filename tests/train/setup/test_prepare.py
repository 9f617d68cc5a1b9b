"""What happens before the first step: data, weights, and commands that look at them."""

import json
import os
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from refimpl.commands.data.cache import CacheCommand, write_cache
from refimpl.commands.main import dispatch
from refimpl.errors import InputError
from refimpl.latents.scale_shift import ScaleShift
from refimpl.latents.vae import VAE
from refimpl.ops import load_ops
from refimpl.run.config import Config, Stage
from refimpl.run.stage import read_stage, write_demo_data
from refimpl.run.world import World
from refimpl.train.setup import prepare as preparation
from refimpl.train.setup.frozen_parts import frozen_parts
from refimpl.train.setup.out_folder import absent_folders, removed_if_empty, run_folder
from refimpl.train.setup.prepare import prepare
from tests.tolerances import FLOAT32_ROUNDING
from tests.train import runs


def test_initial_weights_are_a_function_of_the_seed_alone(root: Path, tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / name).mkdir()
    torch.manual_seed(1)
    first = prepare(runs.config(root, tmp_path), tmp_path / "a", runs.ALONE).model.unet.state_dict()
    torch.manual_seed(2)
    again = prepare(runs.config(root, tmp_path), tmp_path / "b", runs.ALONE).model.unet.state_dict()
    other = prepare(runs.config(root, tmp_path, train={"seed": 1}), tmp_path / "c", runs.ALONE)
    assert not runs.differing({"x": first}, {"x": again})
    assert runs.differing({"x": first}, {"x": other.model.unet.state_dict()})


def test_the_unet_computes_with_the_backend_of_the_settings(root: Path, tmp_path: Path) -> None:
    for backend in ("reference", "kernel"):
        (tmp_path / backend).mkdir()
        config = runs.config(root, tmp_path, train={"backend": backend})
        unet = prepare(config, tmp_path / backend, runs.ALONE).model.unet
        assert unet.ops == load_ops(backend)


def test_components_hold_everything_between_prompt_and_image(trained: Path, root: Path) -> None:
    folder = trained / "components"
    assert {path.name for path in folder.iterdir()} == {
        "autoencoder.safetensors", "scale_shift.json", "manifest.json", "tokenizer", "text_encoder", "text_encoder_2",
    }  # fmt: skip
    written = load_file(folder / "autoencoder.safetensors")
    given = load_file(root / "autoencoder.safetensors")
    assert not runs.differing({"x": written}, {"x": given})


def test_images_far_from_every_bucket_are_pruned_and_reported(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(root / "train", tmp_path / "train")
    Image.new("RGB", (300, 30)).save(tmp_path / "train" / "wide.png")
    (tmp_path / "train" / "wide.txt").write_text("red")
    config = runs.config(tmp_path, tmp_path, data={"max_aspect_error": 0.5})
    data = read_stage(config, config.all_stages()[0])
    assert len(data.index) == len(data.bucket_of) == len(data.draw_ids) == len(data.tag_weights) == 18
    assert "wide" not in data.index.ids
    assert (
        f"pruned {tmp_path}/train/wide.png: 300×30 is 1.609 from the nearest bucket"
        in capsys.readouterr().out
    )


def test_a_quarantined_image_is_named_and_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One bad file of 120 is below the share that stops a run."""
    runs.write_images(tmp_path / "train", 120)
    (tmp_path / "train" / "017.png").write_bytes(b"x")
    config = runs.config(tmp_path, tmp_path)
    data = read_stage(config, config.all_stages()[0])
    assert len(data.index) == 119
    assert f"left out: {tmp_path}/train/017.png: not an image" in capsys.readouterr().out


def test_tag_weights_can_be_switched_off(root: Path) -> None:
    config = runs.config(root, root, tag_weights={"enabled": False})
    assert (read_stage(config, config.all_stages()[0]).tag_weights == 1).all()


def test_tags_are_counted_over_the_whole_data_set_before_the_first_step(root: Path) -> None:
    """N §4.3: each image's weight is that of the counts of all images, by hand here, and of mean 1."""
    config = runs.config(root, root)
    data = read_stage(config, config.all_stages()[0])
    tags = [
        (tag_class, tag) for image in data.index.tags for tag_class, each in image.items() for tag in each
    ]
    counts = Counter(tags)
    mean_count = {
        tag_class: sum(n for (each, _), n in counts.items() if each == tag_class)
        / sum(each == tag_class for each, _ in counts)
        for tag_class in {"colour", "general"}
    }
    settings = config.tag_weights
    weights = []
    for image in data.index.tags:
        factors = [
            (mean_count[tag_class] / counts[tag_class, tag]) ** settings.beta
            for tag_class, each in image.items()
            for tag in each
        ]
        weights.append(min(max(sum(factors) / len(factors), settings.least), settings.most))
    expected = torch.tensor(weights) / (sum(weights) / len(weights))
    torch.testing.assert_close(data.tag_weights, expected, rtol=FLOAT32_ROUNDING, atol=0)
    assert len(data.tag_weights.unique()) > 3


def test_demonstration_data_is_drawn_only_where_asked_and_absent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []
    monkeypatch.setattr("refimpl.run.stage.write_demo_images", lambda folder, progress: drawn.append(folder))
    (tmp_path / "there" / "train").mkdir(parents=True)
    for name, demo in (("there", True), ("absent", False), ("absent", True)):
        folders = {
            part: str(tmp_path / name / where)
            for part, where in (("folder", "train"), ("heldout", "heldout"))
        }
        write_demo_data(runs.config(tmp_path, tmp_path, data={**folders, "demo": demo}).data)
    assert drawn == [tmp_path / "absent"]


@pytest.mark.parametrize(
    ("folder", "heldout", "near"),
    [
        ("my-imagse", "demo-data/heldout", r"; did you mean .*/my-images\?"),
        ("my-imagse/train", "demo-data/heldout", r"; did you mean .*/my-images/train\?"),
        ("elsewhere/train", "demo-data/heldout", ";"),
        ("my-images/trian", "my-images/heldout", r"; did you mean .*/my-images/train\?"),
        ("elsewhere", "", ";"),
    ],
)
def test_a_mistyped_folder_is_no_place_for_the_demonstration(
    folder: str, heldout: str, near: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The demo's images are not drawn beside the typing error."""
    monkeypatch.setattr("refimpl.run.stage.write_demo_images", lambda *_, **__: pytest.fail("drawn"))
    (tmp_path / "my-images" / "train").mkdir(parents=True)
    places = {"folder": str(tmp_path / folder), "heldout": str(tmp_path / heldout) if heldout else ""}
    settings = runs.config(tmp_path, tmp_path, data={**places, "demo": True}).data
    with pytest.raises(InputError, match=rf"^data\.folder .*/{folder}: there is no such folder{near}"):
        write_demo_data(settings)
    assert [path.name for path in tmp_path.iterdir()] == ["my-images"]


def test_a_run_that_never_started_leaves_no_folder(root: Path, tmp_path: Path) -> None:
    run = run_folder(runs.config(root, tmp_path / "run"), "x", runs.ALONE)
    assert run.is_dir()
    with pytest.raises(KeyboardInterrupt), removed_if_empty(run, runs.ALONE, [run]):
        raise KeyboardInterrupt
    assert not run.exists()
    run.mkdir()
    (run / "something").write_text("")
    with pytest.raises(InputError), removed_if_empty(run, runs.ALONE, [run]):
        raise InputError("x")
    assert (run / "something").exists()


@pytest.mark.parametrize("out", ["", "made/too/run"])
def test_the_folders_made_around_a_run_go_with_it(
    out: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "kept").mkdir()
    config = runs.config(root, tmp_path, train={"out": out})
    for held, left in ((False, ["kept"]), (True, ["kept", "runs" if not out else "made"])):
        made = absent_folders(out)
        run = run_folder(config, "x", runs.ALONE)
        if held:
            run.with_name("other").mkdir()
        with pytest.raises(InputError), removed_if_empty(run, runs.ALONE, made):
            raise InputError("x")
        assert not run.exists()
        assert sorted(path.name for path in tmp_path.iterdir()) == left
    assert absent_folders("kept/run") == (Path("kept/run"),)


@pytest.mark.parametrize(("out", "left"), [("mine", ["mine"]), ("made/../run", [])])
def test_a_folder_that_was_there_stays(
    out: str, left: list[str], root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in left:
        (tmp_path / name).mkdir()
    made = absent_folders(out)
    run = run_folder(runs.config(root, tmp_path, train={"out": out}), "x", runs.ALONE)
    with pytest.raises(InputError), removed_if_empty(run, runs.ALONE, made):
        raise InputError("x")
    assert [path.name for path in tmp_path.iterdir()] == left


@pytest.mark.parametrize("rank", [0, 1])
def test_one_rank_alone_lists_the_images_that_are_left_out(
    rank: int, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(
        config: Config, stage: Stage, quarantined: dict[str, str] | None = None, is_told: bool = True
    ) -> None:
        raise InputError("listed" if is_told else "silent")

    monkeypatch.setattr(preparation, "read_stage", asked)
    monkeypatch.setattr("refimpl.run.stage.read_stage", asked)
    config, world = runs.config(root, tmp_path), World(rank, 1, torch.device("cpu"))
    command = CacheCommand("tiny", tmp_path / "cache")
    for ask in (
        lambda: prepare(config, tmp_path, world),
        lambda: write_cache(command, config, VAE(config.vae), world),
    ):
        with pytest.raises(InputError, match=["listed", "silent"][rank]):
            ask()


def test_a_full_disk_leaves_neither_settings_nor_components(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = os.rename

    def full(source: Path, target: Path) -> None:
        if Path(target).name == "components":
            raise OSError(28, "No space left on device")
        rename(source, target)

    monkeypatch.setattr(os, "rename", full)
    config = runs.config(root, tmp_path / "run")
    run = run_folder(config, "x", runs.ALONE)
    with pytest.raises(InputError, match=r"could not write .*components: No space left on device"):
        prepare(config, run, runs.ALONE)
    assert not list(run.iterdir())


# --- refimpl stats ---


def test_stats_command_writes_a_preset(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    toml, out = runs.write_toml(root, tmp_path / "a.toml", tmp_path), tmp_path / "mine.json"
    dispatch(["stats", toml, "--out", str(out), "--device", "cpu"])
    preset = ScaleShift.from_json(out.read_text())
    printed = capsys.readouterr().out.splitlines()
    assert json.loads(printed[0])["images"] == 18
    assert printed[1] == f"channel 0: mean {preset.mean[0]:9.4f}   std {preset.std[0]:9.4f}"
    before = out.read_bytes()
    with pytest.raises(InputError, match=r"mine\.json exists; choose another name"):
        dispatch(["stats", toml, "--out", str(out)])
    assert out.read_bytes() == before
    with pytest.raises(InputError, match=r"could not write .*absent/mine\.json"):
        dispatch(["stats", toml, "--out", str(tmp_path / "absent" / "mine.json"), "--device", "cpu"])
    bare = runs.write_toml(root, tmp_path / "b.toml", tmp_path, latents={"weights": ""})
    with pytest.raises(InputError, match="no autoencoder to encode with; name its safetensors file"):
        dispatch(["stats", bare, "--out", str(tmp_path / "other.json")])


def test_a_scale_shift_file_that_is_no_preset_is_named(root: Path, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("not JSON")
    config = runs.config(root, tmp_path, latents={"folder": "", "scale_shift": str(tmp_path / "a.json")})
    with pytest.raises(
        InputError, match=r"latents\.scale_shift .*a\.json' is not a preset: ScaleShift: not JSON"
    ):
        frozen_parts(config, read_stage(config, config.all_stages()[0]), torch.device("cpu"))
    (tmp_path / "a.json").write_bytes(b"\xff\xd8\xff\xe0 a JPEG's beginning")
    with pytest.raises(
        InputError, match=r"latents\.scale_shift .*a\.json is a JPEG image, not a scale-and-shift"
    ):
        frozen_parts(config, read_stage(config, config.all_stages()[0]), torch.device("cpu"))
