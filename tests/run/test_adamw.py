"""AdamW's groups, rates and state (S §2.5)."""

import math
from typing import Any

import pytest
import torch

from refimpl.errors import InputError
from refimpl.run.adamw import learning_rate, load_optimizer_state, make_adamw, optimizer_state
from refimpl.run.optimizer_config import OptimizerConfig
from tests.tolerances import FLOAT32_ROUNDING, FLOAT64_ROUNDING


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(2, 3, 1)
        self.norm = torch.nn.GroupNorm(1, 3)
        self.frozen = torch.nn.Linear(2, 2).requires_grad_(False)


def network() -> Net:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Net()


def trained(model: Net) -> dict[str, torch.nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def adamw(model: Net, config: OptimizerConfig) -> torch.optim.AdamW:
    return make_adamw([(0.0, trained(model).values())], config)


def step(model: Net, optimizer: torch.optim.AdamW, gradient: float) -> None:
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.full_like(parameter, gradient)
    optimizer.step()


def test_biases_and_norms_are_not_decayed() -> None:
    model = network()
    optimizer = adamw(model, OptimizerConfig(learning_rate=0.1, weight_decay=0.5))
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    names = {name: decay.get(id(p)) for name, p in model.named_parameters()}
    assert names == {
        "conv.weight": 0.5, "conv.bias": 0.0, "norm.weight": 0.0, "norm.bias": 0.0,
        "frozen.weight": None, "frozen.bias": None,
    }  # fmt: skip
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    step(model, optimizer, 0.0)
    for name, p in model.named_parameters():
        wanted = before[name] * (1 - 0.1 * 0.5) if name == "conv.weight" else before[name]
        torch.testing.assert_close(p.detach(), wanted, rtol=FLOAT32_ROUNDING, atol=0)


def test_two_steps_are_kingma_and_bas_with_decoupled_decay() -> None:
    """Loshchilov & Hutter 2019, alg. 2, in float64 beside it."""
    model = network()
    config = OptimizerConfig(learning_rate=0.01, beta1=0.8, beta2=0.95, epsilon=1e-6, weight_decay=0.1)
    optimizer = adamw(model, config)
    theta, m, v = model.conv.weight.detach().double(), 0.0, 0.0
    for k, g in enumerate((0.5, -2.0), start=1):
        m, v = 0.8 * m + 0.2 * g, 0.95 * v + 0.05 * g * g
        theta = theta * (1 - 0.01 * 0.1)
        theta = theta - 0.01 * (m / (1 - 0.8**k)) / (math.sqrt(v / (1 - 0.95**k)) + 1e-6)
        step(model, optimizer, g)
    error = (model.conv.weight.detach().double() - theta).abs().max()
    assert error <= FLOAT32_ROUNDING


@pytest.mark.parametrize("decay", ["constant", "cosine"])
def test_learning_rates(decay: str) -> None:
    config = OptimizerConfig(warmup_steps=4, decay=decay)
    rates = [learning_rate(config, 2.0, step, 10) for step in range(10)]
    for step, rate in enumerate(rates):
        warm = min(1, (step + 1) / 5)
        fall = 1 if decay == "constant" else math.cos(math.pi * step / 20) ** 2
        assert rate == pytest.approx(2 * warm * fall, rel=FLOAT64_ROUNDING)
    assert 0 < rates[0] < rates[3]
    assert learning_rate(OptimizerConfig(decay=decay), 2.0, 0, 10) == 2
    assert learning_rate(OptimizerConfig(decay="cosine"), 2.0, 10, 10) == 0


def test_state_survives_a_round_trip_bit_for_bit() -> None:
    model, config = network(), OptimizerConfig()
    optimizer = adamw(model, config)
    step(model, optimizer, 0.3)
    state = {name: value.clone() for name, value in optimizer_state(trained(model), optimizer).items()}
    assert sorted(state) == sorted(
        f"{name}.{kind}"
        for name in ("conv.weight", "conv.bias", "norm.weight", "norm.bias")
        for kind in ("exp_avg", "exp_avg_sq", "step")
    )
    other = network()
    other.load_state_dict(model.state_dict())
    restored = adamw(other, config)
    load_optimizer_state(trained(other), restored, state, "x")
    for gradient in (-0.1, 7.0):
        step(model, optimizer, gradient)
        step(other, restored, gradient)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    after = optimizer_state(trained(model), optimizer), optimizer_state(trained(other), restored)
    assert all(torch.equal(after[0][name], after[1][name]) for name in after[0])


def test_a_state_that_does_not_fit_is_listed_and_changes_nothing() -> None:
    model = network()
    optimizer = adamw(model, OptimizerConfig())
    step(model, optimizer, 0.3)
    state: dict[str, Any] = optimizer_state(trained(model), optimizer)
    bad = {**state, "x.exp_avg": torch.zeros(2), "norm.bias.exp_avg": torch.zeros(4)}
    del bad["conv.bias.step"]
    with pytest.raises(InputError) as error:
        load_optimizer_state(trained(model), optimizer, bad, "run/optimizer.safetensors")
    message = str(error.value)
    assert message.startswith("run/optimizer.safetensors does not fit this model; 3 of its tensors differ")
    assert "missing   conv.bias.step []" in message
    assert "unknown   x.exp_avg [2]" in message
    assert "misshapen norm.bias.exp_avg: the file has [4], the network needs [3]" in message
    assert all(
        torch.equal(value, state[name]) for name, value in optimizer_state(trained(model), optimizer).items()
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate 0.0 must be positive"),
        ({"learning_rate": math.inf}, "learning_rate inf"),
        ({"warmup_steps": -1}, "warmup_steps -1"),
        ({"decay": "linear"}, "decay 'linear' is unknown; use constant, cosine"),
        ({"beta1": 1.0}, r"beta1 1.0 is outside \[0, 1\)"),
        ({"beta2": math.nan}, "beta2 nan"),
        ({"epsilon": -1e-9}, "epsilon -1e-09"),
        ({"weight_decay": math.nan}, "weight_decay nan"),
        ({"clip_norm": -1.0}, "clip_norm -1.0"),
    ],
)
def test_impossible_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=rf"optimizer\.{message}"):
        OptimizerConfig(**settings)
