"""Whose configuration a file is."""

import os
from pathlib import Path

import pytest

from refimpl.errors import InputError
from refimpl.run.presets import load_config, preset_names
from refimpl.run.settings.recognised import read_foreign, read_table, trainer_of
from refimpl.tables import to_table

KOHYA = '[a]\npretrained_model_name_or_path = "m"\n[b]\nnetwork_dim = 4\n'
ONETRAINER = '{"training_method": "LORA", "base_model_name": "m"}'


@pytest.mark.parametrize("name", preset_names())
def test_our_own_settings_are_nobody_elses(name: str) -> None:
    assert trainer_of(to_table(load_config(name))) is None


def test_one_field_is_enough_where_one_trainer_alone_has_it() -> None:
    stray = {"pretrained_model_name_or_path": "m", "lora_rank": 4}
    assert trainer_of(stray) == trainer_of({"model": stray}) == "sd-scripts"
    assert trainer_of({"train_data_dir": "i"}) == trainer_of({"a": {"network_dim": 4}}) == "sd-scripts"
    assert trainer_of({"training_method": "LORA", "x": 1}) == "OneTrainer"
    slip = {"train": {"steps": 3}, "lora": {"network_dim": 4}}  # for lora.rank, which its own message names
    assert trainer_of(slip) is None
    assert trainer_of({**slip, "adapter": {"network_dim": 4}}) is None
    ours = {
        "train": {"max_train_steps": 3, "lr": 1},
        "optimizer": {"lr": 1},
    }  # written by who knows sd-scripts
    assert trainer_of(ours) is None
    assert trainer_of({**ours, "unet_lr": 1}) == "sd-scripts"
    assert trainer_of({**slip, "data": {"train_data_dir": "i"}}) == "sd-scripts"


def test_one_field_that_others_have_is_not_enough() -> None:
    assert trainer_of({"mixed_precision": "bf16", "learning_rate": 1}) is None
    assert trainer_of({"mixed_precision": "bf16", "network_dim": 1}) == "sd-scripts"
    assert trainer_of({"datasets": [{}]}) == "sd-scripts"
    assert trainer_of({"training_method": "LORA", "lora_rank": 1}) == "OneTrainer"


@pytest.mark.parametrize(
    ("name", "text", "trainer"), [("k.toml", KOHYA, "sd-scripts"), ("o.json", ONETRAINER, "OneTrainer")]
)
def test_where_ours_is_expected_another_is_named(name: str, text: str, trainer: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(InputError) as error:
        load_config(str(path))
    assert str(error.value) == (
        f"{path} is a configuration of {trainer}, not of refimpl; translate it with `refimpl init --import {path}`"
    )
    assert read_foreign(path).trainer == trainer


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "[train]\nsteps = 3",
            "neither a TOML file of sd-scripts nor a JSON file of OneTrainer; it seems to be",
        ),
        ("x = 3", "neither a TOML file of sd-scripts nor a JSON file of OneTrainer"),
        ("[train", "is not valid TOML"),
        ("\ud800", "is not text"),
    ],
)
def test_other_files_are_told_what_they_are(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "file.toml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(InputError, match=said):
        read_foreign(path)


def test_json_is_read_by_its_suffix(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("[1]")
    with pytest.raises(InputError, match="holds no table"):
        read_table(path)
    path.write_text("{")
    with pytest.raises(InputError, match="is not valid JSON"):
        read_table(path)
    with pytest.raises(InputError, match="could not read"):
        read_table(tmp_path / "none.json")


def test_what_is_no_file_is_named_for_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe is not waited for."""
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe.toml")
    with pytest.raises(InputError, match=r"^pipe\.toml is not a regular file; give a TOML or JSON file"):
        read_table(Path("pipe.toml"))
    with pytest.raises(InputError, match="it is no regular file"):
        load_config("pipe.toml")
    Path("my images").mkdir()
    with pytest.raises(InputError, match="it is a folder: `refimpl init 'my images'` writes settings"):
        load_config("my images")
    Path("mine.toml").touch()
    with pytest.raises(InputError, match=r"there is no such file; did you mean mine\.toml\?"):
        load_config("mime.toml")
    with pytest.raises(
        InputError, match=r"neither a TOML file of sd-scripts .*; it holds no settings at all"
    ):
        read_foreign(Path("mine.toml"))
