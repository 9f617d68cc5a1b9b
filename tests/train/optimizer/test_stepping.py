"""A step taken in buckets, in the backward pass or on bfloat16 weights is the optimizer's own step."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from refimpl.errors import InputError
from refimpl.interop.run.checkpoints import committed_steps
from refimpl.ops.stochastic_rounding import round_stochastically, rounding_key
from refimpl.run.optimizer_config import OptimizerConfig
from refimpl.train import loop
from refimpl.train.optimizer.kinds import make_optimizer
from refimpl.train.optimizer.stepping import Stepping
from refimpl.train.update import is_not_finite
from tests.train import runs
from tests.train.optimizer.test_resumed import BF16, IN_BACKWARD, UNCLIPPED, needs_library

Run = Callable[..., Path]

KINDS = ("adamw", "adamw8bit", "adafactor", "prodigy")
SEED = 5


def network() -> nn.Sequential:
    """Matrices, vectors and kernels, one large enough for moments of 8 bits, one in channels-last order."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 64, 3), nn.GroupNorm(1, 64))
    made[1].to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    return made


def loss(made: nn.Sequential, seed: int) -> Tensor:
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    with torch.autocast("cpu", torch.bfloat16, enabled=made[0].weight.dtype == torch.bfloat16):
        return made(x).float().square().mean()


def optimizer_of(kind: str, made: nn.Module) -> torch.optim.Optimizer:
    config = OptimizerConfig(kind=kind, learning_rate=1.0 if kind == "prodigy" else 1e-2)
    return make_optimizer([(0.0, made.parameters())], config)


def stepping_of(kind: str, made: nn.Module, optimizer: torch.optim.Optimizer) -> Stepping:
    names = {parameter: name for name, parameter in made.named_parameters()}
    return Stepping(optimizer, names, SEED, 0, kind == "prodigy", kind == "adamw8bit")


