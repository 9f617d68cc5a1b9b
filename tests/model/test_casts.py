"""One cast in place of three: the same bits, fewer operations, and only where autocast would cast."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from benchmarks.count_unet import Counts
from refimpl.model import attention
from refimpl.model.attention import TransformerBlock
from refimpl.model.casts import cast_for_three, cast_once
from refimpl.model.config import Recompute
from refimpl.model.lora.adapters import add_lora

CHANNELS = 8


class InFloat32(nn.LayerNorm):
    """A norm as a GPU's autocast computes it: the CPU's leaves bfloat16 as it is."""

    def forward(self, input: Tensor) -> Tensor:
        """The norm in float32, whatever comes in."""
        with torch.autocast("cpu", enabled=False):
            return super().forward(input.float())


def block(how: Recompute = "none") -> TransformerBlock:
    torch.manual_seed(0)
    made = TransformerBlock(CHANNELS, 6, 4)
    made.norm1 = InFloat32(CHANNELS)
    made.activation_checkpointing = how
    return made


def passes(made: TransformerBlock, monkeypatch: pytest.MonkeyPatch | None = None) -> tuple[list[Tensor], int]:
    """The output and all gradients under autocast, and the number of casts; three for x with monkeypatch."""
    made.zero_grad()
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randn(2, 5, CHANNELS, generator=generator).requires_grad_()
    context = torch.randn(2, 3, 6, generator=generator)
    if monkeypatch is not None:
        monkeypatch.setattr(attention, "cast_for_three", lambda x: (x, x, x))
    with Counts() as counts:
        with torch.autocast("cpu", torch.bfloat16):
            out = made(tokens.bfloat16(), context)
        (out.float() * torch.randn(out.shape, generator=generator)).sum().backward()
    grads = [p.grad for p in (tokens, *made.parameters()) if p.grad is not None]
    return [out.detach(), *(grad.clone() for grad in grads)], counts.calls["_to_copy"]


@pytest.mark.parametrize("how", ["none", "cheap", "full"])
def test_a_block_has_the_same_bits_with_fewer_casts(how: Recompute, monkeypatch: pytest.MonkeyPatch) -> None:
    once, few = passes(block(how))
    thrice, many = passes(block(how), monkeypatch)
    assert few <= many - 4  # two fewer in each pass
    for a, b in zip(once, thrice, strict=True):
        assert torch.equal(a, b)


def test_adapted_layers_cast_for_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of them uses its input twice, and adds the two gradients in float32."""

    def adapted() -> TransformerBlock:
        made = block()
        add_lora(made, ["attn1.to_q"], 2, 1.0)
        for name, parameter in made.named_parameters():
            if "lora_up" in name:
                nn.init.normal_(parameter, std=0.1)
        return made

    once, few = passes(adapted())
    thrice, many = passes(adapted(), monkeypatch)
    assert few == many
    for a, b in zip(once, thrice, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("function", [cast_once, lambda x: cast_for_three(x)[1]], ids=["once", "three"])
def test_nothing_is_cast_where_autocast_would_not(function: Callable[[Tensor], Tensor]) -> None:
    x = torch.randn(2, 3)
    assert function(x) is x
    assert function(x.to("meta")).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert function(x).dtype == torch.bfloat16
        assert function(low := x.bfloat16()) is low
        with torch.autocast("cpu", enabled=False):
            assert function(x) is x


def test_the_three_share_one_memory() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        three = cast_for_three(torch.randn(2, 3, requires_grad=True))
    assert len({x.data_ptr() for x in three}) == 1
    assert all(x.requires_grad for x in three)


def test_a_compiler_sees_three_uses() -> None:
    layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

    def sums(x: Tensor) -> Tensor:
        return sum(layer(low) for layer, low in zip(layers, cast_for_three(x), strict=True))  # pyright: ignore[reportReturnType]

    x = torch.randn(2, 4)
    with torch.autocast("cpu", torch.bfloat16):
        compiled = torch.compile(sums, fullgraph=True, backend="eager")(x)
        assert torch.equal(compiled, sums(x))


def test_gradients_are_added_in_the_order_of_autograd() -> None:
    """1 and twice half a rounding: which two are added first decides about the sum."""

    def gradient(once: bool, incoming: list[float]) -> float:
        x = torch.ones(1, 1, requires_grad=True)
        layers = [nn.Linear(1, 1, bias=False) for _ in range(3)]
        for layer in layers:
            nn.init.ones_(layer.weight)
        with torch.autocast("cpu", torch.bfloat16):
            computed = x.clone()  # of a leaf, autocast would keep the cast
            given = cast_for_three(computed) if once else (computed, computed, computed)
            outs = [layer(low) for layer, low in zip(layers, given, strict=True)]
        torch.autograd.backward(outs, [torch.full_like(outs[0], value) for value in incoming])
        assert x.grad is not None
        return x.grad.item()

    half = 2.0**-24  # of float32's spacing above 1
    cases = [[1.0, half, half], [half, 1.0, half], [half, half, 1.0]]
    assert [gradient(True, case) for case in cases] == [gradient(False, case) for case in cases]
    assert len({gradient(False, case) for case in cases}) == 2
