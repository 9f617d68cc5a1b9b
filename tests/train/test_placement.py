"""What the networks compute with and how it lies in memory, what is refused, and what of it the step sees."""

import contextlib
import os
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode

from refimpl.errors import InputError
from refimpl.model.attention import Attention
from refimpl.model.blocks import ResBlock
from refimpl.model.config import Recompute
from refimpl.model.dot_product import KERNELS, torch_choice
from refimpl.model.unet import UNet, UNetConfig
from refimpl.run.config import TrainConfig
from refimpl.run.presets import load_config
from refimpl.train import loop
from refimpl.train import placement as module
from refimpl.train.placement import (
    casting_once,
    check_placement,
    in_precision,
    place,
    resolve,
    set_arithmetic,
)
from refimpl.train.setup.prepare import prepare
from tests.model.diffusers_unet import trained_looking
from tests.tolerances import NETWORK_FLOAT32
from tests.train import runs
from tests.train.processes import run_ranks
from tests.train.weight_casts import WeightCasts

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
Run = Callable[..., Path]


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """The process's settings are put back."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(("precision", "allowed"), [("tf32", True), ("fp32", False), ("bf16", True)])
def test_tf32_is_allowed_but_for_a_run_in_plain_float32(precision: str, allowed: bool) -> None:
    """A run in bf16 allows it: the autoencoder stays outside of autocast, and would compute in IEEE float32."""
    set_arithmetic(TrainConfig(precision=precision))
    assert torch.backends.cuda.matmul.allow_tf32 is allowed
    assert torch.backends.cudnn.allow_tf32 is allowed


def test_the_preset_of_the_report_multiplies_float32_in_tf32() -> None:
    """N §4: weights, inputs and results stay float32, and products of them may be TF32 ones."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    settings, x = load_config("novelai_v3").train, torch.eye(2)
    set_arithmetic(settings)
    assert torch.backends.cuda.matmul.allow_tf32
    assert torch.backends.cudnn.allow_tf32
    assert in_precision(Product(), settings, CPU)(x, x, x, x).dtype == torch.float32


class Product(nn.Module):
    """A product of matrices, which autocast takes to bfloat16."""

    def forward(self, x: Tensor, t: Tensor, context: Tensor, vector: Tensor) -> Tensor:
        """x · xᵀ"""
        return x @ x.T


@pytest.mark.parametrize(
    ("precision", "dtype"), [("bf16", torch.bfloat16), ("fp32", torch.float32), ("tf32", torch.float32)]
)
def test_only_the_network_computes_in_bfloat16(precision: str, dtype: torch.dtype) -> None:
    x = torch.eye(2)
    network = in_precision(Product(), TrainConfig(precision=precision), CPU)
    assert network(x, x, x, x).dtype == dtype
    assert (x @ x.T).dtype == torch.float32


def of_two_micro_batches(unet: UNet, settings: TrainConfig) -> tuple[Counter[str], list[Tensor]]:
    """The casts of each parameter in both passes over two micro-batches, and the gradients."""
    unet.zero_grad()
    network = in_precision(unet, settings, CPU)
    with WeightCasts(unet) as casts, casting_once(settings, CPU):
        for seed in range(2):
            generator = torch.Generator().manual_seed(seed)
            x, context, vector = (
                torch.randn(2, *shape, generator=generator)
                for shape in ((4, 6, 4), (3, unet.config.context_dim), (unet.config.vector_dim,))
            )
            network(x, torch.tensor([3, 900]), context, vector).square().mean().backward()
    return casts.counts, [p.grad.clone() for p in unet.parameters() if p.grad is not None]


@pytest.mark.parametrize("how", ["none", "cheap", "full"])
def test_autocast_casts_each_weight_once_in_a_step(how: Recompute) -> None:
    """In all micro-batches and what is computed again; gradients have the bits that they have with casts anew."""
    torch.manual_seed(0)
    unet = trained_looking(UNet(UNetConfig.tiny(), how))
    once, gradients = of_two_micro_batches(unet, TrainConfig(precision="bf16"))
    assert set(once.values()) == {1}
    assert {p for p, v in unet.named_parameters() if v.ndim > 1} <= set(once)
    anew, expected = of_two_micro_batches(unet, TrainConfig(precision="bf16", sharding="shard"))
    assert set(anew) == set(once)
    assert min(anew.values()) == 2
    assert (max(anew.values()) > 2) == (how != "none")  # what is computed again casts again
    for a, b in zip(gradients, expected, strict=True):
        assert torch.equal(a, b)


