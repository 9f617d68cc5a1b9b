"""`refimpl merge-lora` and `refimpl export-lora`, on files of this project's and of other tools' layouts."""

import functools
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from refimpl.commands import main as cli
from refimpl.diffusion.config import DiffusionConfig
from refimpl.errors import InputError
from refimpl.interop import any_checkpoint, diffusers_folder, single_file
from refimpl.interop.checkpoint import Checkpoint, Prediction
from refimpl.interop.lora import files as lora_files
from refimpl.interop.lora.files import LoRAFile
from refimpl.interop.lora.merge import merge_into_checkpoint
from refimpl.interop.network.architecture import noted
from refimpl.latents.config import VAEConfig
from refimpl.model.config import UNetConfig
from refimpl.model.lora.adapters import ALPHA, lora_state
from refimpl.model.lora.config import LoRAConfig
from refimpl.storage import committed
from refimpl.tables import to_table
from refimpl.text.config import TextConfig
from tests.folders import contents
from tests.interop.lora.test_files import assert_same
from tests.interop.lora.test_merge import checkpoint
from tests.interop.lora_examples import ARCHITECTURE, example, lora_file, networks

PARTS = ("unet", "text_l", "text_g")
SETTINGS = {
    "unet": to_table(UNetConfig()),
    "vae": to_table(VAEConfig()),
    "text": to_table(TextConfig()),
    "diffusion": to_table(DiffusionConfig()),
}


@functools.cache
def base() -> Checkpoint:
    """The tiny UNet and towers, said to predict v, with what tells their shapes."""
    plain = checkpoint()
    return Checkpoint(
        **{part: getattr(plain, part) for part in PARTS},
        prediction=Prediction("v", True, "given"),
        metadata=noted({}, ARCHITECTURE),
    )


@pytest.fixture
def files(tmp_path) -> tuple[Path, Path]:
    """A single file and a LoRA for it."""
    model, lora = tmp_path / "model.safetensors", tmp_path / "lora.safetensors"
    single_file.save(base(), model)
    lora_files.save(example(), lora)
    return model, lora


def assert_merged(path: Path, strength: float, dtype: torch.dtype = torch.float32) -> None:
    wanted = merge_into_checkpoint(base(), example(), strength)
    found = any_checkpoint.load(path).checkpoint
    assert found.prediction.kind == "v"
    assert found.prediction.zero_terminal_snr
    for part in PARTS:
        first, second = getattr(wanted, part), getattr(found, part)
        assert set(first) == set(second)
        assert all(torch.equal(value.to(dtype), second[key]) for key, value in first.items())


@pytest.mark.parametrize("strength", [1.0, -0.5])
def test_a_single_file_is_merged(files, tmp_path, capsys, strength):
    model, lora = files
    before = contents(tmp_path)
    out = tmp_path / "merged.safetensors"
    cli.dispatch(["merge-lora", str(model), str(lora), str(out), "--strength", str(strength)])
    assert_merged(out, strength)
    printed = capsys.readouterr().out
    modules = sum(key.endswith(ALPHA) for key in example().unet)
    assert f"unet: {modules} modules merged at {strength:g}\ntext_l: 12 modules" in printed
    assert "predicts v with zero terminal SNR" in printed
    after = contents(tmp_path)
    assert {name: after[name] for name in before} == before


def test_a_diffusers_folder_is_merged_in_another_dtype(files, tmp_path):
    _, lora = files
    diffusers_folder.save(base(), tmp_path / "folder")
    out = tmp_path / "merged"
    cli.dispatch(["merge-lora", str(tmp_path / "folder"), str(lora), str(out), "--dtype", "bf16"])
    assert_merged(out, 1.0, torch.bfloat16)


def test_a_lora_of_another_prediction_type_is_pointed_out(files, tmp_path, capsys):
    model, _ = files
    lora = tmp_path / "eps.safetensors"
    lora_files.save(lora_file(networks(), **{"modelspec.prediction_type": "epsilon"}), lora)
    cli.dispatch(["merge-lora", str(model), str(lora), str(tmp_path / "out.safetensors")])
    assert "trained on a checkpoint that predicts eps; this one predicts v" in capsys.readouterr().out