def trained(kind: str, in_backward: bool = False, steps: int = 3) -> dict[str, Tensor]:
    made = network()
    optimizer = optimizer_of(kind, made)
    stepping = stepping_of(kind, made, optimizer)
    if in_backward:
        stepping.step_in_backward()
    for step in range(steps):
        loss(made, step).backward()
        stepping.finish(list(made.parameters()), 0.0, is_not_finite)
        assert all(parameter.grad is None for parameter in made.parameters())
    return {name: parameter.detach().clone() for name, parameter in made.named_parameters()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_in_buckets_is_the_optimizer_s_own(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    needs_library(kind)
    made = network()
    optimizer = optimizer_of(kind, made)
    for step in range(3):
        loss(made, step).backward()
        with torch.compiler.set_stance("force_eager"):
            optimizer.step()
        optimizer.zero_grad()
    monkeypatch.setattr("refimpl.train.optimizer.stepping.BUCKET", 64)
    assert same(trained(kind), {name: p.detach() for name, p in made.named_parameters()})


@pytest.mark.parametrize("kind", ["adamw", "adamw8bit", "adafactor"])
def test_the_backward_pass_takes_the_same_step(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    needs_library(kind)
    after = trained(kind)
    for bucket in (1, 2**26):
        monkeypatch.setattr("refimpl.train.optimizer.stepping.BUCKET", bucket)
        assert same(trained(kind, in_backward=True), after)


def test_in_the_backward_pass_there_is_never_more_than_a_bucket_of_gradients(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("refimpl.train.optimizer.stepping.BUCKET", 100)
    made = network()
    parameters, most = list(made.parameters()), []
    stepping = stepping_of("adafactor", made, optimizer_of("adafactor", made))
    stepping.step_in_backward()
    for parameter in parameters:
        parameter.register_post_accumulate_grad_hook(
            lambda _: most.append(sum(p.grad.nbytes for p in parameters if p.grad is not None))
        )
    loss(made, 0).backward()
    assert most
    assert max(most) < 100


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_on_bfloat16_is_a_float32_step_rounded_with_its_key(kind: str) -> None:
    needs_library(kind)
    low = network()
    for parameter in low.parameters():
        if parameter.ndim >= 2:
            parameter.data = parameter.data.bfloat16()
    wide = network()
    for parameter, value in zip(wide.parameters(), low.parameters(), strict=True):
        parameter.data.copy_(value.data)
    optimizer, reference = optimizer_of(kind, low), optimizer_of(kind, wide)
    stepping = stepping_of(kind, low, optimizer)
    places = [parameter.data_ptr() for parameter in low.parameters()]
    loss(low, 0).backward()
    for parameter, other in zip(wide.parameters(), low.parameters(), strict=True):
        assert other.grad is not None
        parameter.grad = other.grad.to(torch.float32, copy=True)
    stepping.finish(list(low.parameters()), 0.0, is_not_finite)
    with torch.compiler.set_stance("force_eager"):
        reference.step()
    for (name, rounded), exact in zip(low.named_parameters(), wide.parameters(), strict=True):
        wanted = exact.detach()
        if exact.ndim >= 2:
            wanted = round_stochastically(wanted, rounding_key(SEED, 1, name))
        assert torch.equal(rounded.detach(), wanted)
    assert places == [parameter.data_ptr() for parameter in low.parameters()]
    states = [value for state in optimizer.state.values() for value in state.values()]
    assert all(value.dtype in (torch.float32, torch.uint8) for value in states)


def test_a_step_on_bfloat16_leaves_the_weights_in_autograd_s_graph_where_they_are() -> None:
    """DDP sums the gradients by hooks there, which a weight with a new place would have lost."""

    def place(parameter: Tensor) -> object:
        view = parameter.view_as(parameter).grad_fn
        assert view is not None
        return view.next_functions[0][0]

    made = network()
    for parameter in made.parameters():
        parameter.data = parameter.data.bfloat16()
    before = [place(parameter) for parameter in made.parameters()]
    stepping = stepping_of("adafactor", made, optimizer_of("adafactor", made))
    loss(made, 0).backward()
    stepping.finish(list(made.parameters()), 0.0, is_not_finite)
    assert all(place(parameter) is kept for parameter, kept in zip(made.parameters(), before, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_that_is_skipped_changes_nothing(kind: str) -> None:
    needs_library(kind)
    made = network()
    optimizer = optimizer_of(kind, made)
    stepping = stepping_of(kind, made, optimizer)
    before = [parameter.detach().clone() for parameter in made.parameters()]
    loss(made, 0).backward()
    first = next(made.parameters())
    assert first.grad is not None
    first.grad[0] = torch.nan
    _, skipped = stepping.finish(list(made.parameters()), 1.0, is_not_finite)
    assert skipped.item() == 1
    assert all(torch.equal(a, b) for a, b in zip(before, made.parameters(), strict=True))
    assert all(float(state["step"]) == 0 for state in optimizer.state.values() if state)
    assert all(parameter.grad is None for parameter in made.parameters())


def test_clipping_scales_the_gradient_down_to_the_norm() -> None:
    """SGD, whose step shows the gradient."""
    made = network()
    stepping = stepping_of("adamw", made, torch.optim.SGD(made.parameters(), lr=1.0))
    before = [parameter.detach().clone() for parameter in made.parameters()]
    loss(made, 0).backward()
    norm, _ = stepping.finish(list(made.parameters()), 1e-3, is_not_finite)
    steps = [a - b.detach() for a, b in zip(before, made.parameters(), strict=True)]
    taken = torch.linalg.vector_norm(torch.cat([step.flatten() for step in steps]))
    assert float(norm) > 1e-3
    assert float(taken) == pytest.approx(1e-3, rel=1e-2)


def test_a_run_that_steps_in_the_backward_pass_is_the_run_that_does_not(run: Run) -> None:
    """With blocks computed again on the way too, from weights that were not stepped yet."""
    plain = run("plain", optimizer=UNCLIPPED)
    early = run("early", optimizer=UNCLIPPED, train={**IN_BACKWARD, "activation_checkpointing": "full"})
    assert not runs.differing(runs.checkpoint(plain, 4), runs.checkpoint(early, 4))
    assert runs.rows(plain) == runs.rows(early)


def nothing_at_step(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss of that step is not a number."""
    compute, calls = loop.denoising_loss, []

    def losses(*arguments: Any) -> Tensor:
        calls.append(1)
        value = compute(*arguments)
        return value * torch.nan if len(calls) == step else value

    monkeypatch.setattr(loop, "denoising_loss", losses)


def test_a_bad_step_in_the_backward_pass_ends_the_run_and_is_never_saved(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {
        "optimizer": {"kind": "adafactor", **UNCLIPPED},
        "train": {**IN_BACKWARD, "checkpoint_every": 1},
    }
    whole = run("whole", **settings)
    nothing_at_step(3, monkeypatch)
    with pytest.raises(
        InputError, match=r"step 3: .*part of it was taken in the backward pass, so go on from the"
    ):
        run("bad", **settings)
    assert committed_steps(tmp_path / "bad") == [1, 2]
    monkeypatch.undo()
    again = run("bad", **{**settings, "train": {**settings["train"], "resume": True}})
    assert not runs.differing(runs.checkpoint(whole, 4), runs.checkpoint(again, 4))


def test_a_bad_step_on_bfloat16_is_left_out(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing_at_step(3, monkeypatch)
    folder = run(train={**BF16, "checkpoint_every": 1, "keep_checkpoints": 0})
    before, after = runs.checkpoint(folder, 2), runs.checkpoint(folder, 3)
    assert not runs.differing(before, after)
    assert runs.differing(after, runs.checkpoint(folder, 4))
