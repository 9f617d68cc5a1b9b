"""`python -m refimpl.sample`: images from a run folder, and one message for everything else."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from refimpl.commands import sample as module
from refimpl.commands.sample import sample_command
from refimpl.interop.run.run_folder import load_model
from refimpl.sample.config import SampleConfig
from refimpl.sample.images.draw import draw_images
from refimpl.sample.images.refiner import Refiner
from tests.commands.endings import ending

PROMPTS = ["--prompts", "red circle", "dark", "--seeds", "2"]
FILES = {
    "grid.png", "samples.json", "prompt00-00.png", "prompt00-01.png", "prompt01-00.png", "prompt01-01.png",
}  # fmt: skip


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def test_images_grid_and_summary_are_written(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "samples"
    code, printed, _ = ending(
        sample_command, [str(trained), "--out", str(out), *PROMPTS, "--guidance", "2"], capsys
    )
    assert code == 0
    assert printed == f"wrote 4 images and a grid to {out}\n"
    assert {path.name for path in out.iterdir()} == FILES
    model, _, _ = load_model(trained)
    config = SampleConfig(("red circle", "dark"), seeds=2, steps=2, guidance=2.0, width=32, height=32)
    images = draw_images(model, config)
    for row in range(2):
        for number in range(2):
            wanted = (images[row, number] * 255).round().byte().permute(1, 2, 0).numpy()
            assert (pixels(out / f"prompt{row:02d}-{number:02d}.png") == wanted).all()
    grid = pixels(out / "grid.png")
    assert grid.shape == (66, 66, 3)
    assert (grid[34:, :32] == pixels(out / "prompt01-00.png")).all()
    summary = json.loads((out / "samples.json").read_text())
    assert summary["mean_rgb"] == images.mean(dim=(1, 3, 4)).tolist()
    assert (summary["step"], summary["weights"], summary["start_sigma"]) == (4, "ema", None)
    assert summary["settings"]["prompts"] == ["red circle", "dark"]
    assert summary["settings"]["width"] == 32  # from the run's settings


@pytest.mark.parametrize(
    "options",
    [
        ["--weights", "unet"],
        ["--start-sigma", "2.0"],
        ["--sampler", "dpmpp_2m_sde"],
        ["--seed", "1"],
        ["--rescale", "1"],
        ["--grid", "canvas"],
        ["--terminal", "4096"],
    ],
)
def test_options_change_the_images(
    options: list[str], trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = [str(trained), *PROMPTS, "--guidance", "3", "--steps", "3"]
    assert ending(sample_command, [*common, "--out", str(tmp_path / "a")], capsys)[0] == 0
    assert ending(sample_command, [*common, "--out", str(tmp_path / "b"), *options], capsys)[0] == 0
    assert (pixels(tmp_path / "a" / "grid.png") != pixels(tmp_path / "b" / "grid.png")).any()


def test_a_grid_that_jumps_over_the_canvas_average_is_said(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = [str(trained), *PROMPTS, "--steps", "4", "--terminal"]
    _, _, said = ending(sample_command, [*common, "20000", "--out", str(tmp_path / "a")], capsys)
    lines = [line for line in said.splitlines() if line.startswith("note: ")]
    assert len(lines) == 1
    assert "the grid native goes from 20000 to " in lines[0]
    assert ", below 2·√(h·w) = 8 on this canvas" in lines[0]
    assert json.loads((tmp_path / "a" / "samples.json").read_text())["settings"]["terminal"] == "20000"
    _, _, said = ending(
        sample_command, [*common, "exact", "--grid", "canvas", "--out", str(tmp_path / "b")], capsys
    )
    assert "note: " not in said


@pytest.mark.parametrize("mode", ["sdedit", "last"])
def test_a_refiner_and_how_it_is_applied_are_written_down(
    mode: str, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Any run can finish another's images; this one finishes its own, from half of the noise on."""
    options = ["--refiner", str(trained), "--refiner-mode", mode, "--refiner-from", "0.5", "--steps", "4"]
    out = tmp_path / "a"
    assert ending(sample_command, [str(trained), *PROMPTS, "--out", str(out), *options], capsys)[0] == 0
    summary = json.loads((out / "samples.json").read_text())
    assert (summary["refiner"], summary["refiner_mode"], summary["refiner_from"]) == (str(trained), mode, 0.5)
    model, _, _ = load_model(trained)
    config = SampleConfig(("red circle", "dark"), seeds=2, steps=4, width=32, height=32)
    images = draw_images(model, config, refiner=Refiner(model, mode, 0.5))
    assert summary["mean_rgb"] == images.mean((1, 3, 4)).tolist()


