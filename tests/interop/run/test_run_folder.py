"""Run folders: what is found in them, what is missing from them, and what does not fit."""

import json
import shutil
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from refimpl.errors import InputError
from refimpl.interop.run.checkpoints import committed_steps, find_checkpoint
from refimpl.interop.run.run_folder import (
    load_autoencoder,
    load_model,
    state_number,
    write_config,
)
from refimpl.latents.scale_shift import SDXL_DEFAULT
from refimpl.latents.vae import VAEConfig
from refimpl.storage import committed
from refimpl.tables import from_table
from tests.train import runs


def test_a_model_is_what_was_trained(trained: Path) -> None:
    for weights in ("ema", "unet"):
        model, table, step = load_model(trained, weights)
        assert step == 4
        assert table == json.loads((trained / "config.json").read_text())
        assert model.scale_shift == SDXL_DEFAULT
        state = runs.checkpoint(trained, 4)[weights]
        assert all(torch.equal(value, state[name]) for name, value in model.unet.state_dict().items())
        frozen = load_file(trained / "components" / "autoencoder.safetensors")
        assert all(torch.equal(value, frozen[name]) for name, value in model.vae.state_dict().items())
        assert not model.unet.training
        assert not any(p.requires_grad for p in model.vae.parameters())


def test_a_checkpoint_may_be_named_from_anywhere(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_model(trained / "checkpoints" / "step-00000002")[2] == 2
    monkeypatch.chdir(trained / "checkpoints" / "step-00000002")
    assert load_model(Path())[2] == 2
    monkeypatch.chdir(trained)
    assert load_model(Path("checkpoints/step-00000002"))[2] == 2
    assert load_model(Path())[2] == 4


def test_unknown_weights_are_named(trained: Path) -> None:
    with pytest.raises(InputError, match="weights 'best' are unknown; use ema or unet"):
        load_model(trained, "best")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("absent", "holds no checkpoint"),
        ("empty", "holds no checkpoint"),
        ("file", "is a text file, not a run"),
    ],
)
def test_a_folder_without_checkpoint_is_named(name: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match=f"{name} {said}; give a run folder or one of its"):
        load_model(tmp_path / name)


def test_only_whole_checkpoints_count(tmp_path: Path) -> None:
    names = (
        "step-00000003",
        "step-00000010",
        "step-00000007",
        "step-x",
        ".step-00000099.writing-1",
        "step-5",
    )
    for name in names:
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
        if name != "step-00000007":
            (tmp_path / "checkpoints" / name / committed.MANIFEST).write_text("{}")
    assert committed_steps(tmp_path) == [3, 10]
    assert find_checkpoint(tmp_path).name == "step-00000010"


def test_all_of_a_run_can_be_read_by_whom_the_umask_allows(trained: Path) -> None:
    modes = {stat.S_IMODE(path.stat().st_mode) for path in trained.rglob("*") if path.is_file()}
    assert modes == {stat.S_IMODE((trained / "config.json").stat().st_mode)}


def test_components_are_verified(trained: Path, tmp_path: Path) -> None:
    run = shutil.copytree(trained, tmp_path / "run")
    (run / "components" / "scale_shift.json").write_text(SDXL_DEFAULT.to_json() + " ")
    with pytest.raises(InputError, match=r"components/scale_shift\.json differs from its manifest"):
        load_model(run)
    shutil.rmtree(run / "components")
    with pytest.raises(InputError, match=r"components is not a checkpoint: it has no manifest\.json"):
        load_model(run)


def test_another_network_is_refused_with_every_tensor(trained: Path, tmp_path: Path) -> None:
    run = shutil.copytree(trained, tmp_path / "run")
    folder = run / "checkpoints" / "step-00000004"
    tensors, documents = committed.read(folder)
    documents["config"]["unet"]["middle_depth"] = 2
    shutil.rmtree(folder)
    committed.write(folder, tensors, documents)
    with pytest.raises(InputError, match=r"ema\.safetensors does not fit this model") as error:
        load_model(run)
    missing = [line for line in str(error.value).splitlines() if line.startswith("  missing")]
    assert missing
    assert all("middle_block.1.transformer_blocks.1." in line for line in missing)


def test_settings_of_the_future_are_refused(trained: Path, tmp_path: Path) -> None:
    run = shutil.copytree(trained, tmp_path / "run")
    folder = run / "checkpoints" / "step-00000004"
    tensors, documents = committed.read(folder)
    documents["config"]["diffusion"]["flow"] = True
    shutil.rmtree(folder)
    committed.write(folder, tensors, documents)
    with pytest.raises(InputError, match=r"step-00000004/config\.json \[diffusion\]: unknown key flow"):
        load_model(run)


def test_an_autoencoder_comes_with_or_without_the_single_files_prefix(root: Path, tmp_path: Path) -> None:
    config = from_table(VAEConfig, runs.VAE_TABLE, "test")
    plain = load_autoencoder(root / "autoencoder.safetensors", config)
    state = {f"first_stage_model.{name}": value for name, value in plain.state_dict().items()}
    save_file(state | {"model.diffusion_model.x": torch.zeros(1)}, str(tmp_path / "single.safetensors"))
    prefixed = load_autoencoder(tmp_path / "single.safetensors", config).state_dict()
    assert all(torch.equal(value, prefixed[name]) for name, value in plain.state_dict().items())
    with pytest.raises(InputError, match=r"autoencoder\.safetensors does not fit this model"):
        load_autoencoder(root / "autoencoder.safetensors", VAEConfig.tiny())


def test_files_that_are_not_safetensors_are_named(tmp_path: Path) -> None:
    (tmp_path / "text.safetensors").write_text("no tensors")
    for name, message in (
        ("absent.safetensors", r"absent\.safetensors does not exist"),
        ("text.safetensors", r"text\.safetensors is a text file, not a safetensors file"),
        (".", "is not a regular file"),
    ):
        with pytest.raises(InputError, match=message):
            load_autoencoder(tmp_path / name, VAEConfig.tiny())


def test_settings_are_written_as_json(tmp_path: Path) -> None:
    write_config(tmp_path, {"train": {"out": "é"}})
    assert json.loads((tmp_path / "config.json").read_text(encoding="utf-8")) == {"train": {"out": "é"}}


@pytest.mark.parametrize("state", [{}, [1], {"step": "5"}, {"step": 5.0}, {"step": True}, None])
def test_a_state_without_its_number_is_refused(state: object, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"state\.json holds no integer 'step'; use another"):
        state_number(tmp_path, {"state": state}, "step")
    assert state_number(tmp_path, {"state": {"step": 5}}, "step") == 5
