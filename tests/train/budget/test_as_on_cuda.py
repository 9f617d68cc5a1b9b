"""What a GPU would do, on the meta device: the casts of autocast, and fused attention."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.count_unet import Counts
from refimpl.model.blocks import LayerNorm
from refimpl.model.config import Recompute
from refimpl.model.projections import project
from refimpl.model.unet import UNet, UNetConfig
from refimpl.ops import load_ops
from refimpl.train.budget.as_on_cuda import AsOnCuda
from refimpl.train.budget.counted import count_unet
from refimpl.train.budget.live_memory import count_inference


def result(network: nn.Module, x: Tensor, starts: bool = True) -> Tensor:
    with AsOnCuda() as on_cuda:
        if starts:
            on_cuda.start_autocast()
        return network(x)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [(nn.Linear(4, 4), (2, 4)), (nn.Conv2d(4, 4, 3), (2, 4, 8, 8)), (nn.GELU(), (2, 4))],
    ids=["linear", "conv", "gelu"],
)
def test_casts_are_those_of_autocast(layer: nn.Module, shape: tuple[int, ...]) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        real = layer(torch.zeros(shape))
    counted = result(layer.to("meta"), torch.zeros(shape, device="meta"))
    assert (counted.dtype, counted.shape) == (real.dtype, real.shape)


@pytest.mark.parametrize("layer", [nn.LayerNorm(4), nn.GroupNorm(2, 4)], ids=["layer", "group"])
def test_norms_are_computed_in_float32(layer: nn.Module) -> None:
    """As autocast does on a GPU, though not on the CPU."""
    x = torch.zeros(2, 4, device="meta", dtype=torch.bfloat16)
    assert result(layer.to("meta"), x).dtype == torch.float32


def test_the_compiled_norm_takes_and_keeps_bfloat16() -> None:
    """Where the reference's copies in float32 are made, and kept, the kernel's input and two numbers per row are."""
    norm = LayerNorm(64).to("meta")

    def dtype_and_kept(backend: str) -> tuple[torch.dtype, int]:
        norm.ops = load_ops(backend)
        x = torch.zeros(32, 64, device="meta", dtype=torch.bfloat16).requires_grad_()
        saved: list[Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
            dtype = result(norm, x).dtype
        return dtype, sum(t.numel() * t.element_size() for t in saved)

    parameters = 2 * 64 * 4
    assert dtype_and_kept("kernel") == (torch.bfloat16, 32 * 64 * 2 + 2 * 32 * 4 + parameters)
    dtype, kept = dtype_and_kept("reference")
    assert dtype == torch.float32
    assert kept > 32 * 64 * 4


def test_nothing_is_cast_before_autocast_starts() -> None:
    x = torch.zeros(2, 4, device="meta")
    assert result(nn.Linear(4, 4, device="meta"), x, starts=False).dtype == torch.float32


def test_a_weight_is_cast_once_until_the_casts_are_dropped() -> None:
    layer = nn.Linear(256, 256, bias=False, device="meta")

    def run(end: bool) -> Tensor:
        on_cuda.start_autocast()
        if end:
            on_cuda.end_forward()
        x = torch.zeros(1, 256, device="meta", dtype=torch.bfloat16, requires_grad=True)
        with torch.enable_grad():
            return layer(x) + layer(x)

    casts = []
    for end in (False, True):
        with AsOnCuda() as on_cuda:
            timeline = count_inference([layer], lambda end=end: run(end))
        casts.append(max(timeline.constant) // (256 * 256 * 2))
    assert casts == [1, 2]


@pytest.mark.parametrize("is_trained", [False, True])
def test_text_states_are_cast_once_unless_they_are_trained(is_trained: bool) -> None:
    layer = nn.Linear(4, 4, device="meta")
    text = torch.zeros(2, 4, device="meta", requires_grad=is_trained).clone()  # as a tower returns it
    with AsOnCuda() as on_cuda, Counts() as counts:
        on_cuda.start_autocast(text)
        for _ in range(3):
            layer(text)
    weights = 2  # the matrix and the bias, once each
    assert counts.calls["_to_copy"] == weights + (3 if is_trained else 1)


def test_projections_cast_their_input_and_each_weight_once() -> None:
    layers = [nn.Linear(4, 4, bias=False, device="meta") for _ in range(3)]
    x = torch.zeros(2, 4, device="meta")
    with AsOnCuda() as on_cuda, Counts() as counts:
        assert {out.dtype for out in project(x, layers)} == {torch.float32}
        assert not counts.calls["_to_copy"] + counts.calls["copy_"]
        on_cuda.start_autocast()
        for _ in range(2):
            assert {out.dtype for out in project(x, layers)} == {torch.bfloat16}
        assert (counts.calls["_to_copy"], counts.calls["copy_"]) == (2, 3)
        on_cuda.end_forward()
        project(x, layers)
        assert (counts.calls["_to_copy"], counts.calls["copy_"]) == (3, 6)


@pytest.mark.parametrize("checkpointing", ["none", "cheap", "full"])
def test_casts_that_are_kept_for_a_step_are_there_after_its_passes(checkpointing: Recompute) -> None:
    """Two bytes for each weight of a product; dropped, they are made again where a block is computed again."""
    with torch.device("meta"):
        unet = UNet(UNetConfig.tiny(), checkpointing)
    layers = [layer for layer in unet.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    weights = sum(parameter.numel() for layer in layers for parameter in layer.parameters(recurse=False))
    kept, dropped, plain = (
        count_unet(unet, 32, 32, bf16, keeps) for bf16, keeps in ((True, True), (True, False), (False, True))
    )
    assert (kept.left, dropped.left, plain.left) == (2 * weights, 0, 0)
    assert max(kept.constant) >= max(dropped.constant)
    assert max(kept.per_image) == max(dropped.per_image)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("channels", [64, 512])
def test_attention_never_materialises_its_matrix(dtype: torch.dtype, channels: int) -> None:
    tokens = 4096
    q = torch.zeros(1, 1, tokens, channels, device="meta", dtype=dtype)
    layer = nn.Identity()
    with AsOnCuda():
        timeline = count_inference([layer], lambda: F.scaled_dot_product_attention(q, q, q))
    assert max(timeline.constant) < tokens * tokens


def test_attention_is_differentiable() -> None:
    q = torch.zeros(1, 2, 32, 64, device="meta", requires_grad=True)
    with AsOnCuda():
        heads = F.scaled_dot_product_attention(q, q, q)
    torch.autograd.backward(heads.sum())
    assert q.grad is not None
    assert q.grad.shape == q.shape


def test_attention_with_more_arguments_is_left_alone() -> None:
    q = torch.zeros(1, 2, 32, 64, device="meta")
    with AsOnCuda():
        assert F.scaled_dot_product_attention(q, q, q, scale=1.0).shape == q.shape


@pytest.mark.parametrize("checkpointing", ["none", "full"])
def test_bf16_saves_half_of_the_products_inputs(checkpointing: Recompute) -> None:
    config = UNetConfig.tiny()
    with torch.device("meta"):
        unet = UNet(config, checkpointing)
    tf32, bf16 = (count_unet(unet, 32, 32, low) for low in (False, True))
    assert 0.5 < max(bf16.per_image) / max(tf32.per_image) < 0.9
    assert max(bf16.constant) >= max(tf32.constant)  # the weights' casts
    assert bf16.gradients[-1] == tf32.gradients[-1]  # float32, like the weights