@pytest.fixture
def backward_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Has backward passes run in a thread of their own, as they do on a GPU."""

    def there(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            mode = _get_current_dispatch_mode()

            def with_mode() -> Any:
                with mode or contextlib.nullcontext():
                    return function(*arguments, **named)

            return thread.submit(with_mode).result()

        return call

    with ThreadPoolExecutor(1) as thread:
        for name in ("backward", "grad"):
            monkeypatch.setattr(torch.autograd, name, there(getattr(torch.autograd, name)))
        yield


@pytest.mark.parametrize("how", ["none", "cheap", "full"])
@pytest.mark.usefixtures("backward_thread")
def test_what_a_thread_of_the_backward_pass_computes_again_drops_no_casts(how: Recompute) -> None:
    """There an autocast around it would be the outermost one, whose end drops the casts of all threads."""
    torch.manual_seed(0)
    unet = trained_looking(UNet(UNetConfig.tiny(), how))
    assert set(of_two_micro_batches(unet, TrainConfig(precision="bf16"))[0].values()) == {1}


def test_an_autocast_after_a_step_is_an_outermost_one() -> None:
    """Also after a step that ends in an error: otherwise its casts would outlive it."""
    with pytest.raises(RuntimeError, match="ends here"), casting_once(TrainConfig(precision="bf16"), CPU):
        raise RuntimeError("ends here")
    assert torch.autocast_increment_nesting() == 1
    assert torch.autocast_decrement_nesting() == 0


def test_nothing_is_cast_or_kept_in_float32() -> None:
    torch.manual_seed(0)
    unet = trained_looking(UNet(UNetConfig.tiny()))
    assert not of_two_micro_batches(unet, TrainConfig())[0]


def test_weights_that_have_changed_are_cast_anew(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run's steps end in the same bits where every pass casts for itself."""
    train = {"precision": "bf16", "accumulate": 2, "batch_size": 2, "activation_checkpointing": "full"}
    once = run("once", train=train)
    monkeypatch.setattr(loop, "casting_once", lambda *arguments: contextlib.nullcontext())
    anew = run("anew", train=train)
    assert not runs.differing(runs.checkpoint(once, 4), runs.checkpoint(anew, 4))


def cast_anew(arguments: list[str]) -> None:
    """What a rank does in the test below: trains with casts of its own in every pass."""
    from refimpl.commands.train import train_command

    loop.casting_once = lambda *_: contextlib.nullcontext()
    train_command(arguments)


@pytest.mark.parametrize("zero1", [False, True])
def test_casts_once_a_step_change_no_bit_on_two_ranks(zero1: bool, root: Path, tmp_path: Path) -> None:
    ends = []
    for name, command in (("once", None), ("anew", cast_anew)):
        train = {"precision": "bf16", "accumulate": 2, "batch_size": 2, "steps": 2, "zero1": zero1}
        toml = runs.write_toml(root, tmp_path / f"{name}.toml", tmp_path / name, train=train)
        chosen = () if command is None else (command,)
        assert run_ranks([toml], 2, tmp_path / f"{name}-output", *chosen) == [0, 0]
        ends.append(runs.checkpoint(tmp_path / name, 2))
    assert not runs.differing(*ends)


# --- what "auto" comes to ---


@pytest.mark.parametrize(
    ("settings", "device", "attention", "memory_format"),
    [
        ({}, CPU, "torch", torch.contiguous_format),
        ({}, GPU, "efficient", torch.channels_last),
        ({"precision": "bf16"}, GPU, "flash", torch.channels_last),
        ({"channels_last": "off", "attention": "math"}, GPU, "math", torch.contiguous_format),
        ({"channels_last": "on", "attention": "flash"}, CPU, "flash", torch.channels_last),
    ],
)
def test_auto_is_decided_by_the_device_and_the_precision(
    settings: dict[str, Any], device: torch.device, attention: str, memory_format: torch.memory_format
) -> None:
    decided = resolve(TrainConfig(**settings), device)
    assert (decided.attention, decided.memory_format, decided.device) == (attention, memory_format, device)


