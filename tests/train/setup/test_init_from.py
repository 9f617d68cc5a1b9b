"""Starting from a run, a single file or a diffusers folder of another tool (N §2.1)."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from refimpl.commands.data.stats import find_autoencoder
from refimpl.errors import InputError
from refimpl.interop import diffusers_folder, single_file
from refimpl.interop.checkpoint import Checkpoint, Prediction
from refimpl.interop.run import as_checkpoint as run_checkpoint
from refimpl.interop.run.run_folder import load_model
from refimpl.latents.scale_shift import SDXL_DEFAULT, ScaleShift
from refimpl.model.pipeline import Model
from refimpl.text.config import TextConfig
from refimpl.text.tower_names import tower_parameters
from refimpl.train.setup.init_from import open_start, start_towers
from tests.train import runs

Run = Callable[..., Path]

STILL: dict[str, Any] = {"optimizer": {"learning_rate": 1e-30, "weight_decay": 0.0}}
"""A rate at which one step leaves every weight where it began."""
SCALE_SHIFT = ScaleShift((0.5, 0.25, 0.0, -1.0), (2.0, 3.0, 4.0, 5.0))


@pytest.fixture(scope="module")
def checkpoint(trained: Path) -> tuple[Checkpoint, Model]:
    """The finished run as an eps checkpoint of another tool, with a scale-and-shift of its own."""
    found, model = run_checkpoint.load(trained)
    return replace(found, prediction=Prediction("eps", False, "given"), scale_shift=SCALE_SHIFT), model


@pytest.fixture(scope="module")
def places(checkpoint: tuple[Checkpoint, Model], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with single.safetensors, half.safetensors (float16), unet.safetensors and diffusers/."""
    folder = tmp_path_factory.mktemp("foreign")
    found, model = checkpoint
    single_file.save(found, folder / "single.safetensors")
    single_file.save(found, folder / "half.safetensors", torch.float16)
    single_file.save(Checkpoint(unet=found.unet, metadata=found.metadata), folder / "unet.safetensors")
    diffusers_folder.save(found, folder / "diffusers", tokenizer=model.tokenizer)
    return folder


@pytest.mark.parametrize("name", ["single.safetensors", "half.safetensors", "diffusers"])
def test_network_autoencoder_and_towers_are_the_checkpoints(
    name: str,
    run: Run,
    places: Path,
    checkpoint: tuple[Checkpoint, Model],
    capsys: pytest.CaptureFixture[str],
) -> None:
    latents = {"weights": "", "scale_shift": "checkpoint"}
    folder = run(**STILL, train={"init_from": str(places / name), "steps": 1}, latents=latents)
    model, _, _ = load_model(folder, "unet")
    found = checkpoint[0]
    assert found.text_l is not None
    assert model.encoder_l is not None
    ours = (
        model.unet.state_dict(), model.vae.state_dict(), dict(tower_parameters(model.encoder_l)),
        dict(tower_parameters(model.encoder_g)),
    )  # fmt: skip
    for state, wanted in zip(ours, (found.unet, found.vae, found.text_l, found.text_g), strict=True):
        assert wanted is not None
        rounded = {k: v.half().float() if name.startswith("half") else v for k, v in wanted.items()}
        assert not runs.differing({"x": state}, {"x": rounded})
    assert model.scale_shift == SCALE_SHIFT
    kind = "diffusers folder" if name == "diffusers" else "single file"
    printed = capsys.readouterr().out
    assert f"{name} ({kind}): it predicts eps on the plain schedule (" in printed
    assert "this run trains it to v on the zero-terminal-SNR one" in printed
    assert "its latents were scaled by" not in printed


def test_a_presets_folder_of_latents_does_not_win_over_the_starts_autoencoder(
    run: Run, places: Path, checkpoint: tuple[Checkpoint, Model], tmp_path: Path
) -> None:
    """A preset such as tiny may have trained an autoencoder there before; the UNet knows another."""
    folder = tmp_path / "latents"
    latents = {"weights": "", "folder": str(folder), "train_steps": 1, "train_batch": 2, "train_size": 32}
    run("maker", train={"steps": 1}, latents=latents)
    (made,) = (path.stat().st_mtime_ns for path in folder.glob("autoencoder.safetensors"))
    train = {"init_from": str(places / "single.safetensors"), "steps": 1}
    started = load_model(run("started", train=train, latents=latents))[0]
    settings = runs.config(tmp_path, tmp_path, latents=latents)
    encoder = find_autoencoder(settings.latents, settings.vae, train["init_from"], "")
    assert checkpoint[0].vae is not None
    for vae in (started.vae, encoder):
        assert not runs.differing({"x": vae.state_dict()}, {"x": dict(checkpoint[0].vae)})
    assert (folder / "autoencoder.safetensors").stat().st_mtime_ns == made
    own = find_autoencoder(settings.latents, settings.vae, "", "")
    assert runs.differing({"x": own.state_dict()}, {"x": dict(checkpoint[0].vae)})
    run("absent", train=train, latents=latents | {"folder": str(tmp_path / "nowhere")})
    assert not (tmp_path / "nowhere").exists()


