"""The optimizers by name: their groups, their libraries, and what of their state a checkpoint holds."""

import importlib.util
from pathlib import Path

import pytest
import torch

from refimpl.errors import InputError
from refimpl.run.adamw import set_rates
from refimpl.run.here.machine import LIBRARIES
from refimpl.run.optimizer_config import KINDS, OptimizerConfig
from refimpl.train.optimizer.kinds import check_library, kept, make_optimizer
from refimpl.train.optimizer.states import check_optimizer_state, named_state, take_estimate
from tests.train import runs
from tests.train.optimizer.test_resumed import needs_library


def config(kind: str) -> OptimizerConfig:
    return OptimizerConfig(kind=kind, learning_rate=1.0 if kind == "prodigy" else 1e-3, weight_decay=0.25)


def parameters() -> dict[str, torch.nn.Parameter]:
    shapes = {"large": (64, 64), "odd": (65, 64), "kernel": (4, 3, 3, 3), "vector": (5,)}
    return {name: torch.nn.Parameter(torch.ones(shape)) for name, shape in shapes.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_vectors_are_not_decayed_and_rates_are_set(kind: str) -> None:
    needs_library(kind)
    trained = parameters()
    optimizer = make_optimizer([(0.0, trained.values())], config(kind))
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert {name: decay[id(p)] for name, p in trained.items()} == {
        "large": 0.25, "odd": 0.25, "kernel": 0.25, "vector": 0.0,
    }  # fmt: skip
    assert set_rates(optimizer, config(kind), 0.5, 0, 10) == 0.5
    assert all(float(group["lr"]) == 0.5 for group in optimizer.param_groups)


@pytest.mark.parametrize("kind", KINDS)
def test_the_state_has_the_names_shapes_and_dtypes_that_are_told(kind: str) -> None:
    needs_library(kind)
    trained = parameters()
    optimizer = make_optimizer([(0.0, trained.values())], config(kind))
    state = named_state(trained, optimizer, kind)
    wanted = {f"{n}.{t.name}": (t.shape, t.dtype) for n, p in trained.items() for t in kept(kind, p.shape)}
    assert {k: (tuple(v.shape), v.dtype) for k, v in state.items() if k != "estimate"} == wanted
    assert ("estimate" in state) == (kind == "prodigy")
    check_optimizer_state(trained, kind, state, "x")
    for parameter in trained.values():
        parameter.grad = torch.ones_like(parameter)
    with torch.compiler.set_stance("force_eager"):
        optimizer.step()
    after = named_state(trained, optimizer, kind)
    assert {k: (tuple(v.shape), v.dtype) for k, v in after.items() if k != "estimate"} == wanted


@pytest.mark.parametrize("kind", KINDS)
def test_state_of_another_optimizer_is_refused_tensor_by_tensor(kind: str) -> None:
    needs_library(kind)
    trained = parameters()
    state = named_state(trained, make_optimizer([(0.0, trained.values())], config(kind)), kind)
    for other in KINDS:
        if other != kind:
            with pytest.raises(InputError, match=r"unknown   |missing   "):
                check_optimizer_state(trained, other, state, "run/optimizer.safetensors")


def test_codes_are_integers_and_moments_are_not() -> None:
    trained = {"a": torch.nn.Parameter(torch.ones(64, 64))}
    state = {f"a.{t.name}": torch.zeros(t.shape, dtype=t.dtype) for t in kept("adamw8bit", (64, 64))}
    check_optimizer_state(trained, "adamw8bit", state, "x")
    with pytest.raises(InputError, match=r"fractions a\.exp_avg\.codes: the file has torch\.float32"):
        check_optimizer_state(trained, "adamw8bit", {**state, "a.exp_avg.codes": torch.zeros(64, 64)}, "x")
    scale = torch.zeros(16, dtype=torch.uint8)
    with pytest.raises(InputError, match=r"integers  a\.exp_avg\.scale: the file has torch\.uint8"):
        check_optimizer_state(trained, "adamw8bit", {**state, "a.exp_avg.scale": scale}, "x")


def test_prodigy_goes_on_from_its_estimate() -> None:
    needs_library("prodigy")
    trained = parameters()
    optimizer = make_optimizer([(0.0, trained.values())], config("prodigy"))
    take_estimate(optimizer, {"estimate": torch.tensor([0.1, 0.2, 0.3, 7.0], dtype=torch.float64)})
    for group in optimizer.param_groups:
        assert [group[name] for name in ("d", "d_max", "d_numerator", "k")] == [0.1, 0.2, 0.3, 7]
    take_estimate(optimizer, {})
    assert optimizer.param_groups[0]["k"] == 7


@pytest.mark.parametrize("kind", LIBRARIES)
def test_an_absent_library_gives_the_line_that_installs_it(
    kind: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is written, the run's folder included."""
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == LIBRARIES[kind] else find(name)
    )
    with pytest.raises(
        InputError,
        match=rf"kind '{kind}' needs the {LIBRARIES[kind]} package: pip install .{LIBRARIES[kind]}>=",
    ):
        check_library(config(kind))
    out = tmp_path / "run"
    rate = 1.0 if kind == "prodigy" else 1e-3
    with pytest.raises(InputError, match=rf"pip install .{LIBRARIES[kind]}>="):
        runs.go(runs.config(root, out, optimizer={"kind": kind, "learning_rate": rate}))
    assert not out.exists() or not any(out.rglob("*.safetensors"))
    check_library(OptimizerConfig())
    check_library(OptimizerConfig(kind="adafactor"))