def test_the_first_line_names_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100")
    settings = TrainConfig(backend="kernel", precision="bf16", compile="blocks", deterministic=True)
    assert str(resolve(settings, GPU)) == (
        "device cuda:0 (NVIDIA H100), backend kernel, precision bf16, attention flash, channels last, "
        "compile blocks, deterministic"
    )
    assert str(resolve(TrainConfig(zero1=True), CPU, ranks=8)).endswith(
        "compile none, 8 ranks, sharding replicate with zero1"
    )
    assert str(resolve(TrainConfig(sharding="hybrid"), CPU, ranks=4)).endswith("4 ranks, sharding hybrid")
    assert str(resolve(TrainConfig(), CPU)) == (
        "device cpu, backend reference, precision tf32, attention torch, channels first, compile none"
    )


# --- what is refused ---


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"attention": "flahs"}, "train.attention 'flahs' is unknown; use auto, math.*nearest is 'flash'"),
        ({"channels_last": "yes"}, "train.channels_last 'yes' is unknown; use auto, on, off"),
        ({"compile": "all"}, "train.compile 'all' is unknown; use none, blocks"),
        (
            {"attention": "flash", "precision": "fp32"},
            "'flash' computes in bfloat16.*precision 'fp32' rules out",
        ),
        ({"attention": "cudnn", "precision": "fp32"}, "'cudnn' computes in bfloat16"),
        (
            {"attention": "cudnn", "deterministic": True},
            "'cudnn' is not deterministic; use auto, math, efficient",
        ),
        ({"attention": "flex", "deterministic": True}, "'flex' is not deterministic"),
    ],
)
def test_contradictions_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        TrainConfig(**settings)


@pytest.mark.parametrize("attention", ["efficient", "cudnn", "flex"])
def test_what_cannot_run_here_is_refused_before_anything_is_written(
    attention: str, root: Path, tmp_path: Path
) -> None:
    config = runs.config(root, tmp_path, train={"attention": attention})
    with pytest.raises(InputError, match=f"train.attention '{attention}' cannot run on cpu"):
        prepare(config, tmp_path, runs.ALONE)
    assert not list(tmp_path.iterdir())


def test_blocks_that_cannot_be_compiled_are_refused(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.device] = []
    monkeypatch.setattr(module, "check_compiler", seen.append)
    check_placement(runs.config(root, tmp_path), CPU)
    assert seen == []
    check_placement(runs.config(root, tmp_path, train={"compile": "blocks"}), CPU)
    assert seen == [CPU]


@pytest.mark.parametrize("workspace", ["", ":4096:8", ":16:8"])
def test_a_deterministic_run_gives_cublas_its_workspace(
    workspace: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "check_attention", lambda *arguments: None)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", workspace)
    if not workspace:
        monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    check_placement(runs.config(root, tmp_path), GPU)
    assert os.environ.get("CUBLAS_WORKSPACE_CONFIG", "") == workspace
    check_placement(runs.config(root, tmp_path, train={"deterministic": True}), GPU)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == (workspace or ":4096:8")


def test_a_workspace_that_repeats_nothing_is_refused(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":0:0")
    config = runs.config(root, tmp_path, train={"deterministic": True})
    with pytest.raises(InputError, match="CUBLAS_WORKSPACE_CONFIG=:0:0, with which cuBLAS may differ"):
        check_placement(config, GPU)
    check_placement(config, CPU)


# --- what is set ---


@pytest.mark.parametrize("deterministic", [True, False])
def test_deterministic_algorithms_are_used_where_they_are_asked_for(deterministic: bool) -> None:
    torch.use_deterministic_algorithms(not deterministic)
    set_arithmetic(TrainConfig(deterministic=deterministic))
    assert torch.are_deterministic_algorithms_enabled() is deterministic
    assert not torch.is_deterministic_algorithms_warn_only_enabled()


def test_a_deterministic_run_has_the_same_bits_here(run: Run, trained: Path) -> None:
    """On the CPU torch's algorithms are deterministic anyway."""
    pinned = run(train={"deterministic": True})
    assert not runs.differing(runs.checkpoint(trained, 4), runs.checkpoint(pinned, 4))


