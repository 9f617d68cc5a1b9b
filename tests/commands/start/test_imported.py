"""`refimpl init --import`: another trainer's settings train here, and every field of theirs is accounted for."""

import json
import os
from pathlib import Path

import pytest

from refimpl.commands.main import dispatch
from refimpl.run.presets import load_config
from tests.commands.endings import ending
from tests.commands.start.test_init import here
from tests.run.here.test_machine import without_libraries
from tests.train import runs

__all__ = ["here"]  # the fixture: a folder of its own

KOHYA = """
pretrained_model_name_or_path = "{start}"
train_data_dir = "images"
network_module = "networks.lora"
network_dim = 2
max_train_epochs = 3
train_batch_size = 4
resolution = 64
enable_bucket = true
min_bucket_reso = 32
bucket_reso_steps = 16
v_parameterization = true
zero_terminal_snr = true
clip_skip = 2
output_dir = "out"
{more}
"""


def test_kohyas_settings_train_here(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs.write_images(Path("images"), 9)
    Path("k.toml").write_text(KOHYA.format(start=trained, more=""))
    code, out, _ = ending(dispatch, ["init", "--import", "k.toml"], capsys)
    assert code == 0
    assert "  network_dim → lora.rank = 2\n" in out
    assert "not carried over (1):\n  clip_skip: refimpl has no such setting\n" in out
    assert "before it trains" not in out
    config = load_config("k-refimpl.toml")
    assert (config.train.steps, config.train.batch_size) == (
        6,
        4,
    )  # 3 epochs of 9 images, the last one dropped
    assert (config.lora.rank, config.text.towers) == (2, "tiny")
    text = " ".join(Path("k-refimpl.toml").read_text().replace("\n# ", " ").split())
    assert "Not carried over: clip_skip." in text
    assert "Here: sd-scripts's network_dim." in text
    assert ending(dispatch, ["train", "k-refimpl.toml", "--train.steps", "1"], capsys)[0] == 0
    assert Path("out/checkpoints/step-00000001").is_dir()


def test_unknown_fields_are_refused_or_left_out_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    Path("k.toml").write_text(KOHYA.format(start="gone.safetensors", more="lr_shceduler = 1\nnosuch = 2"))
    code, out, error = ending(dispatch, ["init", "--import", "k.toml"], capsys)
    assert (code, out) == (2, "")
    assert error.splitlines()[1:] == [
        "  lr_shceduler; the nearest is lr_scheduler", f"  nosuch; the nearest is {error.split()[-1]}",
    ]  # fmt: skip
    assert os.listdir() == ["k.toml"]
    code, out, _ = ending(dispatch, ["init", "--import", "k.toml", "--skip-unknown"], capsys)
    assert code == 0
    assert "not its fields, left out (2):\n  lr_shceduler: the nearest is lr_scheduler\n" in out
    assert "max_train_epochs: 3 epochs of images that are not here to be counted; set train.steps" in out
    assert "before it trains:\n  data.folder images: there is no such folder" in out


def test_a_library_that_is_lacking_is_to_be_installed_first(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    without_libraries(monkeypatch)
    Path("k.toml").write_text(KOHYA.format(start="gone.safetensors", more='optimizer_type = "AdamW8bit"'))
    code, out, _ = ending(dispatch, ["init", "--import", "k.toml"], capsys)
    assert code == 0
    assert (
        "optimizer.kind 'adamw8bit' needs the torchao package: pip install"
        in out.partition("before it trains:")[2]
    )


def test_onetrainers_settings_are_translated(capsys: pytest.CaptureFixture[str]) -> None:
    table = {"training_method": "LORA", "base_model_name": "m", "concepts": [{"path": "images"}], "epochs": 2}
    Path("o.json").write_text(json.dumps(table))
    runs.write_images(Path("images"), 3)
    code, out, _ = ending(dispatch, ["init", "--import", "o.json", "--out", "mine.toml"], capsys)
    assert code == 0
    assert "  epochs → train.steps = 6\n" in out
    config = load_config("mine.toml")
    assert (config.lora.rank, config.data.folder, config.train.steps) == (16, "images", 6)


def test_fields_of_onetrainer_inside_others_are_told_by_their_place(
    capsys: pytest.CaptureFixture[str],
) -> None:
    table = {
        "training_method": "LORA",
        "base_model_name": "m",
        "concepts": [{"path": "images", "foo": 1}],
        "lerning_rate": 1,
        "unet": {"trian": True},
        "nested": {"a": {"b": 1}},
    }
    Path("o.json").write_text(json.dumps(table))
    code, out, error = ending(dispatch, ["init", "--import", "o.json"], capsys)
    assert (code, out) == (2, "")
    assert error.startswith("error: o.json: OneTrainer has no such fields; ")
    told = {line.split(";")[0].strip() for line in error.splitlines()[1:]}
    assert told == {"lerning_rate", "unet.trian", "nested.a.b", "concepts[0].foo"}
    assert os.listdir() == ["o.json"]


def test_contradictions_are_told_in_our_words(capsys: pytest.CaptureFixture[str]) -> None:
    Path("k.toml").write_text(
        'pretrained_model_name_or_path = "m"\ntrain_data_dir = "i"\nzero_terminal_snr = true'
    )
    code, _, error = ending(dispatch, ["init", "--import", "k.toml"], capsys)
    assert code == 2
    assert "'eps' cannot be used with a zero-terminal-SNR schedule" in error
    assert os.listdir() == ["k.toml"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("train_batch_size = -3", ["train.batch_size -3 must be at least 1",
                                   "  train.batch_size comes from train_batch_size = -3"]),
        ("network_module = 'networks.lora'\nnetwork_dim = -4", ["  lora.rank comes from network_dim = -4"]),
        ("resolution = '0'", ["bucket min_side = 0: ", "  buckets.min_side comes from resolution = '0'"]),
        ("min_timestep = 9\nmax_timestep = 5", ["  diffusion.first_timestep comes from min_timestep = 9",
                                               "  diffusion.last_timestep comes from max_timestep = 5"]),
    ],
)  # fmt: skip
def test_a_value_out_of_range_names_their_field(
    text: str, told: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("k.toml").write_text(f"pretrained_model_name_or_path = 'm'\noutput_name = 'o'\nseed = 1\n{text}\n")
    code, out, error = ending(dispatch, ["init", "--import", "k.toml"], capsys)
    assert (code, out) == (2, "")
    assert all(line in error for line in told), error
    assert "seed" not in error
    assert os.listdir() == ["k.toml"]


def test_fields_that_others_override_are_in_the_report(capsys: pytest.CaptureFixture[str]) -> None:
    Path("k.toml").write_text("[a]\ntrain_data_dir = 'i'\nlearning_rate = 1e-3\n[b]\nlearning_rate = 5e-5\n")
    code, out, _ = ending(dispatch, ["init", "--import", "k.toml"], capsys)
    assert code == 0
    assert "k.toml is a configuration of sd-scripts, with 3 fields\n" in out
    assert "needs no setting (1):\n  a.learning_rate: 0.001: b.learning_rate overrides it\n" in out


def test_a_value_of_the_wrong_type_is_an_error_whatever_is_skipped(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("k.toml").write_text("pretrained_model_name_or_path = 'm'\nmax_train_steps = 'x'\nnosuch = 1\n")
    code, out, error = ending(dispatch, ["init", "--import", "k.toml", "--skip-unknown"], capsys)
    assert (code, out) == (2, "")
    assert error.endswith("delete their lines\n  max_train_steps: 'x' is not a whole number\n")
    assert os.listdir() == ["k.toml"]
