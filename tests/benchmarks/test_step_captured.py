"""A micro-batch that is captured and replayed trains as the one that is not, bit for bit."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import step_captured, step_ours
from benchmarks.step_captured import Captured, Inputs
from benchmarks.step_inputs import Case, Marks
from refimpl.model.config import Recompute
from refimpl.run.config import Config, TrainConfig
from refimpl.train.placement import casting_once
from tests.train.weight_casts import WeightCasts

SMALL = Case("ours", "bf16", 64, 64, 2, checkpointing="cheap", images_per_step=4, small=True)
Step = tuple[list[Tensor], list[Tensor]]  # gradients, and weights after them


@pytest.fixture
def arithmetic(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Has the steps compute with algorithms that repeat their bits, and then lets torch choose again."""
    written = step_ours.settings_of

    def repeatable(case: Case) -> Config:
        config = written(case)
        return replace(config, train=replace(config.train, deterministic=True))

    allowed = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    monkeypatch.setattr(step_ours, "settings_of", repeatable)
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = allowed


def steps_of(case: Case, device: str, monkeypatch: pytest.MonkeyPatch) -> tuple[list[Step], Marks]:
    """Three steps from the same weights, each on other noise and timesteps and of two different micro-batches."""
    taken: list[Step] = []
    written = step_ours.update

    def update(optimizer, parts, *others):
        parameters = list(parts[0].parameters().values())
        gradients = [p.grad.detach().clone() for p in parameters]
        written(optimizer, parts, *others)
        taken.append((gradients, [p.detach().clone() for p in parameters]))

    torch.manual_seed(0)
    marks = Marks(device)
    with monkeypatch.context() as patched:
        patched.setattr(step_ours, "update", update)
        step = step_ours.our_step(case, marks)
        for _ in range(3):
            step()
    return taken, marks


@pytest.mark.parametrize("precision", ["bf16", "tf32"])
@pytest.mark.usefixtures("arithmetic")
def test_gradients_and_weights_of_a_captured_step_are_the_same(
    precision: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = replace(SMALL, precision=precision)
    eager, marks = steps_of(case, device, monkeypatch)
    assert (set(marks.read()), marks.held_bytes) == ({"prelude", "forward", "backward", "update"}, 0)
    captured, marks = steps_of(replace(case, captured=True), device, monkeypatch)
    assert set(marks.read()) == {"prelude", "replay", "update"}
    assert (marks.held_bytes > 0) == (device == "cuda")
    for ours, theirs in zip(captured, eager, strict=True):
        for kind in range(2):
            assert all(torch.equal(a, b) for a, b in zip(ours[kind], theirs[kind], strict=True))
    first, second = (eager[k][0] for k in range(2))
    assert not any(torch.equal(a, b) for a, b in zip(first, second, strict=True)), "the data were the same"


# What makes the host wait for the device, or copies from it: neither may happen while a GPU captures.
WAITING = {"_local_scalar_dense", "lift_fresh", "nonzero", "masked_select", "equal", "is_nonzero", "_unique2"}


class Called(TorchDispatchMode):
    """Names of the operations that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("checkpointing", ["none", "cheap", "full"])
@pytest.mark.parametrize("precision", ["bf16", "tf32"])
@pytest.mark.usefixtures("arithmetic")
def test_a_pass_neither_waits_nor_reads_the_host(
    precision: str, checkpointing: Recompute, monkeypatch: pytest.MonkeyPatch
) -> None:
    called = Called()

    def watched(run):
        with called:
            run()
        return run, 0

    monkeypatch.setitem(step_captured.CAPTURES, "cpu", watched)
    case = replace(SMALL, precision=precision, checkpointing=checkpointing, captured=True)
    step_ours.our_step(case, Marks("cpu"))()
    assert called.names >= {"v_loss_forward", "v_loss_correct_", "geglu_backward", "convolution_backward"}
    assert not called.names & WAITING


@pytest.mark.parametrize("checkpointing", ["none", "cheap", "full"])
@pytest.mark.parametrize("captured", [False, True])
@pytest.mark.usefixtures("arithmetic")
def test_weights_are_cast_once_for_what_is_computed_at_once(
    captured: bool, checkpointing: Recompute, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a step of two micro-batches, or in each captured pass; on a GPU its own thread computes again."""
    networks: list[nn.Module] = []
    written = step_ours.update

    def update(optimizer, parts, *others):
        networks.append(parts[0].module)
        written(optimizer, parts, *others)

    monkeypatch.setattr(step_ours, "update", update)
    step = step_ours.our_step(replace(SMALL, checkpointing=checkpointing, captured=captured), Marks(device))
    step()
    with WeightCasts(networks[0]) as casts:
        step()
    replayed = captured and device == "cuda"  # nothing is called by the host
    assert set(casts.counts.values()) == (set() if replayed else {2 if captured else 1})


def small_pass() -> tuple[Captured, Tensor, list[int]]:
    """A pass of every input, its parameter, and a list that grows when it runs."""
    parameter, runs = torch.ones(2, requires_grad=True), []

    def run(x: Inputs) -> Tensor:
        runs.append(1)
        losses = parameter * sum(value.float() for value in x)
        losses.sum().backward()
        return losses.detach()

    return Captured(run, [parameter]), parameter, runs


def ones() -> Inputs:
    return Inputs(*(torch.ones(2, dtype=torch.int64 if k == 4 else torch.float32) for k in range(8)))


@pytest.mark.parametrize("name", Inputs._fields)
def test_every_input_is_read_anew(name: str) -> None:
    captured, parameter, _ = small_pass()
    captured.begin()
    assert captured(ones()).tolist() == [8, 8]
    other = ones()._replace(**{name: 3 * getattr(ones(), name)})
    assert captured(other).tolist() == [10, 10]
    assert parameter.grad is not None
    assert parameter.grad.tolist() == [18, 18]


def test_a_step_begins_at_zero_in_the_same_buffer() -> None:
    captured, parameter, _ = small_pass()
    captured.begin()
    captured(ones())
    buffer, parameter.grad = parameter.grad, None
    captured.begin()
    assert parameter.grad is buffer
    captured(ones())
    assert parameter.grad is not None
    assert parameter.grad.tolist() == [8, 8]


def test_what_the_warm_up_adds_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    def warmed_up(run):
        run()
        return run, 7

    monkeypatch.setitem(step_captured.CAPTURES, "cpu", warmed_up)
    captured, parameter, runs = small_pass()
    captured.begin()
    captured(ones())
    assert (len(runs), captured.held_bytes) == (2, 7)
    assert parameter.grad is not None
    assert parameter.grad.tolist() == [8, 8]


@pytest.mark.parametrize("wrong", [torch.ones(1), torch.ones(2, dtype=torch.float64)])
def test_an_input_of_another_shape_or_dtype_is_refused(wrong: Tensor) -> None:
    captured, _, runs = small_pass()
    captured.begin()
    captured(ones())
    with pytest.raises(ValueError, match=r"weight is torch.float.* but was captured as torch.float32 \[2\]"):
        captured(ones()._replace(weight=wrong))
    assert len(runs) == 1


def test_nothing_is_captured_within_an_autocast() -> None:
    """Its cache may hold casts of the weights as they were: the graph would read those for ever."""
    captured, _, runs = small_pass()
    captured.begin()
    outer = casting_once(TrainConfig(precision="bf16"), torch.device("cpu"))
    with outer, pytest.raises(RuntimeError, match="captured within an autocast"):
        captured(ones())
    assert not runs
    captured(ones())
    assert len(runs) == 1
