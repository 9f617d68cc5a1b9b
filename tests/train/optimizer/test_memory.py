"""The planned memory of every optimizer's state against the bytes of the tensors that it then holds."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from refimpl.model.unet import UNet
from refimpl.run.config import Config
from refimpl.run.optimizer_config import KINDS, OptimizerConfig
from refimpl.train.budget.plan import largest_work, plan_step
from refimpl.train.optimizer.kinds import make_optimizer
from refimpl.train.optimizer.memory import step_bytes, waiting_bytes
from refimpl.train.optimizer.stepping import Stepping
from refimpl.train.placement import keep_in_bfloat16
from refimpl.train.sharding.flat import BUCKET
from refimpl.train.update import is_not_finite
from tests.tolerances import PLANNED_STATE
from tests.train.budget.networks import counted, small
from tests.train.optimizer.test_resumed import needs_library


def settings(kind: str, **train: str) -> Config:
    """The tiny preset under another optimizer."""
    config = small(**train)
    rate = 1.0 if kind == "prodigy" else 1e-3
    return replace(config, optimizer=OptimizerConfig(kind=kind, learning_rate=rate))


def tensors(value: object) -> Iterator[Tensor]:
    """Every tensor with memory of its own in an optimizer's state, those within torchao's tensors too."""
    if isinstance(value, dict):
        for entry in value.values():
            yield from tensors(entry)
    elif hasattr(value, "__tensor_flatten__"):
        yield from (getattr(value, name) for name in value.__tensor_flatten__()[0])
    elif isinstance(value, Tensor):
        yield value


@pytest.mark.parametrize(
    ("kind", "weight_dtype"), [*((kind, "fp32") for kind in KINDS), ("adafactor", "bf16")]
)
def test_the_plan_is_what_the_optimizer_holds_after_a_step(kind: str, weight_dtype: str) -> None:
    needs_library(kind)
    config = settings(
        kind, weight_dtype=weight_dtype, **({"precision": "bf16"} if weight_dtype == "bf16" else {})
    )
    unet = UNet(config.unet)
    if weight_dtype == "bf16":
        keep_in_bfloat16(unet)
    parameters = dict(unet.named_parameters())
    optimizer = make_optimizer([(0.0, parameters.values())], config.optimizer)
    names = {parameter: name for name, parameter in parameters.items()}
    stepping = Stepping(optimizer, names, 0, 0, kind == "prodigy", kind == "adamw8bit")
    for parameter in parameters.values():
        parameter.grad = torch.ones_like(parameter)
    stepping.finish(list(parameters.values()), 0.0, is_not_finite)
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for tensor in tensors(optimizer.state)
        if tensor.ndim > 0
    }
    plan = plan_step(counted(config), largest_work(config))
    planned = next(size for name, size in plan.held.items() if name.startswith(("moments of", "state of")))
    assert planned == pytest.approx(sum(storages.values()), rel=PLANNED_STATE)
    assert plan.held["weights of the UNet"] == sum(p.nbytes for p in (*unet.parameters(), *unet.buffers()))


def test_how_much_each_kind_holds() -> None:
    """Prodigy the most, and a moment of 8 bits about a quarter."""
    held = {kind: counted(settings(kind)).state for kind in KINDS}
    weights = counted(settings("adamw")).trained
    assert held["prodigy"] == 4 * weights
    assert held["adamw"] == 2 * weights
    assert held["adafactor"] < held["adamw"] / 2
    assert held["adamw8bit"] < held["adamw"] / 2


def test_bfloat16_halves_weights_and_gradients_but_not_moments() -> None:
    wide, low = (counted(settings("adamw", weight_dtype=d, precision="bf16")) for d in ("fp32", "bf16"))
    assert low.state == wide.state
    assert low.average == wide.average
    assert 0.5 < low.unet / wide.unet < 0.51
    assert 0.5 < low.trained / wide.trained < 0.51
    assert (wide.working, low.working > 0) == (0, True)


def test_a_step_in_the_backward_pass_holds_a_bucket_of_gradients() -> None:
    config = settings("adafactor")
    count, work = counted(config), largest_work(config)
    after, within = (plan_step(count, replace(work, in_backward=choice)) for choice in (False, True))
    assert count.waiting == count.trained < BUCKET  # of a tiny network, all
    half = replace(count, waiting=count.trained // 2)
    less = plan_step(half, replace(work, in_backward=True))
    assert within.moments["update"] - less.moments["update"] == count.trained - half.waiting
    assert after.held == within.held


def test_what_a_step_holds_besides() -> None:
    """By hand, of SDXL's largest matrix and a bias, float32 and bfloat16."""
    matrix, bias = torch.empty(10240, 1280, device="meta"), torch.empty(10240, device="meta")
    low = matrix.bfloat16()
    assert step_bytes(OptimizerConfig(), [matrix, bias]) == 0
    assert step_bytes(OptimizerConfig(kind="adafactor"), [matrix, bias]) == 4 * 10240 * 1280
    assert step_bytes(OptimizerConfig(), [low, bias]) == 8 * 10240 * 1280 + 28 * 2**22
    prodigy = OptimizerConfig(kind="prodigy", learning_rate=1.0)
    assert step_bytes(prodigy, [low] * 9) == 9 * 8 * 10240 * 1280 + 28 * 2**22
    assert step_bytes(OptimizerConfig(), [low] * 9) == 4 * BUCKET + 28 * 2**22
    assert waiting_bytes([low, bias]) == low.nbytes + bias.nbytes
    assert waiting_bytes([low] * 9) == BUCKET + low.nbytes
