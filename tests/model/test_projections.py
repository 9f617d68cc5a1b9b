"""Layers that share a product: the values and gradients of layers by themselves, fewer passes, casts once a step."""

from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
import torch.nn.utils.parametrize
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from benchmarks.count_unet import Counts
from refimpl.model import projections
from refimpl.model.attention import TransformerBlock
from refimpl.model.blocks import LayerNorm
from refimpl.model.config import Recompute
from refimpl.model.lora.adapters import add_lora
from refimpl.model.projections import keeping_casts, project, projected
from tests.tolerances import FLOAT64_ROUNDING

BF16_ROUNDING = 2.0**-8  # of one rounding to bfloat16, relative


def layers_of(widths: Sequence[int], inputs: int, dtype: torch.dtype = torch.float32) -> nn.ModuleList:
    torch.manual_seed(0)
    return nn.ModuleList(nn.Linear(inputs, width, bias=False, dtype=dtype) for width in widths)


def both_passes(outs: Sequence[Tensor], inputs: Sequence[Tensor]) -> list[Tensor]:
    """The outputs and the gradients by each input of a sum that weighs every output differently."""
    generator = torch.Generator().manual_seed(2)
    weights = [torch.randn(out.shape, generator=generator) for out in outs]
    total = sum((out.double() * weight).sum() for out, weight in zip(outs, weights, strict=True))
    assert isinstance(total, Tensor)
    return [*(out.detach() for out in outs), *torch.autograd.grad(total, inputs)]


@given(
    widths=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    inputs=st.integers(1, 4),
    lead=st.lists(st.integers(1, 9), min_size=1, max_size=3),
)
def test_projections_are_the_layers(widths: list[int], inputs: int, lead: list[int]) -> None:
    """Whichever way they are computed, in float64."""
    layers = layers_of(widths, inputs, torch.float64)
    weights = [layer.get_parameter("weight") for layer in layers]
    x = torch.randn(*lead, inputs, dtype=torch.float64, requires_grad=True)
    ours = both_passes(projected(x, weights, None, None), [x, *weights])
    theirs = both_passes([layer(x) for layer in layers], [x, *weights])
    for a, b in zip(ours, theirs, strict=True):
        assert a.shape == b.shape
        torch.testing.assert_close(a, b, rtol=FLOAT64_ROUNDING, atol=FLOAT64_ROUNDING)