@pytest.mark.parametrize(("attention", "kernel"), [("auto", torch_choice), ("flash", KERNELS["flash"])])
def test_every_attention_gets_the_kernel(attention: str, kernel: Any, root: Path, tmp_path: Path) -> None:
    prepared = prepare(runs.config(root, tmp_path, train={"attention": attention}), tmp_path, runs.ALONE)
    found = [m.dot_product for m in prepared.model.unet.modules() if isinstance(m, Attention)]
    assert found
    assert all(one is kernel for one in found)


def layouts(unet: UNet, memory_format: str) -> dict[str, tuple[bool, ...]]:
    """For every convolution and residual block: whether its weight, input and output have their channels last."""
    settings = TrainConfig(channels_last=memory_format)
    network = in_precision(unet, settings, CPU)
    seen: dict[str, tuple[bool, ...]] = {}

    def last(tensor: Tensor) -> bool:
        return tensor.is_contiguous(memory_format=torch.channels_last)

    def note(name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> None:
            weights = [last(p) for p in layer.parameters(recurse=False) if p.ndim == 4]
            seen[name] = (*weights, last(given[0]), last(out))

        return hook

    for name, layer in unet.named_modules():
        if isinstance(layer, nn.Conv2d | ResBlock):
            layer.register_forward_hook(note(name))
    config = unet.config
    x, context = torch.randn(2, 4, 6, 4), torch.randn(2, 3, config.context_dim)
    out = network(x, torch.tensor([3, 900]), context, torch.randn(2, config.vector_dim))
    assert out.is_contiguous()
    return seen


@pytest.mark.parametrize("memory_format", ["on", "off"])
def test_every_convolution_keeps_its_channels_where_they_are_wanted(
    memory_format: str, root: Path, tmp_path: Path
) -> None:
    config = runs.config(root, tmp_path, train={"channels_last": memory_format})
    model = prepare(config, tmp_path, runs.ALONE).model
    seen = layouts(model.unet, memory_format)
    assert len(seen) > 10
    last = memory_format == "on"
    wide = {
        name: formats for name, formats in seen.items() if "skip_connection" not in name
    }  # 1×1: both at once
    assert all(formats == (last,) * len(formats) for formats in wide.values())
    kernels = [p for p in model.vae.parameters() if p.ndim == 4 and p.shape[2] > 1 and p.shape[1] > 1]
    assert all(p.is_contiguous(memory_format=torch.channels_last) == last for p in kernels)


def test_adapters_and_moments_lie_as_the_weights_do(root: Path, tmp_path: Path, run: Run) -> None:
    """A run continued with its channels last goes on as if it had not stopped, bit for bit."""
    whole = run("whole", train={"channels_last": "on"})
    run("parts", train={"channels_last": "on", "steps": 2})
    parts = run("parts", train={"channels_last": "on", "resume": True})
    assert not runs.differing(runs.checkpoint(whole, 4), runs.checkpoint(parts, 4))


def test_the_memory_format_changes_rounding_alone(run: Run, trained: Path) -> None:
    last = run(train={"channels_last": "on"})
    losses = [[row["loss"] for row in runs.rows(folder) if "loss" in row] for folder in (trained, last)]
    for a, b in zip(*losses, strict=True):
        assert a == pytest.approx(b, rel=NETWORK_FLOAT32)


def test_ordered_sums_do_not_mix_up_channels_that_come_last(root: Path, tmp_path: Path) -> None:
    results = []
    for world in (1, 2):
        train = {
            "channels_last": "on", "reduction": "ordered", "batch_size": 2, "accumulate": 2 // world, "steps": 2,
        }  # fmt: skip
        toml = runs.write_toml(root, tmp_path / f"{world}.toml", tmp_path / f"{world}", train=train)
        assert run_ranks([toml], world, tmp_path / f"{world}-output") == [0] * world
        results.append(runs.checkpoint(tmp_path / f"{world}", 2))
    assert not runs.differing(*results)


def test_a_placed_network_has_the_same_keys_and_values(root: Path, tmp_path: Path) -> None:
    config = runs.config(root, tmp_path, train={"channels_last": "on", "attention": "math"})
    model = prepare(replace(config, train=TrainConfig()), tmp_path, runs.ALONE).model
    trained_looking(model.unet)
    before = {name: value.clone() for name, value in model.unet.state_dict().items()}
    place(model, config, CPU)
    after = model.unet.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
