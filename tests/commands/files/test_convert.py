"""`refimpl inspect`, `convert` and `export`: what a user gets, and what is said before anything is written."""

import json
from pathlib import Path

import pytest
import torch

from refimpl.commands.files.convert import convert_command
from refimpl.commands.files.export import export_command
from refimpl.commands.files.inspect import inspect_command
from refimpl.errors import InputError
from refimpl.interop import any_checkpoint, diffusers_folder, single_file
from refimpl.interop.checkpoint import Checkpoint, Prediction
from refimpl.interop.run import as_checkpoint as run_checkpoint
from refimpl.interop.run.run_folder import load_model
from refimpl.interop.single_file.folded import FOLDED
from refimpl.latents.scale_shift import NOVELAI_ANIME, SDXL_DEFAULT
from refimpl.text.tokenizer import tiny_tokenizer
from tests.interop.checkpoints import PARTS, same_bits, working

V_ZTSNR = Prediction("v", True, "given")
LOGIT = {"conditioner.embedders.1.model.logit_scale": torch.tensor(4.6052)}


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole tiny model of NovelAI's scale-and-shift in one file; no test changes it."""
    path = tmp_path_factory.mktemp("convert") / "model.safetensors"
    single_file.save(working(prediction=V_ZTSNR, scale_shift=NOVELAI_ANIME, other=LOGIT), path)
    return path


def same_parts(one: Checkpoint, two: Checkpoint) -> bool:
    return all(same_bits(getattr(one, part), getattr(two, part)) for part in PARTS)


# --- inspect ---