def test_an_older_checkpoint_can_be_named(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = trained / "checkpoints" / "step-00000002"
    assert ending(sample_command, [str(checkpoint), "--out", str(tmp_path / "a")], capsys)[0] == 0
    assert json.loads((tmp_path / "a" / "samples.json").read_text())["step"] == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["{run}/nothing"],
            "nothing holds no checkpoint; give a run folder or one of its checkpoints/step-*",
        ),
        (["{run}", "--device", "tpu"], "--device 'tpu' is unknown; use auto, cpu or cuda"),
        (["{run}", "--weights", "best"], "weights 'best' are unknown; use ema or unet"),
        (["{run}", "--sampler", "eular"], "sample.sampler 'eular' is unknown; use euler"),
        (["{run}", "--grid", "natve"], "sample.grid 'natve' is unknown"),
        (["{run}", "--grid", "leading"], "leading"),
        (["{run}", "--terminal", "2000"], "sample.terminal '2000' is unknown; use exact, 20000"),
        (["{run}", "--terminal", "20000", "--start-sigma", "3"], "but the grid starts at 3; use exact"),
        (["{run}", "--steps", "0"], "sample.steps 0 must be at least 1"),
        (["{run}", "--seeds", "0"], "sample.seeds 0 must be at least 1"),
        (["{run}", "--seed", "-1"], "sample.seed -1 must lie in 0 … 2^63 − 1"),
        (["{run}", "--width", "60"], "60×32 px is not a multiple of the VAE's 8"),
        (["{run}", "--batch-size", "0"], "--batch-size 0 must be at least 1"),
        (["{run}", "--guidance", "nan"], "sample.guidance nan must be finite"),
        (["{run}", "--start-sigma", "-1"], "-1"),
        (["{run}", "--start-sigma", "nan"], "nan"),
        (["{run}", "--seeds", "100000000000"], "not enough memory for this; lower"),
        (["{run}", "--width", "10000000", "--height", "10000000"], "not enough memory for this; lower"),
        (["{run}", "--out", "{full}"], "exists and is not an empty folder; choose another"),
        (["{run}", "--out", "{full}/file"], "exists and is not an empty folder; choose another"),
        (["{run}", "--out", "{full}/file/below"], "full/file is not a writable folder; choose another"),
        (["{run}", "--out", "x" * 300], "cannot be made: File name too long; choose another folder"),
        (
            ["{run}", "--refiner-from", "0.2"],
            "--refiner-from says where a refiner starts; name it with --refiner",
        ),
        (["{run}", "--refiner", "{full}"], "full holds no checkpoint; give a run folder"),
        (
            ["{run}", "--refiner", "{run}", "--refiner-mode", "frist"],
            "refiner mode 'frist' is unknown; use sdedit",
        ),
        (
            ["{run}", "--refiner", "{run}", "--refiner-from", "2"],
            "the refiner cannot start at 2.0 of the noise scales",
        ),
        (["{run}", "--image-prompt", "{full}/none.png"], "none.png"),
        (
            ["{run}", "--image-prompt", "{image}"],
            "this model takes no image prompt: it was trained without an image",
        ),
        (["{run}", "--prompts"], "prompts"),
        (["{run}", "--stpes", "3"], "--stpes"),
        ([], "run"),
    ],
)
def test_bad_input_is_one_message_and_nothing_else(
    options: list[str],
    message: str,
    root: Path,
    trained: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    full = tmp_path / "full"
    full.mkdir()
    (full / "file").write_text("x")
    image = next((root / "train").glob("*.png"))
    places = {"{run}": trained, "{full}": full, "{image}": image}
    arguments = options
    for name, place in places.items():
        arguments = [option.replace(name, str(place)) for option in arguments]
    code, _, error = ending(sample_command, arguments, capsys)
    assert code == 2
    assert message in " ".join(error.replace("│", "").split())
    assert "Traceback" not in error
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")) == [
        "full",
        "full/file",
    ]


