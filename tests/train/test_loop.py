"""The training loop: one step against the formulas, and every option of a run (N §2, §4; S §2.5)."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from refimpl.autoencoder.training import measure_scale_shift
from refimpl.diffusion.min_snr import min_snr_weight
from refimpl.diffusion.philox import Purpose, draw_key, keyed_normal, keyed_uniform, sample_id
from refimpl.diffusion.schedule import sdxl_schedule, zero_terminal_snr
from refimpl.diffusion.v_prediction import add_noise, eps_from_v, target, v_from_output, v_target, x0_from_v
from refimpl.errors import InputError
from refimpl.interop.run.checkpoints import committed_steps
from refimpl.interop.run.run_folder import load_model
from refimpl.latents.scale_shift import SDXL_DEFAULT
from refimpl.model.unet import UNet
from refimpl.text.conditioning import encode_prompts, vector_conditioning
from refimpl.train.loop import train
from refimpl.train.quarantine import Quarantine
from refimpl.train.setup.out_folder import run_folder
from refimpl.train.setup.prepare import Prepared, prepare
from refimpl.train.setup.resumed import settled
from refimpl.train.setup.run_lock import run_lock
from refimpl.train.step_plan import plan_stage, plan_steps
from refimpl.train.watch.control_file import CONTROL, ask
from tests.tolerances import FLOAT32_ROUNDING
from tests.train import runs

Run = Callable[..., Path]


def spied(config: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[list[tuple[torch.Tensor, ...]], Prepared]:
    """Trains with a spy in the UNet's place; returns its calls and what the loop worked with."""
    folder = run_folder(config, "test", runs.ALONE)
    prepared = prepare(config, folder, runs.ALONE)
    calls: list[tuple[torch.Tensor, ...]] = []
    forward = UNet.forward

    def remember(self: UNet, *arguments: torch.Tensor) -> torch.Tensor:
        output = forward(self, *arguments)
        calls.append((*(a.detach() for a in arguments), output.detach()))
        return output

    monkeypatch.setattr(UNet, "forward", remember)
    train(config, folder, prepared, runs.ALONE)
    return calls, prepared