WRONG = {
    "the checkpoint again": ((0, 1, 0), r"is both what is read and what would be written"),
    "the LoRA again": ((0, 1, 1), r"lora\.safetensors is both the LoRA and what would be written"),
    "a file that is there": ((0, 1, "there.safetensors"), r"there\.safetensors exists already"),
    "no checkpoint": (("absent", 1, "out.safetensors"), r"absent does not exist"),
    "no LoRA": ((0, "absent", "out.safetensors"), r"absent does not exist; name a LoRA's"),
    "no folder": ((0, 1, "absent/out.safetensors"), r"absent is not a folder"),
    "a checkpoint as LoRA": ((0, 0, "out.safetensors"), r"model\.safetensors holds no LoRA"),
    "a LoRA as checkpoint": ((1, 1, "out.safetensors"), r"lora\.safetensors"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_merged_is_refused_and_nothing_is_written(files, tmp_path, name):
    (tmp_path / "there.safetensors").write_bytes(b"mine")
    before = contents(tmp_path)
    (first, second, out), message = WRONG[name]
    paths = [str(files[p]) if isinstance(p, int) else str(tmp_path / p) for p in (first, second, out)]
    with pytest.raises(InputError, match=message):
        cli.dispatch(["merge-lora", *paths])
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [("--strength", "nan", "must be finite"), ("--dtype", "fp8", "is unknown")],
)
def test_an_option_that_cannot_be_is_refused(files, tmp_path, option, value, message):
    model, lora = files
    before = contents(tmp_path)
    with pytest.raises(InputError, match=message):
        cli.dispatch(["merge-lora", str(model), str(lora), str(tmp_path / "out.safetensors"), option, value])
    assert contents(tmp_path) == before


@pytest.fixture
def run(tmp_path) -> Path:
    """A run of a LoRA on the UNet and CLIP-L, as the trainer leaves it."""
    parts = networks()
    average = networks(alpha=3.0, rank=2)
    table = {**SETTINGS, "lora": to_table(LoRAConfig(2, 3.0, text_targets=("*.mlp.*",)))}
    tensors = {
        "unet": lora_state(parts["unet"]),
        "text_l": lora_state(parts["text_l"]),
        "ema": {key: value * 0.5 for key, value in lora_state(average["unet"]).items()},
        "ema_text_l": lora_state(average["text_l"]),
    }
    documents = {"config": table, "state": {"step": 1}}
    committed.write(tmp_path / "run" / "checkpoints" / "step-00000001", tensors, documents)
    return tmp_path / "run"


def test_a_runs_adapters_are_exported(run, tmp_path, capsys):
    out = tmp_path / "mine.safetensors"
    cli.dispatch(["export-lora", str(run), str(out), "--weights", "unet", "--dtype", ""])
    wanted = example()
    assert_same(LoRAFile(unet=wanted.unet, text_l=wanted.text_l), lora_files.load(out, ARCHITECTURE))
    assert "text_l: 12 modules" in capsys.readouterr().out
    with safe_open(out, "pt") as file:
        metadata = file.metadata()
    assert (
        metadata.items()
        >= {
            "ss_network_module": "networks.lora",
            "ss_network_dim": "2",
            "ss_network_alpha": "3.0",
            "ss_base_model_version": "sdxl_base_v1-0",
            "ss_v2": "False",
            "ss_v_parameterization": "True",
            "ss_zero_terminal_snr": "True",
            "modelspec.architecture": "stable-diffusion-xl-v1-base/lora",
            "modelspec.prediction_type": "v",
            "modelspec.title": "mine",
        }.items()
    )


def test_the_moving_average_in_half_precision_is_what_is_exported_unless_told_otherwise(run, tmp_path):
    out = tmp_path / "mine.safetensors"
    cli.dispatch(["export-lora", str(run / "checkpoints" / "step-00000001"), str(out)])
    read, wanted = lora_files.load(out, ARCHITECTURE), example()
    for key, value in read.unet.items():
        half = wanted.unet[key] * 0.5
        assert torch.equal(value, half if key.endswith(ALPHA) else half.half())
    assert {value.dtype for value in load_file(str(out)).values()} == {torch.float16, torch.float32}


def test_a_run_without_adapters_has_none_to_export(run, tmp_path):
    other = tmp_path / "other"
    documents = {"config": {**SETTINGS, "lora": {}}, "state": {"step": 1}}
    committed.write(other / "checkpoints" / "step-00000001", {"ema": {}}, documents)
    out = str(tmp_path / "out.safetensors")
    with pytest.raises(InputError, match=r"trains full weights; `refimpl export` writes those"):
        cli.dispatch(["export-lora", str(other), out])
    with pytest.raises(InputError, match=r"holds no checkpoint"):
        cli.dispatch(["export-lora", str(tmp_path / "nowhere"), out])
    with pytest.raises(InputError, match=r"weights 'best' are unknown"):
        cli.dispatch(["export-lora", str(run), out, "--weights", "best"])
    Path(out).write_bytes(b"mine")
    with pytest.raises(InputError, match=r"out\.safetensors exists"):
        cli.dispatch(["export-lora", str(run), out])
    assert Path(out).read_bytes() == b"mine"