def test_a_lone_unet_needs_its_autoencoder_named(
    run: Run, places: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = {"init_from": str(places / "unet.safetensors"), "steps": 1}
    folder = run("named", **STILL, train=train)
    assert "its latents were scaled by" not in capsys.readouterr().out  # by 0.13025, as this run's
    model, _, _ = load_model(folder, "unet")
    start = single_file.load(places / "unet.safetensors")
    assert start.unet is not None
    assert not runs.differing({"x": model.unet.state_dict()}, {"x": dict(start.unet)})
    with pytest.raises(InputError, match="no autoencoder: give latents"):
        run("unnamed", train=train, latents={"weights": ""})


def test_another_scale_of_the_latents_is_said(
    run: Run, places: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = {"init_from": str(places / "single.safetensors"), "steps": 1}
    folder = run(train=train, latents={"weights": "", "scale_shift": "sdxl"})
    assert load_model(folder)[0].scale_shift == SDXL_DEFAULT
    assert f"its latents were scaled by mean {SCALE_SHIFT.mean} and std" in capsys.readouterr().out


def test_captions_are_cleaned_as_this_run_says(run: Run, places: Path) -> None:
    """Whatever the checkpoint's run did: its tokenizer's files do not say."""
    start = str(places / "single.safetensors")
    for text in (TextConfig(towers="tiny", clean="openclip"), TextConfig(towers="tiny")):
        assert start_towers(open_start(start), text, start)[0].clean == text.clean
    folder = run(
        **STILL, train={"init_from": start, "steps": 1}, latents={"weights": ""}, text={"clean": "openclip"}
    )
    tokenizer = load_model(folder)[0].tokenizer
    assert tokenizer.clean == "openclip"
    assert tokenizer.ids("“red” &amp; ＢＬＵＥ") == replace(tokenizer, clean="none").ids('"red" & blue')


def test_a_start_is_resumed_without_the_checkpoint(run: Run, places: Path, tmp_path: Path) -> None:
    copy = shutil.copy(places / "single.safetensors", tmp_path / "single.safetensors")
    settings = {"latents": {"weights": "", "scale_shift": "checkpoint"}}
    whole = run("whole", train={"init_from": str(copy)}, **settings)
    run("parts", train={"init_from": str(copy), "steps": 2}, **settings)
    Path(copy).unlink()
    parts = run("parts", train={"init_from": str(copy), "resume": True}, **settings)
    assert not runs.differing(runs.checkpoint(whole, 4), runs.checkpoint(parts, 4))


def test_trained_towers_go_with_the_network(run: Run) -> None:
    """A run whose towers were trained hands those on, not the ones it began with."""
    first = run("first", text={"learning_rate_g": 1e-2}, train={"ema_decay": 0.0})
    second = run("second", **STILL, train={"init_from": str(first), "steps": 1})
    trained, began = (load_model(folder)[0].encoder_g for folder in (first, second))
    assert not runs.differing({"x": dict(tower_parameters(trained))}, {"x": dict(tower_parameters(began))})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": {"init_from": "{places}/absent.safetensors"}}, "absent.safetensors does not exist"),
        ({"train": {"init_from": "{places}"}}, "holds no checkpoint; give a run folder"),
        (
            {"train": {"init_from": "{places}/single.safetensors"}, "unet": {"middle_depth": 2}},
            r"single.safetensors does not fit this network; 20 of its tensors differ",
        ),
        (
            {
                "train": {"init_from": "{places}/single.safetensors"},
                "latents": {"weights": ""},
                "vae": {"channels": 6},
            },
            "single.safetensors does not fit this network",
        ),
        (
            {"latents": {"scale_shift": "checkpoint"}},
            "'checkpoint' takes what train.init_from was trained with",
        ),
        (
            {
                "train": {"init_from": "{places}/single.safetensors"},
                "text": {"towers": "sdxl"},
                "unet": {"context_dim": 2048, "vector_dim": 2816},
            },
            "does not fit this network",
        ),
        (
            {"train": {"init_from": "{places}/single.safetensors"}, "text": {"tokenizer": "{places}/none"}},
            "tokenizer folder .*none: vocab.json and merges.txt, or tokenizer.json not found",
        ),
    ],
)
def test_what_cannot_be_a_start_is_said(
    changes: dict[str, dict[str, Any]], message: str, run: Run, places: Path, tmp_path: Path
) -> None:
    filled = {
        section: {
            k: v.replace("{places}", str(places)) if isinstance(v, str) else v for k, v in entries.items()
        }
        for section, entries in changes.items()
    }
    with pytest.raises(InputError, match=message):
        run(**filled)
    assert not list((tmp_path / "run").iterdir())