def test_images_after_the_first_go_to_a_folder_of_their_own(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "samples-002").write_text("a file is in the way")
    for name in ("samples", "samples-003"):
        code, printed, _ = ending(sample_command, [str(trained), *PROMPTS], capsys)
        assert (code, printed) == (0, f"wrote 4 images and a grid to {name}\n")
        assert {path.name for path in (tmp_path / name).iterdir()} == FILES


@pytest.mark.parametrize("target", ["nowhere", "samples"])
def test_a_link_that_leads_nowhere_is_in_the_way(
    target: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of a folder in it: otherwise it is found when everything has been drawn."""
    monkeypatch.chdir(tmp_path)
    Path("samples").symlink_to(target)
    assert module._unused_folder() == Path("samples-002")
    for out in ("samples", "samples/inner"):
        code, _, error = ending(sample_command, ["run", "--out", out], capsys)
        assert (code, f"--out {out} " in error) == (2, True)


@pytest.mark.parametrize("seen", [False, True])
def test_a_place_that_cannot_be_searched_is_not_searched_for_ever(
    seen: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every name in it looks the same; one that is there and cannot be looked into is passed over."""

    def refuse(path: Path) -> bool:
        if seen and path.name != "samples":
            return False
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "_is_used", refuse)
    if seen:
        Path("samples").mkdir()
    assert module._unused_folder() == Path("samples-002" if seen else "samples")


def test_cuda_is_asked_for_where_there_is_none(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    code, _, error = ending(
        sample_command, [str(trained), "--device", "cuda", "--out", str(tmp_path / "a")], capsys
    )
    assert (code, "torch sees no GPU; use --device cpu" in error) == (2, True)


def test_a_damaged_run_is_named(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its newest whole checkpoint is drawn from, which is said; where there is none, the newest's damage."""
    run = shutil.copytree(trained, tmp_path / "run")
    weights, before = (run / "checkpoints" / f"step-0000000{n}" / "ema.safetensors" for n in (4, 2))
    weights.write_bytes(weights.read_bytes()[:-1])
    code, _, error = ending(
        sample_command, [str(run), "--out", str(tmp_path / "a"), *PROMPTS, "--device", "cpu"], capsys
    )
    assert code == 0
    assert f"passed over: {weights} differs from its manifest: it is damaged" in error
    assert f"used instead: {before.parent}" in error
    assert json.loads((tmp_path / "a" / "samples.json").read_text())["step"] == 2
    before.write_bytes(before.read_bytes()[:-1])
    for named in (run, weights.parent):
        code, _, error = ending(sample_command, [str(named), "--out", str(tmp_path / "b")], capsys)
        assert code == 2
        assert f"error: {weights} differs from its manifest: it is damaged" in error
    assert not (tmp_path / "b").exists()
    assert weights.exists()  # nothing is set aside by who only reads


def test_help_explains_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = ending(sample_command, ["--help"], capsys)
    assert code == 0
    for option in ("--out", "--start-sigma", "--prompts", "--guidance", "--sampler"):
        assert option in out


def test_the_module_is_a_program(trained: Path, tmp_path: Path) -> None:
    """One real process draws the bits that this one draws."""
    call = [sys.executable, "-m", "refimpl.sample", str(trained), "--out", "a", *PROMPTS, "--device", "cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(call, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    # two steps leave out what the canvas' average needs, and nothing else is said
    assert re.fullmatch(r"note: the grid native goes from ∞ to 0\.0292, [^\n]*\n", done.stderr), done.stderr
    assert {path.name for path in (tmp_path / "a").iterdir()} == FILES
    images = draw_images(
        load_model(trained)[0], SampleConfig(("red circle", "dark"), seeds=2, steps=2, width=32, height=32)
    )
    assert (
        json.loads((tmp_path / "a" / "samples.json").read_text())["mean_rgb"]
        == images.mean((1, 3, 4)).tolist()
    )