def test_gradients_are_right_to_the_second_order() -> None:
    weights = [torch.randn(2, 3, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)

    def parts(x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        return projected(x, weights, None, None)

    assert torch.autograd.gradcheck(parts, (x, *weights))
    assert torch.autograd.gradgradcheck(parts, (x, *weights))


def test_second_derivatives_under_autocast_reach_the_weights() -> None:
    """Which are differentiated themselves, not the casts of them that the first pass used."""
    layers = layers_of((2, 2), 3)
    x = torch.randn(4, 3, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        outs = project(x, list(layers))
    (by_x,) = torch.autograd.grad(torch.cat(outs).float().sum(), [x], create_graph=True)
    for by_weight in torch.autograd.grad(by_x.sum(), list(layers.parameters())):
        assert torch.equal(by_weight, torch.full((2, 3), 4.0))


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("trained", [False, True])
def test_only_what_is_asked_for_is_computed(trained: bool, autocast: bool) -> None:
    layers = layers_of((4, 4, 4), 3)
    x = torch.randn(2, 3, requires_grad=trained)
    layers[0].requires_grad_(False)
    with Counts() as counts:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            outs = project(x, list(layers))
        torch.autograd.backward([out.sum() for out in outs if out.requires_grad])
    forward, by_weights, by_x = 1 if autocast else 3, 2, 3 if trained else 0
    assert counts.calls["mm"] + counts.calls["addmm"] == forward + by_weights + by_x
    assert layers[0].weight.grad is None
    assert all(layer.weight.grad is not None for layer in layers[1:])


def test_an_output_may_be_left_unused() -> None:
    weights = [torch.randn(4, 3) for _ in range(3)]
    x = torch.randn(2, 3, requires_grad=True)
    (by_x,) = torch.autograd.grad(projected(x, weights, None, None)[1].sum(), [x])
    torch.testing.assert_close(by_x, weights[1].sum(0).expand(2, 3))


# --- what moves ---


def traffic(device: str, share: bool) -> Counts:
    layers = layers_of((32, 32, 32), 32).to(device)
    x = torch.zeros(64, 32, device=device, requires_grad=True)
    with Counts() as counts:
        outs = project(x, list(layers)) if share else [layer(x) for layer in layers]
        torch.autograd.backward(outs, [torch.empty_like(out) for out in outs])
    return counts


def test_no_pass_adds_gradients() -> None:
    apart, shared = traffic("meta", False), traffic("meta", True)
    assert (apart.calls["add"], shared.calls["add"]) == (2, 0)
    less = apart.traffic.total() - shared.traffic.total()
    assert less == 4 * 64 * 32 * 4  # 2 · 3 sizes of x, less 2 that products read


def test_on_the_cpu_the_layers_are_called() -> None:
    """In float32: a function of autograd's takes longer there than the two passes."""
    assert traffic("cpu", True).calls == traffic("cpu", False).calls


def test_under_autocast_one_product_makes_all_outputs() -> None:
    layers = layers_of((4, 5, 6), 3)
    x = torch.randn(2, 7, 3)
    with Counts() as counts, torch.autocast("cpu", torch.bfloat16):
        outs = project(x, list(layers))
    assert counts.calls == {"copy_": 3, "_to_copy": 1, "mm": 1}
    assert [out.shape for out in outs] == [(2, 7, 4), (2, 7, 5), (2, 7, 6)]


# --- autocast ---


def test_autocast_computes_in_bfloat16_and_leaves_float32_gradients() -> None:
    layers = layers_of((64, 48), 96)
    weights = [layer.get_parameter("weight") for layer in layers]
    x = torch.randn(5, 96, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        outs = project(x, list(layers))
    ours = both_passes(outs, [x, *weights])
    exact = [tensor.detach().bfloat16().double().requires_grad_() for tensor in (x, *weights)]
    theirs = both_passes([F.linear(exact[0], weight) for weight in exact[1:]], exact)
    assert [tensor.dtype for tensor in ours] == [torch.bfloat16] * 2 + [torch.float32] * 3
    for a, b in zip(ours, theirs, strict=True):
        assert (a.double() - b).abs().max() <= 3 * BF16_ROUNDING * b.abs().max()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes_than_the_weights_are_refused_as_layers_refuse_them(dtype: torch.dtype) -> None:
    with pytest.raises(RuntimeError, match="same dtype"):
        project(torch.ones(2, 3, dtype=dtype), list(layers_of((2, 2), 3)))


def test_weights_kept_in_bfloat16_are_not_cast() -> None:
    layers = layers_of((4, 4), 3, torch.bfloat16)
    x = torch.randn(2, 3)
    with Counts() as counts, torch.autocast("cpu", torch.bfloat16):
        outs = project(x, list(layers))
    assert counts.calls == {"_to_copy": 1, "mm": 2}
    assert {out.dtype for out in outs} == {torch.bfloat16}


def test_autocast_leaves_float64_as_it_is() -> None:
    layers = layers_of((2, 2), 3, torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        assert project(torch.ones(1, 3, dtype=torch.float64), list(layers))[0].dtype == torch.float64


def test_weights_are_cast_once_within_a_step_and_anew_after_it() -> None:
    layers = layers_of((4, 4), 4)

    def casts() -> int:
        with Counts() as counts, torch.autocast("cpu", torch.bfloat16):
            project(torch.ones(2, 4), list(layers))
        return counts.calls["copy_"]

    with keeping_casts():
        assert [casts(), casts()] == [2, 0]
        with keeping_casts():  # a step within a step casts for itself
            assert casts() == 2
        assert casts() == 0
    assert [casts(), casts()] == [2, 2]


def test_kept_casts_are_not_taken_for_those_of_other_weights() -> None:
    """Python gives the ids of what is gone to what comes."""
    with keeping_casts(), torch.autocast("cpu", torch.bfloat16):
        for value in range(1, 50):
            layers = [nn.Linear(1, 1, bias=False) for _ in range(2)]
            nn.init.constant_(layers[0].weight, value)
            nn.init.constant_(layers[1].weight, value)
            assert [out.item() for out in project(torch.ones(1, 1), layers)] == [value, value]
            del layers


def test_weights_that_have_changed_in_place_are_cast_anew() -> None:
    layers = layers_of((4, 4), 4)
    with keeping_casts(), torch.autocast("cpu", torch.bfloat16):
        before = project(torch.ones(2, 4), list(layers))[1]
        with torch.no_grad():
            layers[1].get_parameter("weight").mul_(2)
        assert torch.equal(project(torch.ones(2, 4), list(layers))[1], 2 * before)


def test_steps_that_overlap_leave_no_casts_behind() -> None:
    """As those of two threads may, which begin and end when they like."""
    layers, steps = layers_of((4, 4), 4), [keeping_casts(), keeping_casts()]

    def casts() -> int:
        with Counts() as counts, torch.autocast("cpu", torch.bfloat16):
            project(torch.ones(2, 4), list(layers))
        return counts.calls["copy_"]

    for step in steps:
        step.__enter__()
        assert [casts(), casts()] == [2, 0]
    for step in steps:
        step.__exit__(None, None, None)
    assert [casts(), casts()] == [2, 2]


def test_casts_are_dropped_when_a_step_ends_in_an_error() -> None:
    with pytest.raises(RuntimeError, match="ends here"), keeping_casts():
        raise RuntimeError("ends here")
    assert not projections._kept


def test_a_backward_pass_within_an_autocast_is_that_of_the_layers() -> None:
    """PyTorch advises against it and allows it; the products of both are bfloat16's then."""
    layers = layers_of((16, 16, 16), 8)
    weights = [layer.get_parameter("weight") for layer in layers]
    x = torch.randn(4, 8, requires_grad=True)
    outs = list(projected(x, weights, None, None)), [layer(x) for layer in layers]
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = (torch.autograd.grad(torch.stack(o).square().sum(), [x, *weights]) for o in outs)
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == torch.float32
        assert (a - b).abs().max() <= 3 * BF16_ROUNDING * b.abs().max()


# --- functions of the weights ---


def test_a_block_is_a_function_of_other_weights_too() -> None:
    """`torch.func.functional_call` puts plain tensors where a module has its parameters."""
    block = TransformerBlock(8, 6, 4)
    inputs = torch.randn(2, 5, 8), torch.randn(2, 3, 6)
    weights = {name: parameter.detach() for name, parameter in block.named_parameters()}

    def loss(weights: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(block, weights, inputs).square().sum()

    gradients = torch.func.grad(loss)(weights)
    block(*inputs).square().sum().backward()
    for name, parameter in block.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(gradients[name], parameter.grad)


class Both(nn.Module):
    """Two layers' outputs, side by side."""

    def __init__(self):
        super().__init__()
        self.layers = layers_of((4, 5), 3, torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        """[..., n, 3] → [..., n, 9]"""
        return torch.cat(project(x, list(self.layers)), dim=-1)


def test_gradients_of_each_sample_by_itself() -> None:
    """By `torch.func.vmap` over a gradient by weights and input."""
    both, x = Both(), torch.randn(6, 2, 3, dtype=torch.float64)
    weights = {name: parameter.detach() for name, parameter in both.named_parameters()}

    def loss(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(both, weights, (x,)).square().sum()

    by_weights, by_x = torch.func.vmap(torch.func.grad(loss, argnums=(0, 1)), in_dims=(None, 0))(weights, x)
    for k in range(6):
        sample = x[k].clone().requires_grad_()
        alone = torch.autograd.grad(both(sample).square().sum(), [sample, *both.parameters()])
        for ours, wanted in zip((by_x, *by_weights.values()), alone, strict=True):
            torch.testing.assert_close(ours[k], wanted)


# --- in a block ---


class InFloat32(LayerNorm):
    """A norm as a GPU's autocast computes it: the CPU's leaves bfloat16 as it is."""

    def forward(self, input: Tensor) -> Tensor:
        """The norm in float32, whatever comes in."""
        with torch.autocast("cpu", enabled=False):
            return super().forward(input.float())


def block_passes(how: Recompute, autocast: bool, keeps: bool = False) -> list[Tensor]:
    """The output and all gradients of a transformer block."""
    torch.manual_seed(0)
    block = TransformerBlock(8, 6, 4)
    block.norm1, block.activation_checkpointing = InFloat32(8), how
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randn(2, 50, 8, generator=generator).requires_grad_()
    context = torch.randn(2, 3, 6, generator=generator).requires_grad_()
    with keeping_casts() if keeps else torch.enable_grad():
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            out = block(tokens.bfloat16() if autocast else tokens, context)
        (out.float() * torch.randn(out.shape, generator=generator)).sum().backward()
    grads = [p.grad for p in (tokens, context, *block.parameters())]
    return [out.detach(), *(grad for grad in grads if grad is not None)]


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("keeps", [False, True])
@pytest.mark.parametrize("how", ["cheap", "full"])
def test_a_block_computed_again_has_the_same_bits(how: Recompute, keeps: bool, autocast: bool) -> None:
    once, again = block_passes("none", autocast), block_passes(how, autocast, keeps)
    assert len(once) == 3 + 20
    for a, b in zip(once, again, strict=True):
        assert torch.equal(a, b)


def test_adapted_layers_are_called_themselves() -> None:
    attention = TransformerBlock(8, 6, 4).attn1
    add_lora(attention, ["to_q"], 2, 1.0)
    nn.init.normal_(attention.get_parameter("to_q.lora_up.weight"))
    x, layers = torch.randn(3, 8), [attention.to_q, attention.to_k]
    with torch.autocast("cpu", torch.bfloat16):
        for ours, layer in zip(project(x, layers), layers, strict=True):
            assert torch.equal(ours, layer(x))


def with_bias(layer: nn.Linear) -> None:
    layer.bias = nn.Parameter(torch.ones(2))


def with_hook(layer: nn.Linear) -> None:
    layer.register_forward_hook(lambda layer, args, out: out.add(1))


def with_hook_before(layer: nn.Linear) -> None:
    layer.register_forward_pre_hook(lambda layer, args: (2 * args[0],))


def with_another_forward(layer: nn.Linear) -> None:
    layer.forward = torch.zeros_like


def with_a_view(layer: nn.Linear) -> None:
    torch.nn.utils.parametrize.register_parametrization(layer, "weight", nn.Tanh())


@pytest.mark.parametrize(
    "change",
    [with_bias, with_hook, with_hook_before, with_another_forward, with_a_view],
    ids=lambda f: f.__name__,
)
def test_layers_with_more_to_them_are_called_themselves(change: Callable[[nn.Linear], None]) -> None:
    layers = [nn.Linear(3, 2, bias=False) for _ in range(2)]
    x, before = torch.randn(4, 3), layers[1].weight.detach().clone()
    change(layers[1])
    with torch.autocast("cpu", torch.bfloat16):
        for ours, layer in zip(project(x, layers), layers, strict=True):
            assert torch.equal(ours, layer(x))
    assert not torch.equal(layers[1](x), x @ before.T)


def test_hooks_on_gradients_are_called() -> None:
    layers, seen = [nn.Linear(3, 2, bias=False) for _ in range(2)], []
    layers[0].register_full_backward_hook(lambda layer, by_x, by_out: seen.append(by_out))
    x = torch.randn(4, 3, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        total = torch.stack(project(x, layers)).sum()
    total.backward()
    assert len(seen) == 1


def test_a_compiler_sees_the_layers() -> None:
    layers = layers_of((4, 4, 4), 4)

    def total(x: Tensor) -> Tensor:
        return torch.stack(project(x, list(layers))).sum(0)

    x = torch.randn(2, 4)
    compiled = torch.compile(total, fullgraph=True, backend="eager")(x)
    torch.testing.assert_close(compiled, total(x))
