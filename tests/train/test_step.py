"""The step against its equations, written out once more, and what may not enter it."""

import ast
import inspect
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from refimpl.diffusion.philox import Purpose, draw_key, keyed_normal
from refimpl.latents.pixels import from_pixels
from refimpl.model.pipeline import Model
from refimpl.ops import load_ops
from refimpl.train import loop, step
from refimpl.train.setup.prepare import prepare
from refimpl.train.step import Conditions, denoising_loss, encode_latents, make_conditions, step_draws
from tests.tolerances import FLOAT32_NEAR_PURE_NOISE, FLOAT32_ROUNDING, STANDARD_ERRORS
from tests.train import runs

IDS = torch.arange(6) * 7919 + 1
T = torch.tensor([0, 1, 200, 500, 998, 999])


@pytest.fixture(scope="module")
def prepared(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("step")
    return prepare(runs.config(root, folder), folder, runs.ALONE)


def latents() -> Tensor:
    return torch.randn(6, 4, 4, 6, generator=torch.Generator().manual_seed(0))


def of_one_image(model: Model) -> Conditions:
    return Conditions(torch.zeros(6, 77, 96), torch.zeros(6, 1600))


@pytest.mark.parametrize("offset", [0.0, 0.1])
@pytest.mark.parametrize("parameterisation", ["v", "eps", "x0"])
def test_the_loss_is_the_weighted_square_of_what_v_is_missed_by(
    prepared: Any, parameterisation: str, offset: float
) -> None:
    """v, the noised latents and the weights from their definitions, for a network that returns a constant."""
    plain = parameterisation != "v"  # neither eps nor x0 is defined at both ends of a zero-SNR schedule
    diffusion = replace(
        prepared.model.diffusion, parameterisation=parameterisation, zero_terminal_snr=not plain
    )
    model = replace(prepared.model, diffusion=diffusion)
    x0, key, weight = latents(), draw_key(3, IDS, 2, Purpose.NOISE), torch.linspace(0.5, 3, 6)
    alpha, sigma = (c.view(-1, 1, 1, 1).double() for c in model.schedule.at(T))
    eps = keyed_normal(key, (4, 4, 6), offset).double()
    seen: list[Tensor] = []

    def network(x_t: Tensor, t: Tensor, context: Tensor, vector: Tensor) -> Tensor:
        seen.extend((x_t, t))
        return torch.full_like(x_t, 0.25)

    loss = denoising_loss(
        network, model, of_one_image(model), x0, key, T, weight, offset, load_ops("reference")
    )
    x_t, v = alpha * x0 + sigma * eps, alpha * eps - sigma * x0
    quarter = torch.full_like(v, 0.25)
    guess = {
        "v": quarter,
        "eps": (quarter - sigma * x_t) / alpha,
        "x0": (alpha * x_t - quarter) / sigma,
    }[parameterisation]
    expected = weight * (guess - v).square().mean((1, 2, 3))
    assert (seen[0] - x_t).abs().max() <= FLOAT32_ROUNDING * x_t.abs().max()
    assert torch.equal(seen[1], T)
    assert loss.shape == (6,)
    assert loss.dtype == torch.float32
    assert loss.tolist() == pytest.approx(
        expected.tolist(), rel=FLOAT32_NEAR_PURE_NOISE if plain else FLOAT32_ROUNDING
    )


@pytest.mark.parametrize("parameterisation", ["v", "eps", "x0"])
def test_given_its_levels_the_loss_waits_for_nothing(prepared: Any, parameterisation: str) -> None:
    """On the meta device there is nothing to wait for: whoever asks for a value raises. Elsewhere no bit differs."""
    diffusion = replace(prepared.model.diffusion, parameterisation=parameterisation, zero_terminal_snr=False)
    model, ops = replace(prepared.model, diffusion=diffusion), load_ops("reference")
    key, weight = draw_key(3, IDS, 2, Purpose.NOISE), torch.linspace(0.5, 3, 6)

    def loss(device: str, levels: tuple[Tensor, Tensor] | None) -> Tensor:
        conditions = Conditions(*(x.to(device) for x in (torch.zeros(6, 77, 96), torch.zeros(6, 1600))))
        inputs = [x.to(device) for x in (latents(), key, T, weight)]
        return denoising_loss(lambda x, *_: x, model, conditions, *inputs, 0.1, ops, levels=levels)  # pyright: ignore

    alpha, sigma = model.schedule.at(T)
    assert loss("meta", (alpha.to("meta"), sigma.to("meta"))).device.type == "meta"
    assert torch.equal(loss("cpu", (alpha, sigma)), loss("cpu", None))


def test_a_perfect_network_loses_nothing(prepared: Any) -> None:
    model, x0, key = prepared.model, latents(), draw_key(3, IDS, 2, Purpose.NOISE)
    alpha, sigma = (c.view(-1, 1, 1, 1) for c in model.schedule.at(T))
    v = (alpha * keyed_normal(key, (4, 4, 6)) - sigma * x0).float()
    loss = denoising_loss(
        lambda *_: v, model, of_one_image(model), x0, key, T, torch.ones(6), 0.0, load_ops("reference")
    )
    assert loss.max() <= FLOAT32_ROUNDING**2


def test_draws_belong_to_the_image_and_its_visit() -> None:
    first = step_draws(5, IDS, 1, (100, 199), 0.5)
    order = torch.tensor([3, 0, 5])
    again = step_draws(5, IDS[order], 1, (100, 199), 0.5)
    for name in ("t", "is_dropped", "noise", "lora_dropout"):
        assert torch.equal(getattr(first, name)[order], getattr(again, name)), name
    many = torch.arange(4000)
    drawn = step_draws(5, many, 1, (100, 199), 0.25)
    assert (int(drawn.t.min()), int(drawn.t.max())) == (100, 199)
    standard_error = (0.25 * 0.75 / 4000) ** 0.5
    assert abs(float(drawn.is_dropped.float().mean()) - 0.25) < STANDARD_ERRORS * standard_error
    later = step_draws(5, many, 2, (100, 199), 0.25)
    assert not torch.equal(drawn.t, later.t)
    assert not (drawn.noise == later.noise).all(1).any()
    assert not (drawn.noise == drawn.lora_dropout).all(1).any()


def test_one_timestep_is_drawn_always() -> None:
    assert step_draws(0, IDS, 0, (999, 999), 0.0).t.tolist() == [999] * 6


def test_latents_come_from_pixels_or_from_the_cache(prepared: Any) -> None:
    model = prepared.model
    pixels = torch.randint(0, 256, (2, 3, 32, 48), generator=torch.Generator().manual_seed(1)).byte()
    encoded = model.vae.encode(from_pixels(pixels))
    from_images = encode_latents(model, pixels)
    assert torch.equal(from_images, model.scale_shift.standardise(encoded))
    nothing = torch.empty(2, 3, 0, 0, dtype=torch.uint8)
    assert torch.equal(encode_latents(model, nothing, encoded), from_images)
    assert encode_latents(model, nothing, encoded.bfloat16()).dtype == torch.float32


def test_a_dropped_caption_is_the_null_condition(prepared: Any) -> None:
    model, states = prepared.model, prepared.text_states
    sizes, pixels = torch.tensor([[32, 48, 0, 0, 32, 48]] * 2), torch.empty(2, 3, 0, 0, dtype=torch.uint8)
    captions, dropped = ["red circle", "dark"], torch.tensor([True, False])
    kept = make_conditions(model, states, captions, pixels, sizes)
    mixed = make_conditions(model, states, captions, pixels, sizes, is_dropped=dropped)
    context, pooled = states.null(model.text.null)
    assert torch.equal(mixed.context[0], context[0])
    assert torch.equal(mixed.vector[0, : pooled.shape[1]], pooled[0])
    assert torch.equal(mixed.vector[0, pooled.shape[1] :], kept.vector[0, pooled.shape[1] :])
    assert torch.equal(mixed.context[1], kept.context[1])
    assert torch.equal(mixed.vector[1], kept.vector[1])
    assert torch.equal(kept.repeated(3).context, kept.context[[0, 0, 0, 1, 1, 1]])


def test_the_step_knows_no_files_no_data_and_no_settings() -> None:
    tree = ast.parse(inspect.getsource(step))
    rooms = {n.module.split(".")[1] for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module
             and n.module.startswith("refimpl.")}  # fmt: skip
    assert rooms == {"diffusion", "latents", "model", "ops", "text"}


def test_the_loop_is_short_and_asks_for_no_kind() -> None:
    source = inspect.getsource(loop.train)
    assert len(source.splitlines()) <= 70
    assert not any(kind in source for kind in ("ordered", "fast", "reduction ==", "precision ==", "bf16"))


def test_the_forward_pass_stands_nowhere_else(root: Path) -> None:
    """Only the step adds noise and takes the loss; the kernels and their reference define them."""
    package = Path(inspect.getfile(step)).parents[1]
    calls = [
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if "ops.keyed_v_loss(" in path.read_text(encoding="utf-8")
    ]
    assert calls == ["train/step.py"]