def test_inspect_says_what_a_file_is(single: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inspect_command([str(single)])
    text = capsys.readouterr().out
    assert text.splitlines()[0] == f"{single}: single file, tiny"
    unet = next(line for line in text.splitlines() if line.split()[0:1] == ["UNet"])
    assert unet.split()[1:] == ["330", "tensors", "2,984,260", "values", "11.9", "MB", "F32"]
    assert "predicts v, on a schedule that ends in pure noise (marker v_pred, marker ztsnr, " in text
    assert "scale-and-shift: mean [4.8119, " in text
    assert "markers: v_pred, ztsnr" in text
    assert "modelspec.title: model" in text


def test_inspect_counts_by_part(single: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inspect_command([str(single), "--as-json"])
    facts = json.loads(capsys.readouterr().out)
    checkpoint = single_file.load(single)
    for part in (*PARTS, "other"):
        tensors = getattr(checkpoint, part)
        sizes = facts["parts"][part]
        assert sizes["tensors"] == len(tensors)
        assert sizes["parameters"] == sum(value.numel() for value in tensors.values())
        assert sizes["bytes"] == 4 * sizes["parameters"]
    assert (facts["kind"], facts["prediction"], facts["zero_terminal_snr"]) == ("single file", "v", True)


@pytest.mark.parametrize(
    ("changes", "lines"),
    [
        (
            {"prediction": Prediction("v", False, "", 0.002, 120.0)},
            ["conditioned on σ_edm from 0.00", "not on t"],
        ),
        ({}, ["predicts eps, on a schedule that does not end", "the plain 0.13025", "markers: none"]),
        ({"unet": None}, ["autoencoder: VAEConfig(", "the plain 0.13025"]),
        ({"unet": None, "vae": None}, ["text towers alone"]),
    ],
)
def test_inspect_says_what_is_unusual(
    changes: dict, lines: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fields = {part: getattr(working(), part) for part in PARTS} | changes
    single_file.save(Checkpoint(**fields), tmp_path / "x.safetensors")
    inspect_command([str(tmp_path / "x.safetensors")])
    text = capsys.readouterr().out
    for line in lines:
        assert line in text


def test_inspect_reads_runs_and_folders(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inspect_command([str(trained), "--as-json"])
    facts = json.loads(capsys.readouterr().out)
    assert facts["kind"] == "run"
    assert facts["reason"] == "the run's configuration, step 4, weights ema"
    diffusers_folder.save(working(prediction=V_ZTSNR), tmp_path / "folder")
    inspect_command([str(tmp_path / "folder")])
    assert "folder: diffusers folder, tiny" in capsys.readouterr().out
    with pytest.raises(
        InputError, match=r"does not exist; give a \.safetensors file, a diffusers folder or a run"
    ):
        inspect_command([str(tmp_path / "none")])


# --- convert ---


def test_there_and_back_changes_no_bit(
    single: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, back = tmp_path / "folder", tmp_path / "back.safetensors"
    convert_command([str(single), str(folder)])
    assert "folder has no tokenizer; --tokenizer FOLDER writes one" in capsys.readouterr().out
    convert_command([str(folder), str(back)])
    assert "`refimpl convert --fold-scale-shift` writes one they decode" in capsys.readouterr().out
    one, two = single_file.load(single), single_file.load(back)
    assert same_parts(one, two)
    assert same_bits(one.other, two.other)
    assert two.scale_shift == NOVELAI_ANIME
    assert (two.prediction.kind, two.prediction.zero_terminal_snr) == ("v", True)


def test_dtype_prediction_and_folding_are_as_asked(single: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    options = ["--dtype", "bf16", "--v-pred", "--fold-scale-shift", "--drop-other"]
    convert_command([str(single), str(out), *options])
    read = single_file.load(out)
    assert all(value.dtype == torch.bfloat16 for part in PARTS for value in getattr(read, part).values())
    assert read.other.keys() == {"v_pred"}
    assert not read.prediction.zero_terminal_snr
    assert read.scale_shift == SDXL_DEFAULT
    assert FOLDED in read.metadata


def test_a_tokenizer_is_found_beside_or_named(single: Path, tmp_path: Path) -> None:
    tiny_tokenizer().save(tmp_path / "beside" / "tokenizer")
    model = tmp_path / "beside" / "model.safetensors"
    model.write_bytes(single.read_bytes())
    convert_command([str(model), str(tmp_path / "a")])
    convert_command([str(single), str(tmp_path / "b"), "--tokenizer", str(tmp_path / "beside")])
    convert_command([str(tmp_path / "b"), str(tmp_path / "c")])  # its own goes along
    for name in "abc":
        assert (tmp_path / name / "tokenizer_2" / "tokenizer_config.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{in}", "{in}"], "is both what is read and what would be written"),
        (["{in}", "{tmp}/link.safetensors"], "is both what is read"),
        (["{in}", "{tmp}/there.safetensors"], "exists already; give another name"),
        (["{in}", "{tmp}/dangling"], "exists already"),
        (["{in}", "{tmp}/none/x.safetensors"], "none is not a folder; make it first"),
        (["{in}", "{tmp}/x.ckpt"], "would be a folder with the name of a file"),
        (
            ["{in}", "{tmp}/x.safetensors", "--format", "diffusers"],
            "would be a folder with the name of a file",
        ),
        (["{in}", "{tmp}/x", "--format", "single_file"], "must end in .safetensors"),
        (["{tmp}/none", "{tmp}/x"], "none does not exist"),
        (["{in}", "{tmp}/x.safetensors", "--prediction", "eps", "--ztsnr"], "at SNR 0 eps says nothing"),
    ],
)
def test_nothing_is_written_where_it_cannot_be(
    arguments: list[str], message: str, single: Path, tmp_path: Path
) -> None:
    (tmp_path / "there.safetensors").write_text("old")
    (tmp_path / "link.safetensors").symlink_to(single)
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    before = sorted(tmp_path.iterdir())
    filled = [argument.replace("{in}", str(single)).replace("{tmp}", str(tmp_path)) for argument in arguments]
    with pytest.raises(InputError, match=message):
        convert_command(filled)
    assert sorted(tmp_path.iterdir()) == before
    assert (tmp_path / "there.safetensors").read_text() == "old"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--ztsnr"], "--ztsnr needs --v-pred"),
        (["--v-pred", "--prediction", "eps"], "contradict each other"),
        (["--dtype", "fp8"], "--dtype 'fp8' is unknown"),
        (["--format", "gguf"], "--format 'gguf' is unknown"),
        (["--prediction", "w"], "--prediction 'w' is unknown"),
    ],
)
def test_options_that_cannot_be_end_with_2(
    options: list[str], message: str, single: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises((SystemExit, InputError)) as stop:
        convert_command([str(single), str(tmp_path / "x"), *options])
    said = str(stop.value) + capsys.readouterr().err
    assert message in " ".join(said.replace("│", " ").split())
    assert getattr(stop.value, "code", 2) == 2


# --- export ---


def test_a_run_is_exported_for_other_tools(trained: Path, tmp_path: Path) -> None:
    """Folded where the tools need it, plain diffusers entries where they read those, with its own tokenizer."""
    export_command([str(trained), str(tmp_path / "model.safetensors")])
    export_command([str(trained), str(tmp_path / "model")])
    model, _, _ = load_model(trained)
    file, folder = single_file.load(tmp_path / "model.safetensors"), any_checkpoint.load(tmp_path / "model")
    run, _ = run_checkpoint.load(trained)
    assert file.prediction.kind == folder.checkpoint.prediction.kind == model.diffusion.parameterisation
    assert file.prediction.zero_terminal_snr == model.diffusion.zero_terminal_snr
    for part in ("unet", "text_l", "text_g"):
        assert same_bits(getattr(file, part), getattr(run, part))
    assert same_parts(folder.checkpoint, run)
    assert folder.checkpoint.scale_shift == model.scale_shift
    assert file.scale_shift == SDXL_DEFAULT
    assert folder.tokenizer == tmp_path / "model"
    assert folder.zeros_for_empty == (model.text.null == "zeros")
    export_command(
        [str(trained), str(tmp_path / "raw.safetensors"), "--weights", "unet", "--no-fold-scale-shift"]
    )
    raw = single_file.load(tmp_path / "raw.safetensors")
    assert same_parts(raw, run_checkpoint.load(trained, "unet")[0])
    assert raw.scale_shift == model.scale_shift


def test_only_runs_are_exported_and_they_know_their_prediction(
    single: Path, trained: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="is not a run folder; `refimpl convert` takes files"):
        export_command([str(single), str(tmp_path / "x.safetensors")])
    with pytest.raises(InputError, match="is a run, whose configuration says what it predicts"):
        convert_command([str(trained), str(tmp_path / "x.safetensors"), "--v-pred"])
