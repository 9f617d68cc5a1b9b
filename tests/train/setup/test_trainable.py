"""What a run trains, and that nothing else moves: towers, the image embedding, the refiner (S §2.5, §2.6)."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from refimpl.commands.sample import sample_command
from refimpl.errors import InputError
from refimpl.interop.run.run_folder import load_model
from refimpl.run.ema import ema_start
from refimpl.sample.images.draw import draw_images
from refimpl.text.encoders import tiny_encoders
from refimpl.text.tower_names import tower_parameters
from refimpl.train.setup.prepare import prepare
from refimpl.train.setup.trainable import averaged
from tests.tolerances import FLOAT32_ROUNDING
from tests.train import runs
from tests.train.processes import run_ranks
from tests.train.test_resume import stop_after

Run = Callable[..., Path]

TOWERS = {"towers": "tiny", "learning_rate_l": 1e-3, "learning_rate_g": 2e-3}
LABEL_EMB = ["label_emb.0.0.bias", "label_emb.0.0.weight", "label_emb.0.2.bias", "label_emb.0.2.weight"]


@pytest.fixture(scope="module")
def image_prompt(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Sections of a run that trains the image embedding of the finished one."""
    folder = runs.write_image_tower(tmp_path_factory.mktemp("tower") / "image_encoder")
    return {"image_prompt": {"folder": str(folder)}, "train": {"init_from": str(trained)}}


@pytest.fixture(scope="module")
def image_run(root: Path, tmp_path_factory: pytest.TempPathFactory, image_prompt: dict[str, Any]) -> Path:
    """A finished run of it; no test changes it."""
    return runs.go(runs.config(root, tmp_path_factory.mktemp("image-run"), **image_prompt))


# --- text towers ---


def test_towers_train_at_their_own_rates_and_what_no_condition_sees_stays(run: Run) -> None:
    checkpoint = runs.checkpoint(run(text=TOWERS, train={"ema_decay": 0.5}), 4)
    assert sorted(checkpoint) == [
        "ema", "ema_text_g", "ema_text_l", "optimizer", "optimizer_text_g", "optimizer_text_l", "text_g", "text_l",
        "unet",
    ]  # fmt: skip
    for name, encoder in zip(("text_l", "text_g"), tiny_encoders(), strict=True):
        before = {key: value.detach() for key, value in tower_parameters(encoder).items()}
        after = checkpoint[name]
        assert sorted(before) == sorted(after)
        still = {key for key in before if torch.equal(before[key], after[key])}
        unused = {
            k for k in before if k.startswith(("text_model.encoder.layers.1.", "text_model.final_layer"))
        }
        assert still == (unused if name == "text_l" else set())
        moments = {key.rsplit(".", 1)[0] for key in checkpoint[f"optimizer_{name}"]}
        assert moments == set(before) - still
        assert runs.differing({"x": after}, {"x": checkpoint[f"ema_{name}"]})


def test_a_rate_of_one_tower_leaves_the_other(run: Run) -> None:
    checkpoint = runs.checkpoint(run(text={"learning_rate_g": 1e-3}, train={"steps": 1}), 1)
    assert "text_g" in checkpoint
    assert "text_l" not in checkpoint


