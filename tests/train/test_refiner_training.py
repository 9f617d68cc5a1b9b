"""A refiner: trained on the lowest noise levels with aesthetic scores, applied in both ways (S §2.5)."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from refimpl.commands.sample import sample_command
from refimpl.errors import InputError
from refimpl.interop import single_file
from refimpl.interop.run import as_checkpoint as run_checkpoint
from refimpl.interop.run.run_folder import load_model
from refimpl.model.pipeline import Model
from refimpl.model.unet import UNetConfig
from refimpl.run.presets import load_config
from refimpl.run.stage import read_stage
from refimpl.sample.config import SampleConfig
from refimpl.sample.images.draw import draw_images
from refimpl.sample.images.refiner import Refiner, check_same_latents, finished_by_refiner
from refimpl.text.conditioning import null_condition, size_embedding
from tests.train import runs
from tests.train.test_loop import spied

Run = Callable[..., Path]

SECTIONS: dict[str, dict[str, Any]] = {
    "text": {"towers": "tiny_bigg", "vector": "score", "null": "empty"},
    "unet": {"context_dim": 64, "vector_dim": 64 + 5 * 256},
    "diffusion": {
        "parameterisation": "eps", "zero_terminal_snr": False, "last_timestep": 199, "loss_weight": "none",
    },
}  # fmt: skip
CONFIG = SampleConfig(("red circle", "dark"), seeds=2, steps=20, width=32, height=32, guidance=2.0)


@pytest.fixture(scope="module")
def refiner_run(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A refiner trained for 20 steps."""
    train = {"steps": 20, "checkpoint_every": 20, "validate_every": 20}
    data = {"heldout": str(root / "heldout")}
    return runs.go(runs.config(root, tmp_path_factory.mktemp("refiner"), **SECTIONS, train=train, data=data))


@pytest.fixture(scope="module")
def models(trained: Path, refiner_run: Path) -> tuple[Model, Model]:
    """Base and refiner, the networks turned up: a few steps from zero they would draw noise alone."""
    base, refiner = load_model(trained)[0], load_model(refiner_run)[0]
    for model in (base, refiner):
        with torch.no_grad():
            model.unet.out[2].weight.normal_(0, 0.1, generator=torch.Generator().manual_seed(0))
    return base, refiner


def test_the_preset_is_the_papers_refiner() -> None:
    config = load_config("sdxl_refiner")
    assert config.unet == UNetConfig.refiner()
    assert (config.text.context_dim, config.text.vector_dim) == (1280, 2560)
    assert (config.diffusion.first_timestep, config.diffusion.last_timestep) == (0, 199)
    assert (config.sample.aesthetic_score, config.sample.negative_aesthetic_score) == (6.0, 2.5)


def test_twenty_steps_lower_the_loss(refiner_run: Path) -> None:
    measured = [row["heldout_loss"] for row in runs.rows(refiner_run) if "heldout_loss" in row]
    assert measured[-1] < measured[0]
    assert not (refiner_run / "components" / "text_encoder").exists()


