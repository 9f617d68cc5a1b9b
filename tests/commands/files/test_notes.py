"""What `refimpl convert` and `export` say about other tools when they write."""

import dataclasses
from pathlib import Path

import pytest

from refimpl.commands.files.convert import convert_command
from refimpl.commands.files.notes import say_cleaning
from refimpl.interop import single_file
from refimpl.interop.checkpoint import Checkpoint, Prediction
from refimpl.text.tokenizer import tiny_tokenizer
from tests.interop.checkpoints import working

LINES = """\
    from diffusers import EulerDiscreteScheduler
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config, prediction_type='v_prediction', \
rescale_betas_zero_snr=True, timestep_spacing='linspace')
"""
PADDING = "in diffusers, bigG sees every ! of a prompt as padding, as with SDXL's own folder"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source.safetensors"
    single_file.save(working(prediction=Prediction("v", True, "given")), path)
    return path


def test_a_single_file_comes_with_the_lines_that_diffusers_needs(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    convert_command([str(source), str(tmp_path / "out.safetensors")])
    told = capsys.readouterr().out
    assert "diffusers' from_single_file does not read what it predicts; after it:\n" + LINES in told
    assert PADDING not in told


def test_an_eps_file_and_one_without_a_unet_come_without(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = working()
    for name, checkpoint in (("eps", whole), ("vae", Checkpoint(vae=whole.vae))):
        single_file.save(checkpoint, tmp_path / f"{name}.safetensors")
        convert_command([str(tmp_path / f"{name}.safetensors"), str(tmp_path / f"{name}-out.safetensors")])
    assert "diffusers" not in capsys.readouterr().out


def test_a_folder_says_what_becomes_of_exclamation_marks(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_tokenizer().save(tmp_path / "words")
    convert_command([str(source), str(tmp_path / "bare")])
    told = capsys.readouterr().out
    assert "has no tokenizer" in told
    assert PADDING not in told
    convert_command([str(source), str(tmp_path / "folder"), "--tokenizer", str(tmp_path / "words")])
    told = capsys.readouterr().out
    assert PADDING in told
    assert "from_single_file" not in told


def test_cleaned_captions_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    for tokenizer in (None, Path("folder"), tiny_tokenizer()):
        say_cleaning(tokenizer)
    assert not capsys.readouterr().out
    say_cleaning(dataclasses.replace(tiny_tokenizer(), clean="openclip"))
    assert "its captions were cleaned as OpenCLIP does (text.clean)" in capsys.readouterr().out
