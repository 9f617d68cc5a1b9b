"""Which settings of the optimizer go together, and what each refusal says."""

from typing import Any

import pytest

from refimpl.errors import InputError
from refimpl.run.optimizer_config import KINDS, OptimizerConfig, check_together
from refimpl.run.train_config import TrainConfig

IN_BACKWARD = {"step_in_backward": True, "max_bad_steps": 1}


def together(kind: str = "adamw", clip_norm: float = 0.0, **train: Any) -> None:
    rate = 1.0 if kind == "prodigy" else 1e-4
    optimizer = OptimizerConfig(kind=kind, learning_rate=rate, clip_norm=clip_norm)
    check_together(optimizer, TrainConfig(**train))


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_goes_with_replicated_weights_of_either_dtype(kind: str) -> None:
    together(kind, clip_norm=1.0)
    together(kind, clip_norm=1.0, weight_dtype="bf16", precision="bf16")
    together(kind, clip_norm=1.0, reduction="ordered")
    if kind != "prodigy":
        together(kind, zero1=True)
        together(kind, **IN_BACKWARD)
        together(kind, weight_dtype="bf16", precision="bf16", **IN_BACKWARD)


@pytest.mark.parametrize("sharding", ["shard", "hybrid"])
@pytest.mark.parametrize("kind", KINDS)
def test_divided_weights_go_with_adamw_alone(kind: str, sharding: str) -> None:
    if kind == "adamw":
        together(kind, sharding=sharding)
        return
    with pytest.raises(
        InputError, match=f"kind '{kind}' steps whole parameters, which train.sharding '{sharding}'"
    ):
        together(kind, sharding=sharding)


@pytest.mark.parametrize(
    ("kind", "train", "message"),
    [
        ("prodigy", {"zero1": True}, "prodigy' estimates its rate over all parameters, which train.zero1"),
        ("prodigy", IN_BACKWARD, "prodigy estimates its rate from the whole gradient"),
        ("adamw", {"weight_dtype": "bf16"}, "'bf16' needs train.precision 'bf16', not 'tf32'"),
        (
            "adamw",
            {"weight_dtype": "bf16", "precision": "bf16", "sharding": "shard"},
            "'bf16' needs train.sharding 'replicate', not 'shard'",
        ),
        (
            "adamw",
            {"weight_dtype": "bf16", "precision": "bf16", "reduction": "ordered"},
            "'bf16' needs train.reduction 'fast', not 'ordered'",
        ),
        (
            "adamw",
            {"step_in_backward": True},
            "needs train.max_bad_steps 1, not 10: a bad step cannot be left out",
        ),
        ("adamw", {**IN_BACKWARD, "accumulate": 2}, "needs train.accumulate 1, not 2"),
        ("adamw", {**IN_BACKWARD, "micro_batches": 2}, "takes one micro-batch a step, and this run has 2"),
        ("adamw", {**IN_BACKWARD, "reduction": "ordered"}, "needs train.reduction 'fast', not 'ordered'"),
        ("adamw", {**IN_BACKWARD, "sharding": "shard"}, "needs train.sharding 'replicate', not 'shard'"),
    ],
)
def test_what_cannot_be_had_together_is_refused_by_name(
    kind: str, train: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        together(kind, **train)


def test_clipping_needs_the_whole_gradient() -> None:
    with pytest.raises(
        InputError, match=r"needs optimizer.clip_norm 0, not 1.0: the norm is known after the step"
    ):
        together(clip_norm=1.0, **IN_BACKWARD)


def test_an_unknown_kind_names_the_nearest() -> None:
    with pytest.raises(InputError, match=r"optimizer.kind 'adafator' is unknown.*nearest is 'adafactor'"):
        OptimizerConfig(kind="adafator")


@pytest.mark.parametrize("rate", [1e-4, 20.0])
def test_prodigy_s_rate_is_a_factor(rate: float) -> None:
    with pytest.raises(InputError, match=r"prodigy estimates the rate and multiplies it by this; use 1"):
        OptimizerConfig(kind="prodigy", learning_rate=rate)


def test_prodigy_divides_by_epsilon() -> None:
    with pytest.raises(InputError, match=r"optimizer.epsilon 0: prodigy divides by it"):
        OptimizerConfig(kind="prodigy", learning_rate=1.0, epsilon=0.0)