@pytest.mark.parametrize("null", ["zeros", "empty"])
def test_a_run_with_towers_stopped_and_resumed_is_the_run_never_stopped(
    null: str, run: Run, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {"text": TOWERS | {"null": null}, "data": {"heldout": str(root / "heldout")}}
    whole = run("whole", **settings)
    stop_after(2, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        run("parts", **settings)
    monkeypatch.undo()
    parts = run("parts", **settings, train={"resume": True})
    assert not runs.differing(runs.checkpoint(whole, 4), runs.checkpoint(parts, 4))
    assert runs.rows(whole) == runs.rows(parts)


def test_towers_get_the_gradient_of_the_loss_through_the_network(run: Run) -> None:
    """A new UNet hears the text from its third step on: its output, then its branches leave 0 first."""
    plain = {"epsilon": 1.0, "weight_decay": 0.0, "clip_norm": 0.0}
    folder = run(text=TOWERS, train={"steps": 3, "checkpoint_every": 1}, optimizer=plain)
    initial = {k: v.detach() for k, v in tower_parameters(tiny_encoders()[1]).items()}
    two, three = (runs.checkpoint(folder, step)["text_g"] for step in (2, 3))
    assert not runs.differing({"x": initial}, {"x": two})
    assert runs.differing({"x": two}, {"x": three})


def test_a_model_of_trained_towers_is_loaded_with_them(run: Run) -> None:
    folder = run(text=TOWERS)
    for weights, name in (("ema", "ema_text_g"), ("unet", "text_g")):
        model, _, _ = load_model(folder, weights)
        state = runs.checkpoint(folder, 4)[name]
        assert not runs.differing({"x": dict(tower_parameters(model.encoder_g))}, {"x": state})
        assert not any(p.requires_grad for network in model.parts().values() for p in network.parameters())
    component = load_file(folder / "components" / "text_encoder_2" / "model.safetensors")
    assert runs.differing({"x": component}, {"x": state})


@pytest.mark.parametrize("mode", ["towers", "image prompt"])
def test_ordered_gives_the_same_bits_on_1_and_2_ranks(
    mode: str, root: Path, tmp_path: Path, image_prompt: dict[str, Any]
) -> None:
    sections = {"text": TOWERS | {"null": "empty"}} if mode == "towers" else image_prompt
    results = []
    for world in (1, 2):
        train = {"reduction": "ordered", "batch_size": 2, "accumulate": 2 // world, "steps": 2}
        settings = {**sections, "train": {**sections.get("train", {}), **train}}
        toml = runs.write_toml(root, tmp_path / f"{world}.toml", tmp_path / f"{world}", **settings)
        assert run_ranks([toml], world, tmp_path / f"{world}-output") == [0] * world
        results.append(runs.checkpoint(tmp_path / f"{world}", 2))
    assert not runs.differing(*results)


def test_fast_towers_agree_with_one_rank_to_rounding(root: Path, tmp_path: Path) -> None:
    """DDP sees the UNet alone; the towers' mean is taken beside it."""
    plain = {"epsilon": 1.0, "learning_rate": 0.1, "weight_decay": 0.0}
    results = []
    for world in (1, 2):
        settings = {"text": TOWERS, "train": {"batch_size": 4 // world, "steps": 3}, "optimizer": plain}
        toml = runs.write_toml(root, tmp_path / f"{world}.toml", tmp_path / f"{world}", **settings)
        assert run_ranks([toml], world, tmp_path / f"{world}-output") == [0] * world
        results.append(runs.checkpoint(tmp_path / f"{world}", 3))
    for name in ("unet", "text_l", "text_g"):
        assert runs.farthest(results[0][name], results[1][name]) <= FLOAT32_ROUNDING


# --- averages ---


def test_averages_stand_in_for_the_weights_and_give_them_back(root: Path, tmp_path: Path) -> None:
    config = runs.config(root, tmp_path, text=TOWERS)
    prepared = prepare(config, tmp_path, runs.ALONE)
    averages = {part.name: ema_start(part) for part in prepared.parts}
    before = {part.name: {k: v.clone() for k, v in part.state_dict().items()} for part in prepared.parts}
    for state in averages.values():
        for value in state.values():
            value.add_(1)
    wanted = {name: {k: v.clone() for k, v in state.items()} for name, state in averages.items()}
    with averaged(prepared.parts, averages, prepared.sharding):
        for part in prepared.parts:
            assert not part.module.training
            for name, parameter in part.parameters().items():
                assert torch.equal(parameter, wanted[part.name][name])
    assert not runs.differing(before, {part.name: part.state_dict() for part in prepared.parts})
    assert not runs.differing(wanted, averages)
    assert [part.module.training for part in prepared.parts] == [True, False, False]


# --- image as prompt ---


def test_an_image_prompt_trains_the_embedding_layer_and_nothing_else(image_run: Path, trained: Path) -> None:
    start = runs.checkpoint(trained, 4)["ema"]
    checkpoint = runs.checkpoint(image_run, 4)
    assert runs.differing({"x": start}, {"x": checkpoint["unet"]}) == [f"x/{name}" for name in LABEL_EMB]
    assert runs.differing({"x": start}, {"x": checkpoint["ema"]}) == [f"x/{name}" for name in LABEL_EMB]
    assert {key.rsplit(".", 1)[0] for key in checkpoint["optimizer"]} == set(LABEL_EMB)


def test_an_image_prompt_is_the_image_embedding_in_the_pooled_states_place(
    image_run: Path, root: Path, image_prompt: dict[str, Any]
) -> None:
    """Another image draws another picture; text alone still draws."""
    model, table, _ = load_model(image_run)
    assert model.image_tower is not None
    config = runs.config(root, image_run, **image_prompt).sample
    assert table["image_prompt"]["folder"] == image_prompt["image_prompt"]["folder"]
    images = [torch.full((3, 40, 32), value) for value in (-1.0, 1.0)]
    drawn = [draw_images(model, config, image_prompt=image) for image in images]
    assert not torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], draw_images(model, config))


def test_an_image_prompt_is_read_from_a_file(image_run: Path, root: Path, tmp_path: Path) -> None:
    file = next((root / "train").glob("*.png"))
    sample_command(
        [str(image_run), "--out", str(tmp_path / "a"), "--image-prompt", str(file), "--device", "cpu"]
    )
    summary = json.loads((tmp_path / "a" / "samples.json").read_text())
    assert summary["image_prompt"] == str(file)
    with Image.open(file) as picture:
        pixels = torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)
    drawn = draw_images(
        load_model(image_run)[0], runs.config(root, image_run).sample, image_prompt=pixels.float() / 127.5 - 1
    )
    assert summary["mean_rgb"] == drawn.mean((1, 3, 4)).tolist()


def test_an_image_prompt_resumes_bit_for_bit(
    image_run: Path, run: Run, image_prompt: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_after(2, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        run("parts", **image_prompt)
    monkeypatch.undo()
    parts = run("parts", **{**image_prompt, "train": image_prompt["train"] | {"resume": True}})
    assert not runs.differing(runs.checkpoint(image_run, 4), runs.checkpoint(parts, 4))


# --- contradictions ---


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            {"lora": {"rank": 2}},
            "lora.rank trains a small part of a finished network; name that network with",
        ),
        ({"image_prompt": {"folder": "x"}}, "image_prompt.folder trains a small part of a finished network"),
        (
            {"image_prompt": {"folder": "x"}, "train": {"init_from": "x"}, "lora": {"rank": 2}},
            "trains the UNet's label_emb and nothing else",
        ),
        (
            {"image_prompt": {"folder": "x"}, "train": {"init_from": "x"}, "text": TOWERS},
            "trains the UNet's label_emb and nothing else",
        ),
        (
            {"lora": {"rank": 2}, "train": {"init_from": "x"}, "text": TOWERS},
            r"got targets \[\] and rates 0.001 and 0.002: give both or neither",
        ),
        (
            {"lora": {"rank": 2, "text_targets": ["*"]}, "train": {"init_from": "x"}},
            r"got targets \['\*'\] and rates 0.0 and 0.0: give both or neither",
        ),
        ({"text": {"learning_rate_l": -1.0}}, "text.learning_rate_l -1.0 must be at least 0"),
        ({"text": {"towers": "tiny_bigg", "learning_rate_l": 1.0}}, "which towers 'tiny_bigg' do not have"),
        (
            {"text": {"vector": "score"}},
            r"vector_dim 1600 do not fit the tiny text towers with text.vector 'score'",
        ),
        ({"text": {"towers": "tiny_bigg"}}, "context_dim 96 and vector_dim 1600 do not fit the tiny_bigg"),
    ],
)
def test_contradicting_settings_are_refused(sections: dict[str, Any], message: str, root: Path) -> None:
    with pytest.raises(InputError, match=message):
        runs.config(root, root, **sections)