def test_scores_and_four_sizes_are_what_the_network_sees(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Vector: pooled, then h, w, top, left and the score of each image; words of the caption no longer hold it."""
    scored = tmp_path / "train"
    runs.write_images(scored, 18)
    (scored / "003.txt").write_text("red, score:9.5, dark", encoding="utf-8")
    sections = SECTIONS | {"train": {"steps": 4, "caption_dropout": 0.0}, "data": {"folder": str(scored)}}
    config = runs.config(root, tmp_path / "run", **sections)
    data = read_stage(config, config.all_stages()[0])
    assert data.index.captions[3] == "red, dark"
    assert data.index.tags[3] == {"general": ("red", "dark")}
    assert data.scores is not None
    assert data.scores.tolist() == [6.0] * 3 + [9.5] + [6.0] * 14
    calls, prepared = spied(config, monkeypatch)
    assert max(int(call[1].max()) for call in calls) <= 199
    context, vector = torch.cat([call[2] for call in calls]), torch.cat([call[3] for call in calls])
    assert context.shape[1:] == (77, 64)
    score = vector[:, 64 + 4 * 256 :]
    known = size_embedding(torch.tensor([[6.0], [9.5]]))
    nine, six = ((score == row).all(1) for row in (known[1], known[0]))
    assert bool((nine | six).all())
    assert 0 < int(nine.sum()) < len(nine)
    assert prepared.model.encoder_l is None


@pytest.mark.parametrize(("written", "problem"), [("high", "is not a number"), ("nan", "is not a number")])
def test_a_score_that_is_no_number_names_the_image(
    written: str, problem: str, root: Path, tmp_path: Path
) -> None:
    runs.write_images(tmp_path / "train", 18)
    (tmp_path / "train" / "007.txt").write_text(f"red, score:{written}", encoding="utf-8")
    config = runs.config(root, tmp_path / "run", **SECTIONS, data={"folder": str(tmp_path / "train")})
    with pytest.raises(InputError, match=f"image '007': the aesthetic score score:{written} {problem}"):
        read_stage(config, config.all_stages()[0])
    (tmp_path / "train" / "007.txt").write_text("score:1, score:2", encoding="utf-8")
    with pytest.raises(InputError, match="image '007' has 2 tags of class 'score'"):
        read_stage(config, config.all_stages()[0])


def test_a_refiner_starts_from_its_single_file(run: Run, refiner_run: Path, tmp_path: Path) -> None:
    """One tower, under the refiner's keys, and the autoencoder come from the file; the tokenizer lies beside it."""
    found, model = run_checkpoint.load(refiner_run)[0], load_model(refiner_run)[0]
    single_file.save(found, tmp_path / "refiner.safetensors")
    sections = SECTIONS | {"latents": {"weights": "", "scale_shift": "checkpoint"}}
    still = {"learning_rate": 1e-30, "weight_decay": 0.0}
    train = {"init_from": str(tmp_path / "refiner.safetensors"), "steps": 1}
    started, _, _ = load_model(run(**sections, optimizer=still, train=train), "unet")
    assert started.encoder_l is None
    for ours, theirs in (
        (started.unet, model.unet),
        (started.vae, model.vae),
        (started.encoder_g, model.encoder_g),
    ):
        assert not runs.differing({"x": ours.state_dict()}, {"x": theirs.state_dict()})


# --- sampling ---


def test_a_refiner_does_not_begin_from_pure_noise(refiner_run: Path, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"is a refiner, trained up to t = 199: it cannot begin from pure noise"
    ):
        sample_command([str(refiner_run), "--out", str(tmp_path / "a")])
    sample_command(
        [str(refiner_run), "--out", str(tmp_path / "a"), "--start-sigma", "0.9", "--device", "cpu"]
    )
    assert (tmp_path / "a" / "grid.png").is_file()


def test_a_refiner_changes_the_images_in_both_ways(models: tuple[Model, Model]) -> None:
    base, refiner = models
    drawn = [
        draw_images(base, CONFIG, refiner=None if mode is None else Refiner(refiner, mode))
        for mode in (None, "sdedit", "last")
    ]
    assert all(image.isfinite().all() for image in drawn)
    assert not any(torch.equal(drawn[i], drawn[j]) for i, j in ((0, 1), (0, 2), (1, 2)))
    again = draw_images(base, CONFIG, refiner=Refiner(refiner, "sdedit"))
    assert torch.equal(again, drawn[1])


@pytest.mark.parametrize("mode", ["sdedit", "last"])
def test_a_refiner_is_asked_for_its_own_timesteps_alone(mode: str, models: tuple[Model, Model]) -> None:
    base, refiner = models
    seen: dict[str, list[float]] = {"base": [], "refiner": []}
    handles = [
        model.unet.register_forward_pre_hook(lambda _, a, name=name: seen[name].append(float(a[1][0])))
        for name, model in (("base", base), ("refiner", refiner))
    ]
    draw_images(base, replace(CONFIG, guidance=1.0), refiner=Refiner(refiner, mode))
    for handle in handles:
        handle.remove()
    assert 0 < max(seen["refiner"]) <= 199
    assert len(seen["base"]) == (20 if mode == "sdedit" else 20 - len(seen["refiner"]))
    if mode == "sdedit":
        assert max(seen["refiner"]) == pytest.approx(199)


def test_a_share_says_where_it_starts(models: tuple[Model, Model]) -> None:
    _, refiner = models
    assert Refiner(refiner).timestep == 199
    assert Refiner(refiner, share=0.2).timestep == 199
    assert Refiner(refiner, share=0.1).timestep == 99
    sigma = refiner.diffusion.schedule().sigma_edm
    assert Refiner(refiner, share=0.1).sigma_edm == float(sigma[99])
    for share in (0.3, 0.0, -1.0, float("nan")):
        with pytest.raises(InputError, match=r"trained up to t = 199; give above 0\.001 and up to 0\.2"):
            Refiner(refiner, share=share)
    with pytest.raises(InputError, match="refiner mode 'first' is unknown; use sdedit, last"):
        Refiner(refiner, "first")


def test_networks_change_places_at_the_level() -> None:
    names = finished_by_refiner(lambda x, _: x + 1, lambda x, _: x - 1, 2.0)
    x = torch.zeros(1)
    levels = (torch.tensor(value, dtype=torch.float64) for value in (float("inf"), 2.5, 2.0, 1.0))
    assert [float(names(x, level)) for level in levels] == [1, 1, -1, -1]


def test_the_scores_asked_for_reach_the_network(models: tuple[Model, Model]) -> None:
    base, refiner = models
    seen = []
    handle = refiner.unet.register_forward_pre_hook(lambda _, a: seen.append((a[2][0], a[3][0])))
    draw_images(base, replace(CONFIG, aesthetic_score=7.0), refiner=Refiner(refiner))
    handle.remove()
    wanted = size_embedding(torch.tensor([[32.0, 32.0, 0.0, 0.0, 7.0], [32.0, 32.0, 0.0, 0.0, 2.5]]))
    for (_, vector), sizes in zip(seen[:2], wanted, strict=True):
        assert torch.equal(vector[64:], sizes)
    null_context, null_pooled = null_condition("empty", refiner.tokenizer, None, refiner.encoder_g)
    assert torch.equal(seen[1][0], null_context[0])
    assert torch.equal(seen[1][1][:64], null_pooled[0])


def test_other_latents_are_refused(models: tuple[Model, Model]) -> None:
    base, refiner = models
    other = replace(refiner, scale_shift=replace(base.scale_shift, mean=(1.0, 0.0, 0.0, 0.0)))
    with pytest.raises(InputError, match="works in the latents of its base"):
        check_same_latents(base, other)
    with pytest.raises(InputError, match="works in the latents of its base"):
        draw_images(base, CONFIG, refiner=Refiner(other))
