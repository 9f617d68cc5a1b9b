"""Training low-rank adapters: they alone train, are checkpointed and averaged; what they adapt stays."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from refimpl.errors import InputError
from refimpl.interop.run.base import base_digest, base_state
from refimpl.interop.run.run_folder import load_model
from refimpl.interop.run.trained_parts import add_adapters
from refimpl.model.lora.adapters import load_lora_state, merge_lora
from refimpl.model.lora.config import LoRAConfig
from refimpl.model.unet import UNet
from refimpl.tables import from_table
from refimpl.text.tower_names import tower_parameters
from tests.train import runs
from tests.train.processes import run_ranks
from tests.train.test_resume import stop_after

Run = Callable[..., Path]

TARGETS = ["*.attn1.to_q", "*.attn2.to_k", "*.proj_in"]
TEXT = {
    "lora": {"text_targets": ["*.self_attn.*"]},
    "text": {"learning_rate_l": 1e-2, "learning_rate_g": 1e-2},
}


def sections(trained: Path, **lora: Any) -> dict[str, Any]:
    """Adapters of rank 2 on the finished run."""
    return {
        "lora": {"rank": 2, "alpha": 4.0, "targets": TARGETS, **lora},
        "train": {"init_from": str(trained), "ema_decay": 0.5},
    }


def with_text(trained: Path, **lora: Any) -> dict[str, Any]:
    """The same on both towers too."""
    return {**sections(trained, **{**TEXT["lora"], **lora}), "text": TEXT["text"]}


@pytest.fixture(scope="module")
def adapted(trained: Path, root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of adapters on the UNet and the towers; no test changes it."""
    return runs.go(runs.config(root, tmp_path_factory.mktemp("adapted"), **with_text(trained)))


def test_a_checkpoint_holds_adapters_alone_and_a_note_of_what_they_adapt(
    adapted: Path, trained: Path
) -> None:
    checkpoint = runs.checkpoint(adapted, 4)
    for name in ("unet", "ema", "text_l", "text_g", "ema_text_l"):
        assert all(
            key.endswith((".lora_down.weight", ".lora_up.weight", ".alpha")) for key in checkpoint[name]
        )
    modules = {key.removesuffix(".alpha") for key in checkpoint["unet"] if key.endswith(".alpha")}
    assert {name.rsplit(".", 1)[-1] for name in modules} == {"to_q", "to_k", "proj_in"}
    assert all(key.startswith("text_model.encoder.layers.") for key in checkpoint["text_l"])
    assert not (adapted / "components" / "unet.safetensors").exists()
    assert not runs.differing({"x": base_state(adapted)}, {"x": runs.checkpoint(trained, 4)["ema"]})
    state = json.loads((adapted / "checkpoints" / "step-00000004" / "state.json").read_text())
    assert state["base"] == base_digest(adapted)
    assert len(state["base"]) == 64


def test_every_adapter_that_can_learn_does(adapted: Path) -> None:
    """CLIP-L's last layer is behind the states that are used, so its adapters stay as they began."""
    for name in ("unet", "text_l", "text_g"):
        state = runs.checkpoint(adapted, 4)[name]
        ups = {key: bool(value.any()) for key, value in state.items() if key.endswith("lora_up.weight")}
        unused = {key for key in ups if name == "text_l" and ".layers.1." in key}
        assert {key for key, moved in ups.items() if not moved} == unused
        assert len(ups) > len(unused)


