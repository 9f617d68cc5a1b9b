"""Clip, AdamW and moving average, each against its definition, with torch's operations and with ours."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from refimpl.run.adamw import OptimizerConfig, make_adamw, optimizer_state
from refimpl.run.ema import ema_decay, ema_start
from refimpl.train.setup.trainable import Averages, Part
from refimpl.train.update import update
from tests.tolerances import FLOAT32_ROUNDING

RATE = 0.1
WAITS = (
    "_local_scalar_dense",
    "equal",
    "is_nonzero",
    "nonzero",
)  # operations whose result the host waits for


@pytest.fixture(params=["reference", "kernel"])
def backend(request: pytest.FixtureRequest) -> str:
    return request.param


def one_weight(gradient: float) -> tuple[nn.Linear, list[Part], torch.optim.AdamW]:
    """A network of weight 1, its gradient, and AdamW without weight decay."""
    network = nn.Linear(1, 1, bias=False)
    nn.init.ones_(network.weight)
    parts = [Part("unet", network, RATE)]
    optimizer = make_adamw(
        [(RATE, parts[0].parameters().values())], OptimizerConfig(learning_rate=RATE, weight_decay=0.0)
    )
    for group in optimizer.param_groups:
        group["lr"] = RATE
    network.weight.grad = torch.full((1, 1), gradient)
    return network, parts, optimizer


def many_weights() -> tuple[nn.Sequential, list[Part], torch.optim.AdamW]:
    """Matrices, vectors and kernels, some channels-last, under AdamW with weight decay."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Conv2d(3, 5, 3), nn.GroupNorm(1, 5), nn.Linear(7, 11))
    network[0].to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    parts = [Part("unet", network, 0.0)]
    config = OptimizerConfig(learning_rate=RATE, weight_decay=0.1)
    return network, parts, make_adamw([(0.0, parts[0].parameters().values())], config)