@pytest.mark.parametrize(
    ("parameterisation", "ztsnr", "policy"),
    [("v", True, "snr_plus_one"), ("v", True, "paper"), ("x0", True, "none"), ("eps", False, "paper")],
)
def test_one_step_is_the_papers_formula(
    parameterisation: str,
    ztsnr: bool,
    policy: str,
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Images, noise, timesteps, conditions and the loss composed again from the public functions."""
    offset, seed = 0.05, 7
    config = runs.config(
        root,
        tmp_path / "run",
        diffusion={
            "parameterisation": parameterisation,
            "zero_terminal_snr": ztsnr,
            "loss_weight": policy,
            "offset_noise": offset,
        },
        train={"steps": 1, "seed": seed, "caption_dropout": 0.5},
    )
    calls, prepared = spied(config, monkeypatch)
    assert len(calls) == 1
    x_t, t, context, vector, output = calls[0]

    step = next(plan_steps(config, prepared.stages, 0, runs.ALONE, Quarantine(tmp_path, runs.ALONE)))
    batch, model, data = step.batches[0], prepared.model, prepared.stages[0]
    ids = torch.tensor([sample_id(name) for name in step.names])
    schedule = zero_terminal_snr(sdxl_schedule()) if ztsnr else sdxl_schedule()

    u = keyed_uniform(draw_key(seed, ids, 0, Purpose.TIMESTEP), 1)[:, 0]
    assert torch.equal(t, (u * 1000).long())
    latents = model.scale_shift.standardise(model.vae.encode(batch.images.float() / 127.5 - 1))
    noise_key = draw_key(seed, ids, 0, Purpose.NOISE)
    eps = keyed_normal(noise_key, tuple(latents.shape[1:]), offset)
    alpha, sigma = schedule.alpha[t], schedule.sigma[t]
    assert torch.equal(x_t, add_noise(latents, eps, alpha, sigma))

    rows = [data.index.ids.index(name) for name in step.names]
    captions = [data.index.captions[row] for row in rows]
    wanted, pooled = encode_prompts(captions, model.tokenizer, model.encoder_l, model.encoder_g)
    kept = (keyed_uniform(draw_key(seed, ids, 0, Purpose.CAPTION_DROPOUT), 1) >= 0.5).float()
    assert 0 < kept.sum() < len(kept)
    assert torch.equal(context, wanted * kept[:, :, None])
    assert torch.equal(vector, vector_conditioning(pooled * kept, batch.size_ints))

    snr = (alpha / sigma) ** 2
    weight = torch.ones_like(snr)
    if policy != "none":
        weight = min_snr_weight(snr, 5.0, policy)
    elif parameterisation == "x0":
        weight = sigma**2  # an error of 1 in x0 is one of 1/sigma in v
    v = v_from_output(output, x_t, alpha, sigma, parameterisation)
    squared = (v - v_target(latents, eps, alpha, sigma)).double().square().mean(dim=(1, 2, 3))
    loss = (squared * weight * data.tag_weights[rows]).mean()
    row = next(row for row in runs.rows(tmp_path / "run") if "loss" in row)
    assert row["loss"] == pytest.approx(float(loss), rel=FLOAT32_ROUNDING)


def test_by_pixel_budget_the_loss_is_a_sum_over_the_mean_batch(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches of 2 and 3 images: each image's gradient counts 1 / (mean images of a step), not 1 / its batch."""
    config = runs.config(
        root, tmp_path / "run",
        train={"pixel_budget": 3 * 2048, "steps": 6}, tag_weights={"enabled": False},
        diffusion={"loss_weight": "none"},
    )  # fmt: skip
    calls, prepared = spied(config, monkeypatch)
    steps = list(plan_steps(config, prepared.stages, 0, runs.ALONE, Quarantine(tmp_path, runs.ALONE)))
    assert {len(call[1]) for call in calls} == {2, 3}
    plan = plan_stage(config.data, config.train, prepared.stages[0], 0, runs.ALONE)
    mean_batch = sum(len(plan.batch(step)[1]) for step in range(len(plan))) / len(plan)
    losses = [row["loss"] for row in runs.rows(tmp_path / "run") if "loss" in row]
    for (x_t, t, _, _, output), step, loss in zip(calls, steps, losses, strict=True):
        ids = torch.tensor([sample_id(name) for name in step.names])
        eps = keyed_normal(draw_key(0, ids, 0, Purpose.NOISE), tuple(x_t.shape[1:]))
        latents = prepared.model.scale_shift.standardise(
            prepared.model.vae.encode(step.batches[0].images.float() / 127.5 - 1)
        )
        v = v_target(latents, eps, *zero_terminal_snr(sdxl_schedule()).at(t))
        squared = (output - v).double().square().mean(dim=(1, 2, 3)).sum()
        assert loss == pytest.approx(float(squared) / mean_batch, rel=FLOAT32_ROUNDING)


def test_accumulation_agrees_with_one_batch_to_rounding(run: Run) -> None:
    """1 × 4 images, 2 × 2 and 4 × 1 are the same mean."""
    plain = {"epsilon": 1.0, "learning_rate": 0.1, "weight_decay": 0.0}  # as good as linear in the gradient
    weights = [
        runs.checkpoint(run(f"{n}", train={"batch_size": 4 // n, "accumulate": n}, optimizer=plain), 4)[
            "unet"
        ]
        for n in (1, 2, 4)
    ]
    assert runs.farthest(weights[0], weights[1]) <= FLOAT32_ROUNDING
    assert runs.farthest(weights[0], weights[2]) <= FLOAT32_ROUNDING


def test_targets_are_one_another_seen_through_v() -> None:
    """What eps- and x0-networks are trained on is v's target in other units."""
    x0, eps = torch.randn(2, 3, 4, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    alpha, sigma = zero_terminal_snr(sdxl_schedule()).at(torch.tensor([0, 500, 999]))
    x_t, v = add_noise(x0, eps, alpha, sigma), v_target(x0, eps, alpha, sigma)
    torch.testing.assert_close(eps_from_v(x_t, v, alpha, sigma), target(x0, eps, alpha, sigma, "eps"))
    torch.testing.assert_close(x0_from_v(x_t, v, alpha, sigma), target(x0, eps, alpha, sigma, "x0"))


@pytest.mark.parametrize(("first", "last"), [(0, 0), (999, 999), (0, 199), (800, 999)])
def test_only_timesteps_of_the_range_are_trained(
    first: int, last: int, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    diffusion = {"first_timestep": first, "last_timestep": last}
    config = runs.config(root, tmp_path / "run", diffusion=diffusion)
    calls, _ = spied(config, monkeypatch)
    t = torch.cat([call[1] for call in calls])
    assert first <= int(t.min()) <= int(t.max()) <= last
    assert first == last or len(t.unique()) > 1


@pytest.mark.parametrize(("dropout", "null"), [(0.0, "zeros"), (1.0, "zeros"), (1.0, "empty")])
def test_caption_dropout_never_and_always(
    dropout: float, null: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = runs.config(root, tmp_path / "run", train={"caption_dropout": dropout}, text={"null": null})
    calls, prepared = spied(config, monkeypatch)
    null_context, null_pooled = prepared.model.null_condition()
    assert (null == "zeros") == bool((null_context == 0).all())
    for _, _, context, vector, _ in calls:
        is_null = (context == null_context).flatten(1).all(1) & (vector[:, :64] == null_pooled).all(1)
        assert bool(is_null.all()) == (dropout == 1)
        assert bool(is_null.any()) == (dropout == 1)


def test_draws_of_a_sample_change_with_the_visit(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """18 images in batches of 9: steps 3 and 4 see every image for the second time, with other draws."""
    config = runs.config(root, tmp_path / "run", buckets={"max_side": 32}, train={"batch_size": 9})
    calls, _ = spied(config, monkeypatch)
    first, second = (torch.cat([call[1] for call in calls[k : k + 2]]) for k in (0, 2))
    assert sorted(first.tolist()) != sorted(second.tolist())


def test_uptraining_starts_from_the_average_of_another_run(run: Run) -> None:
    """N §2.1: an eps model on the plain schedule goes on as a v model on the ZTSNR one."""
    eps = run("eps", diffusion={"parameterisation": "eps", "zero_terminal_snr": False})
    ema = runs.checkpoint(eps, 4)["ema"]
    tiny_rate = {"learning_rate": 1e-30}
    v = run("v", train={"init_from": str(eps), "steps": 1}, optimizer=tiny_rate | {"weight_decay": 0.0})
    start = runs.checkpoint(v, 1)["unet"]
    assert sorted(start) == sorted(ema)
    assert all(torch.equal(start[name], ema[name]) for name in ema)
    older = run("older", train={"init_from": str(eps / "checkpoints" / "step-00000002"), "steps": 1})
    assert runs.differing({"x": start}, {"x": runs.checkpoint(older, 1)["unet"]})


@pytest.mark.parametrize("bad", [3, 4])  # the next step is another one's, or there is none
@pytest.mark.parametrize("backend", ["reference", "kernel"])
def test_a_gradient_that_is_not_finite_names_step_and_images(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str, bad: int
) -> None:
    config = runs.config(root, tmp_path / "run", train={"backend": backend, "max_bad_steps": 1})
    folder = run_folder(config, "test", runs.ALONE)
    prepared = prepare(config, folder, runs.ALONE)
    plan = plan_steps(config, prepared.stages, 0, runs.ALONE, Quarantine(tmp_path, runs.ALONE))
    step = list(plan)[bad - 1]
    forward, calls = UNet.forward, []

    def poisoned(self: UNet, *arguments: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return forward(self, *arguments) * (math.nan if len(calls) == bad else 1)

    monkeypatch.setattr(UNet, "forward", poisoned)
    with pytest.raises(InputError) as error:
        train(config, folder, prepared, runs.ALONE)
    assert str(error.value).startswith(f"step {bad}: the loss is not finite")
    assert all(name in str(error.value) for name in step.names)
    assert sorted(runs.checkpoint(folder, 2)) == ["ema", "optimizer", "unet"]  # what was before stays
    assert committed_steps(folder) == [2]


def test_rows_say_what_happened(run: Run, root: Path) -> None:
    folder = run(
        data={"heldout": str(root / "heldout")}, optimizer={"warmup_steps": 3}, train={"log_every": 3}
    )
    rows = runs.rows(folder)
    assert rows[0]["weight_mass"]["from_timestep"] == 950
    assert [row["step"] for row in rows if "heldout_loss" in row] == [0, 2, 4]
    steps = [row for row in rows if "loss" in row]
    assert [row["step"] for row in steps] == [3, 4]  # every third, and the last
    for row in steps:
        assert set(row) == {
            "step", "loss", "learning_rate", "gradient_norm", "epoch", "bucket", "loss_by_timestep", "ema_drift",
        }  # fmt: skip
        assert len(row["loss_by_timestep"]) == 10
        assert 0 < row["ema_drift"] < 1
        assert 0 < row["loss"] < 10
        assert 0 < row["gradient_norm"] < 100
    assert [row["learning_rate"] for row in steps] == pytest.approx([1e-2 * 3 / 4, 1e-2])


def test_the_average_is_of_the_weights_after_each_step(run: Run, root: Path, tmp_path: Path) -> None:
    """ema_k = d_k·ema_(k−1) + (1 − d_k)·w_k with d_k = min(decay, (1 + k) / (10 + k)), from the initial weights."""
    (tmp_path / "start").mkdir()
    config = runs.config(root, tmp_path / "start")
    average = prepare(config, tmp_path / "start", runs.ALONE).model.unet.state_dict()
    folder = run(train={"checkpoint_every": 1, "keep_checkpoints": 0, "ema_decay": 0.3})
    for k in range(1, 5):
        decay, states = min(0.3, (1 + k) / (10 + k)), runs.checkpoint(folder, k)
        average = {
            name: decay * average[name] + (1 - decay) * value for name, value in states["unet"].items()
        }
        assert runs.farthest(average, states["ema"]) <= FLOAT32_ROUNDING


def test_samples_are_drawn_while_training(run: Run) -> None:
    folder = run(train={"sample_every": 3})
    assert sorted(path.name for path in (folder / "samples").iterdir()) == [
        "step-00000003.png",
        "step-00000004.png",
    ]


def test_a_run_does_what_it_is_asked_for_while_it_trains(root: Path, tmp_path: Path) -> None:
    """Samples, then a checkpoint, then a stop with all of it saved; what was asked before it began is dropped."""
    settings = runs.config(root, tmp_path / "run", train={"steps": 9, "checkpoint_every": 9, "log_every": 9})
    settings = settled(settings, runs.ALONE)
    folder = run_folder(settings, "test", runs.ALONE)
    asked = iter(["", "sample", "", "checkpoint", "", "stop"])

    def each_step() -> bool:
        action = next(asked, "")
        if action:
            ask(folder / CONTROL, action)
        return False

    ask(folder / CONTROL, "stop")
    with run_lock(folder, runs.ALONE):
        assert not train(settings, folder, prepare(settings, folder, runs.ALONE), runs.ALONE, each_step)
    assert [path.name for path in (folder / "samples").iterdir()] == ["step-00000004.png"]
    assert committed_steps(folder) == [6, 8]
    assert not (folder / CONTROL).exists()


def test_latents_are_normalised_by_statistics_taken_before_the_first_step(root: Path, tmp_path: Path) -> None:
    """Measured over the stage's images, then the same in training and in what the run keeps of it."""
    config = runs.config(root, tmp_path / "run", latents={"scale_shift": "measure"})
    folder = run_folder(config, "test", runs.ALONE)
    prepared = prepare(config, folder, runs.ALONE)
    model, data = prepared.model, prepared.stages[0]
    measured, _ = measure_scale_shift(model.vae, data.index, data.buckets, data.bucket_of, runs.ALONE.device)
    before = model.scale_shift
    assert before == measured != SDXL_DEFAULT
    train(config, folder, prepared, runs.ALONE)
    assert model.scale_shift == before
    assert load_model(folder)[0].scale_shift == before


def test_tag_weights_scale_an_images_gradient(run: Run, trained: Path) -> None:
    plain = run(tag_weights={"enabled": False})
    assert runs.differing(runs.checkpoint(trained, 4), runs.checkpoint(plain, 4))


def test_bfloat16_trains(run: Run, trained: Path) -> None:
    rounded = runs.checkpoint(run(train={"precision": "bf16"}), 4)["unet"]
    assert all(value.isfinite().all() for value in rounded.values())
    assert all(value.dtype == torch.float32 for value in rounded.values())
    assert runs.differing({"x": runs.checkpoint(trained, 4)["unet"]}, {"x": rounded})


@pytest.mark.parametrize("how", ["cheap", "full"])
def test_activation_checkpointing_changes_no_bit(run: Run, trained: Path, how: str) -> None:
    recomputed = run(train={"activation_checkpointing": how})
    assert not runs.differing(runs.checkpoint(trained, 4), runs.checkpoint(recomputed, 4))