def test_a_model_is_the_base_with_the_averages_merged(adapted: Path, trained: Path) -> None:
    for weights, file in (("ema", "ema"), ("unet", "unet")):
        model, table, step = load_model(adapted, weights)
        assert step == 4
        unet = UNet(model.unet.config)
        unet.load_state_dict(runs.checkpoint(trained, 4)["ema"])
        add_adapters("unet", unet, from_table(LoRAConfig, table["lora"], "test"))
        load_lora_state(unet, runs.checkpoint(adapted, 4)[file], "test")
        merge_lora(unet)
        assert not runs.differing({"x": model.unet.state_dict()}, {"x": unet.state_dict()})
    began = load_file(adapted / "components" / "text_encoder_2" / "model.safetensors")
    changed = runs.differing({"x": dict(tower_parameters(model.encoder_g))}, {"x": began})
    assert changed
    assert all(".self_attn." in name and name.endswith(".weight") for name in changed)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_adapters_stopped_and_resumed_are_those_never_stopped(
    dropout: float, run: Run, adapted: Path, trained: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {**with_text(trained, dropout=dropout), "data": {"heldout": str(root / "heldout")}}
    whole = run("whole", **settings)
    stop_after(2, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        run("parts", **settings)
    monkeypatch.undo()
    parts = run("parts", **{**settings, "train": settings["train"] | {"resume": True}})
    assert not runs.differing(runs.checkpoint(whole, 4), runs.checkpoint(parts, 4))
    assert runs.rows(whole) == runs.rows(parts)
    assert bool(runs.differing(runs.checkpoint(adapted, 4), runs.checkpoint(whole, 4))) == (dropout > 0)


@pytest.mark.parametrize("reduction", ["ordered", pytest.param("fast", marks=pytest.mark.slow)])
def test_two_ranks_train_adapters(reduction: str, trained: Path, root: Path, tmp_path: Path) -> None:
    results = []
    for world in (1, 2):
        settings = with_text(trained, dropout=0.5)
        train = {"reduction": reduction, "batch_size": 2, "accumulate": 2 // world, "steps": 2}
        settings["train"] = settings["train"] | train
        toml = runs.write_toml(root, tmp_path / f"{world}.toml", tmp_path / f"{world}", **settings)
        assert run_ranks([toml], world, tmp_path / f"{world}-output") == [0] * world
        results.append(runs.checkpoint(tmp_path / f"{world}", 2))
    if reduction == "ordered":
        assert not runs.differing(*results)
    assert all(value.isfinite().all() for state in results[1].values() for value in state.values())


def test_towers_alone_can_be_adapted(run: Run, trained: Path) -> None:
    settings = with_text(trained, targets=[])
    folder = run(**settings, unet={})
    assert sorted(runs.checkpoint(folder, 4)) == [
        "ema_text_g", "ema_text_l", "optimizer_text_g", "optimizer_text_l", "text_g", "text_l",
    ]  # fmt: skip
    model, _, _ = load_model(folder)
    start = runs.checkpoint(trained, 4)["ema"]
    assert not runs.differing({"x": model.unet.state_dict()}, {"x": start})


def test_adapters_of_another_network_are_refused(
    adapted: Path, run: Run, trained: Path, tmp_path: Path
) -> None:
    """A checkpoint put into another run's folder would be merged into the wrong weights."""
    older = trained / "checkpoints" / "step-00000002"
    other = run("other", **sections(older))
    shutil.rmtree(other / "checkpoints")
    shutil.copytree(adapted / "checkpoints", other / "checkpoints")
    with pytest.raises(InputError, match=r"holds adapters of a UNet other than .*/base\.json"):
        load_model(other)


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ({"targets": ["*.to_w"]}, r"LoRA target '\*\.to_w' matches no module; the nearest are"),
        ({"text_targets": ["*.to_q"]}, r"LoRA target '\*\.to_q' matches no module; the nearest are"),
        ({"rank": 1000}, "LoRA rank 1000 exceeds that of"),
    ],
)
def test_adapters_that_fit_nothing_leave_no_run(
    lora: dict[str, Any], message: str, run: Run, trained: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        run(**with_text(trained, **lora))
    assert not list((tmp_path / "run").iterdir())


def test_adapters_train_in_bfloat16(run: Run, trained: Path) -> None:
    settings = sections(trained)
    state = runs.checkpoint(run(**{**settings, "train": settings["train"] | {"precision": "bf16"}}), 4)[
        "unet"
    ]
    assert all(value.dtype == torch.float32 and value.isfinite().all() for value in state.values())