def set_gradients(network: nn.Module, size: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        values = torch.randn(parameter.shape, generator=generator) * size
        parameter.grad = torch.empty_like(parameter).copy_(values)


def state_of(parts: list[Part], optimizer: torch.optim.AdamW, averages: Averages) -> dict[str, Tensor]:
    """Copies of everything that a step may change."""
    tensors = {**parts[0].state_dict(), **optimizer_state(parts[0].parameters(), optimizer)}
    tensors |= {f"{name}.average": value for name, value in averages.get("unet", {}).items()}
    return {name: tensor.clone() for name, tensor in tensors.items()}


def same_bits(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(
        torch.equal(a[name].view(torch.int32), b[name].view(torch.int32)) for name in a
    )


def test_the_first_step_is_the_rate_whatever_the_gradient(backend: str) -> None:
    """AdamW's first step: m / √v = sign of the gradient (Loshchilov & Hutter 2019, alg. 2)."""
    for gradient in (0.5, -300.0):
        network, parts, optimizer = one_weight(gradient)
        norm = update(optimizer, parts, {}, 1.0, 0.9, 1, backend)
        assert norm.item() == abs(gradient)  # before clipping
        assert network.weight.item() == pytest.approx(1 - math.copysign(RATE, gradient), rel=FLOAT32_ROUNDING)
        assert network.weight.grad is None


@pytest.mark.parametrize(("clip_norm", "kept"), [(1.0, 1.0), (8.0, 4.0), (0.0, 4.0)])
def test_a_gradient_is_clipped_to_the_norm(clip_norm: float, kept: float, backend: str) -> None:
    network, parts, optimizer = one_weight(4.0)
    update(optimizer, parts, {}, clip_norm, 0.9, 1, backend)
    moment = optimizer.state[network.weight]["exp_avg"].item()
    assert moment == pytest.approx(
        (1 - optimizer.param_groups[0]["betas"][0]) * kept, rel=FLOAT32_ROUNDING * 10
    )


@pytest.mark.parametrize("gradient", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("before", [0, 2])
@pytest.mark.parametrize("reduction", ["fast", "ordered"])
def test_a_gradient_that_is_not_finite_changes_nothing(
    gradient: float, before: int, reduction: str, backend: str
) -> None:
    """Bit for bit: weights, moments, step counts and averages; and the steps after it are as if it had not been."""
    ends = []
    for is_interrupted in (True, False):
        network, parts, optimizer = many_weights()
        averages: Averages = {"unet": ema_start(parts[0])}
        for step in range(1, before + 1):
            set_gradients(network, 1.0, step)
            update(optimizer, parts, averages, 1.0, 0.9, step, backend, reduction=reduction)
        if is_interrupted:
            state = state_of(parts, optimizer, averages)
            set_gradients(network, 1.0, 99)
            assert network[2].weight.grad is not None
            network[2].weight.grad[3, 1] = gradient
            norm = update(optimizer, parts, averages, 1.0, 0.9, before + 1, backend, reduction=reduction)
            assert not norm.isfinite()
            after = state_of(parts, optimizer, averages)
            if not before:  # the moments exist from the first step on
                after = {name: value for name, value in after.items() if name in state}
                assert not any(
                    value.any() for value in optimizer_state(parts[0].parameters(), optimizer).values()
                )
            assert same_bits(state, after)
            assert all(parameter.grad is None for parameter in network.parameters())
        set_gradients(network, 1.0, before + 1)
        update(optimizer, parts, averages, 1.0, 0.9, before + 1, backend, reduction=reduction)
        ends.append(state_of(parts, optimizer, averages))
    assert same_bits(*ends)
    assert ends[0]["0.weight.step"] == before + 1


def test_the_average_follows_where_there_is_one(backend: str) -> None:
    network, parts, optimizer = one_weight(1.0)
    averages: Averages = {"unet": ema_start(network)}
    update(optimizer, parts, averages, 1.0, 0.9, 4, backend)
    kept = ema_decay(4, 0.9)
    expected = kept * 1 + (1 - kept) * network.weight.item()
    assert averages["unet"]["weight"].item() == pytest.approx(expected, rel=FLOAT32_ROUNDING)


@pytest.mark.parametrize("size", [0.01, 5.0])
@pytest.mark.parametrize("clip_norm", [0.0, 1.0])
def test_torchs_operations_keep_their_bits(size: float, clip_norm: float) -> None:
    """The reference is clip_grad_norm_, fused AdamW's step and lerp_, one tensor after the other."""
    network, parts, optimizer = many_weights()
    plain, plain_parts, plain_optimizer = many_weights()
    averages, plain_averages = ({"unet": ema_start(p[0])} for p in (parts, plain_parts))
    for step in range(1, 12):  # the share of the average passes 1/2 at step 8
        for each in (network, plain):
            set_gradients(each, size, step)
        update(optimizer, parts, averages, clip_norm, 0.9, step, "reference")
        torch.nn.utils.clip_grad_norm_(plain.parameters(), clip_norm or math.inf)
        plain_optimizer.step()
        for name, value in plain_parts[0].state_dict().items():
            plain_averages["unet"][name].lerp_(value, 1 - ema_decay(step, 0.9))
    assert same_bits(
        state_of(parts, optimizer, averages), state_of(plain_parts, plain_optimizer, plain_averages)
    )


def test_both_backends_take_the_same_steps() -> None:
    ends = []
    for backend, reduction in (("reference", "fast"), ("kernel", "fast"), ("reference", "ordered")):
        network, parts, optimizer = many_weights()
        averages: Averages = {"unet": ema_start(parts[0])}
        for step in range(1, 6):
            set_gradients(network, 3.0, step)
            update(optimizer, parts, averages, 1.0, 0.9, step, backend, reduction=reduction)
        ends.append(state_of(parts, optimizer, averages))
    for end in ends[1:]:
        assert end.keys() == ends[0].keys()
        for name, value in ends[0].items():
            torch.testing.assert_close(end[name], value, rtol=0, atol=FLOAT32_ROUNDING)


def test_in_order_no_bit_depends_on_where_a_tensor_is_cut(backend: str) -> None:
    """As sharding cuts it; 997 elements are no multiple of a vector, and 331 of them neither."""
    ends = []
    for sizes in ([997], [331, 666]):
        network = nn.ParameterList([torch.zeros(size) for size in sizes])
        parts = [Part("unet", network, RATE)]
        averages: Averages = {"unet": ema_start(parts[0])}
        config = OptimizerConfig(learning_rate=RATE, weight_decay=0.1)
        optimizer = make_adamw([(RATE, parts[0].parameters().values())], config)
        for step in range(1, 6):
            values = torch.randn(997, generator=torch.Generator().manual_seed(step)).split(sizes)
            for parameter, value in zip(network, values, strict=True):
                parameter.grad = value.clone()
            update(optimizer, parts, averages, 0.0, 0.9, step, backend, reduction="ordered")
        state = state_of(parts, optimizer, averages)
        kinds = [
            [f"{number}{kind}" for number in range(len(sizes))]
            for kind in ("", ".exp_avg", ".exp_avg_sq", ".average")
        ]
        ends.append({str(n): torch.cat([state[name] for name in names]) for n, names in enumerate(kinds)})
    assert same_bits(*ends)


def test_ranks_with_and_without_averages_keep_the_same_weights(backend: str) -> None:
    ends = []
    for has_averages in (True, False):
        network, parts, optimizer = many_weights()
        averages: Averages = {"unet": ema_start(parts[0])} if has_averages else {}
        for step in range(1, 4):
            set_gradients(network, 2.0, step)
            update(optimizer, parts, averages, 1.0, 0.9, step, backend)
        ends.append(state_of(parts, optimizer, {}))
    assert same_bits(*ends)


def test_frozen_weights_and_their_average_stay(backend: str) -> None:
    network, parts, optimizer = many_weights()
    network[0].requires_grad_(False)
    averages: Averages = {"unet": ema_start(parts[0])}
    before = state_of(parts, optimizer, averages)
    for step in (1, 2):
        for parameter in network[1:].parameters():
            parameter.grad = torch.ones_like(parameter)
        update(optimizer, parts, averages, 1.0, 0.9, step, backend)
    after = state_of(parts, optimizer, averages)
    for name in ("0.weight", "0.bias"):
        assert torch.equal(after[name], before[name])
        assert torch.equal(after[f"{name}.average"], before[f"{name}.average"])
    assert not torch.equal(after["2.weight.average"], before["2.weight.average"])


class Waits(TorchDispatchMode):
    """Collects the operations whose result the host waits for on a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in WAITS:
            self.names.append(name)
        return func(*args, **(kwargs or {}))


def test_nothing_waits_for_the_device(backend: str) -> None:
    network, parts, optimizer = many_weights()
    averages: Averages = {"unet": ema_start(parts[0])}
    for step in (1, 2):
        set_gradients(network, 2.0, step)
        with Waits() as waits:
            update(optimizer, parts, averages, 1.0, 0.9, step, backend)
        assert waits.names == []
