"""`python -m refimpl.train`: bad input ends in one message, exit code 2, and leaves nothing behind."""

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from refimpl.commands.train import parse, train_command
from refimpl.run.presets import load_config
from tests.commands.endings import ending
from tests.train import runs


def empty(folder: Path) -> None:
    shutil.rmtree(folder / "train")
    (folder / "train").mkdir()


def without_captions(folder: Path) -> None:
    for path in (folder / "train").glob("*.txt"):
        path.unlink()


def undecodable(folder: Path) -> None:
    (folder / "train" / "005.png").write_bytes(b"not an image")


def damaged_heldout(folder: Path) -> None:
    (folder / "heldout" / "001.png").write_bytes(b"")


def nothing(folder: Path) -> None:
    """The data are good."""


BAD: dict[str, tuple[Callable[[Path], None], dict[str, Any], list[str]]] = {
    "empty folder": (empty, {}, ["{data}/train: no images in it"]),
    "absent folder": (
        nothing, {"data": {"folder": "/nowhere/at/all"}}, ["/nowhere/at/all: there is no such folder"],
    ),
    "no folder": (nothing, {"data": {"folder": ""}}, ["data.folder is empty; name a folder of images"]),
    "no captions": (without_captions, {}, ["18 images but no captions", "000.txt or 000.caption"]),
    "undecodable": (undecodable, {}, ["{data}/train/005.png: not an image", "1 of 18", "repair or remove"]),
    "bad held-out image": (
        damaged_heldout, {"data": {"heldout": "{data}/heldout"}}, ["{data}/heldout/001.png: the file is empty"],
    ),
    "too few images": (
        nothing, {"train": {"batch_size": 5, "accumulate": 4}},
        ["18 images are fewer than one global batch", "20", "Add 2 images"],
    ),
    "too few images in a later stage": (
        nothing, {"stages": [
            {"from_step": 0, "buckets": runs.BUCKETS},
            {"from_step": 2, "buckets": runs.BUCKETS, "batch_size": 19}
        ]}, ["18 images are fewer than one global batch", "19"],
    ),
    "too few images for the autoencoder": (
        nothing, {"latents": {"weights": "", "train_steps": 1, "train_batch": 19, "train_size": 32}},
        ["18 images are fewer than one batch of autoencoder training", "latents.train_batch 19", "add 1 images"],
    ),
    "too few images after pruning": (
        nothing, {"data": {"max_aspect_error": 1e-9}, "buckets": {"max_side": 48}, "train": {"batch_size": 5}},
        ["4 images are fewer than one global batch"],
    ),
    "steps 0": (nothing, {"train": {"steps": 0}}, ["train.steps 0 must be at least 1"]),
    "wrong type": (nothing, {"train": {"steps": "many"}}, ["train.steps must be int, not 'many'"]),
    "unknown key": (
        nothing, {"train": {"stpes": 3}}, ["bad.toml: unknown key train.stpes; did you mean train.steps?"],
    ),
    "unknown section": (nothing, {"trian": {"steps": 3}}, ["unknown key trian; did you mean train?"]),
    "bucket step": (
        nothing, {"buckets": {"step": 12, "min_side": 36}}, ["not a multiple of the VAE's factor 8", "not 12"],
    ),
    "eps with ZTSNR": (
        nothing, {"diffusion": {"parameterisation": "eps"}}, ["'eps' cannot be used with a zero-terminal-SNR"],
    ),
    "leading with ZTSNR": (nothing, {"sample": {"grid": "leading"}}, ["leading", "skips t = 999"]),
    "init_from nothing": (nothing, {"train": {"init_from": "{data}"}}, ["{data} holds no checkpoint; give a run"]),
    "no autoencoder": (nothing, {"latents": {"weights": ""}}, ["no autoencoder: give latents.weights"]),
    "absent autoencoder": (nothing, {"latents": {"weights": "/none.st"}}, ["/none.st does not exist"]),
    "another autoencoder": (
        nothing, {"vae": {"channels": 8}}, ["autoencoder.safetensors does not fit this model", "misshapen"],
    ),
    "absent statistics": (
        nothing, {"latents": {"scale_shift": "mine.json"}}, ["latents.scale_shift 'mine.json' is neither measure"],
    ),
    "statistics of other latents": (
        nothing, {"vae": {"latent_channels": 5}, "unet": {"in_channels": 5, "out_channels": 5}},
        ["latents.scale_shift 'sdxl' has 4 channels, but vae.latent_channels is 5"],
    ),
    "latents.folder in use": (
        nothing, {"latents": {"weights": "", "train_steps": 1, "folder": "{data}/train"}},
        ["latents.folder {data}/train exists but holds no autoencoder"],
    ),
    "no towers": (
        nothing, {"text": {"towers": "sdxl"}, "unet": {"context_dim": 2048, "vector_dim": 2816}},
        ["text.folder is empty; name a folder with tokenizer/"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_message_and_nothing_else(
    case: str, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    shutil.copytree(root, data)
    spoil, changes, parts = BAD[case]
    spoil(data)
    before = listing(tmp_path)
    toml = runs.write_toml(data, tmp_path / "bad.toml", out, **filled(changes, str(data)))
    code, _, message = ending(train_command, [toml], capsys)
    assert code == 2
    assert message.startswith("error: ")
    assert "Traceback" not in message
    for part in parts:
        assert part.replace("{data}", str(data)) in message
    assert listing(tmp_path) == before | {"bad.toml"}


@pytest.mark.parametrize("backend", ["kernel", "tensorboard", "wandb"])
def test_what_is_not_installed_is_said_before_anything_is_made(
    backend: str,
    root: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "refimpl.ops.kernel", None)  # what importing it then finds
    monkeypatch.setattr("importlib.util.find_spec", lambda name, package=None: None)
    settings = {
        "kernel": {"backend": "kernel"},
        "tensorboard": {"tensorboard": True},
        "wandb": {"wandb_project": "p"},
    }
    toml = runs.write_toml(root, tmp_path / "bad.toml", tmp_path / "out", train=settings[backend])
    code, _, message = ending(train_command, [toml], capsys)
    assert code == 2
    assert "pip install" in message
    assert not (tmp_path / "out").exists()


def test_weights_of_another_network_are_refused_for_init_from(
    trained: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unet = {"middle_depth": 2, "context_dim": 96}
    train = {"init_from": str(trained)}
    toml = runs.write_toml(root, tmp_path / "bad.toml", tmp_path / "out", train=train, unet=unet)
    code, _, message = ending(train_command, [toml], capsys)
    assert code == 2
    assert f"{trained} does not fit this network; 20 of its tensors differ" in message
    assert message.count("missing   middle_block.1.transformer_blocks.1.") == 20
    assert not (tmp_path / "out").exists()


def test_another_run_is_not_overwritten(
    trained: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()}
    toml = runs.write_toml(root, tmp_path / "a.toml", trained)
    code, _, message = ending(train_command, [toml], capsys)
    assert code == 2
    assert f"train.out {trained} holds another run; choose an empty folder, or continue" in message
    assert before == {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()}


def test_a_damaged_image_met_later_can_be_repaired_and_the_run_continued(
    root: Path, tmp_path: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its header is sound, so that only decoding finds it."""
    data = tmp_path / "data"
    shutil.copytree(root, data)
    image = data / "train" / "004.png"
    image.write_bytes((root / "train" / "004.png").read_bytes()[:-30])
    toml = runs.write_toml(data, tmp_path / "a.toml", tmp_path / "out")
    code, _, message = ending(train_command, [toml], capsys)
    assert code == 2
    assert "bad images, more than 1% of the " in message
    assert f"the last is {image}: can't be decoded" in message
    assert "replace or remove it (id '004')" in message
    shutil.copy(root / "train" / "004.png", image)
    code, _, message = ending(train_command, [toml, "--train.resume"], capsys)
    assert code == 2
    assert "image files of other sizes in bytes: their pixels have changed" in message
    assert ending(train_command, [toml, "--train.resume", "--train.accept-data"], capsys)[0] == 0
    assert not runs.differing(runs.checkpoint(trained, 4), runs.checkpoint(tmp_path / "out", 4))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name a preset or a TOML file first"),
        (["--train.steps", "3"], "name a preset or a TOML file first"),
        (["tinny"], "the nearest preset is 'tiny'"),
        (["tiny", "--train.stpes", "3"], "--train.steps"),
        (["tiny", "--train.steps", "0"], "train.steps 0 must be at least 1"),
        (["tiny", "--train.steps", "many"], "many"),
        (["tiny", "--sample.grid", "leading"], "skips t = 999"),
    ],
)
def test_bad_command_lines(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, error = ending(train_command, arguments, capsys)
    assert code == 2
    assert message in " ".join(error.replace("│", "").split())
    assert "Traceback" not in error
    assert not list(tmp_path.iterdir())


def test_help_lists_presets_and_settings(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = ending(train_command, ["--help"], capsys)
    assert code == 0
    assert "finetune_24gb, image_prompt, lora_24gb, novelai_v3, sdxl_base, sdxl_refiner, tiny" in " ".join(
        out.split()
    )
    code, out, _ = ending(train_command, ["tiny", "--help"], capsys)
    assert code == 0
    assert "--train.batch-size" in out
    assert "micro-batch on one rank" in out


@pytest.mark.parametrize("words", [["--config"], ["--config="], ["--config", "--train.steps", "3"]])
def test_config_needs_a_file(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code, _, error = ending(train_command, words, capsys)
    assert code == 2
    assert "name a preset or a TOML file first" in error


def test_config_names_the_file_too(root: Path, tmp_path: Path) -> None:
    toml = runs.write_toml(root, tmp_path / "a.toml", tmp_path / "out")
    for words in ([toml], ["--config", toml], [f"--config={toml}"]):
        config, label = parse([*words, "--train.steps", "9"])
        assert (config.train.steps, label) == (9, "a")


def test_runs_without_a_name_are_numbered(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "mine-001").mkdir(parents=True)
    toml = runs.write_toml(root, tmp_path / "mine.toml", Path(), train={"out": "", "steps": 1})
    for name in ("mine-002", "mine-003"):
        code, out, _ = ending(train_command, [toml], capsys)
        assert code == 0
        assert f"run folder: runs/{name}\n" in out
        asked = f"done: runs/{name}\nsample from it: python -m refimpl.sample runs/{name}"
        assert f"{asked} --prompts {shlex.quote(load_config(toml).sample.prompts[0])}\n" in out
        assert (tmp_path / "runs" / name / "checkpoints" / "step-00000001").is_dir()


def test_the_first_line_says_what_the_run_computes_with(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = {"steps": 1, "precision": "bf16", "backend": "kernel", "attention": "flash"}
    toml = runs.write_toml(root, tmp_path / "a.toml", tmp_path / "out", train=train)
    first = "device cpu, backend kernel, precision bf16, attention flash, channels first, compile none\n"
    code, out, _ = ending(train_command, [toml], capsys)
    assert code == 0
    assert out.startswith(first)


def test_the_module_is_a_program(root: Path, tmp_path: Path) -> None:
    """One real process: exit code and streams as a shell sees them."""
    toml = runs.write_toml(root, tmp_path / "a.toml", tmp_path / "out", train={"batch_size": 19})
    call = [sys.executable, "-m", "refimpl.train", toml]
    done = subprocess.run(call, capture_output=True, text=True, cwd=tmp_path, env=one_thread(), check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: 18 images are fewer than one global batch")
    assert not (tmp_path / "out").exists()


def one_thread() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def listing(folder: Path) -> set[str]:
    """Every path below a folder but the images'."""
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if "/train/" not in str(p)}


def filled(value: Any, data: str) -> Any:
    """`value` with {data} replaced in all its strings."""
    if isinstance(value, dict):
        return {key: filled(entry, data) for key, entry in value.items()}
    return value.replace("{data}", data) if isinstance(value, str) else value
