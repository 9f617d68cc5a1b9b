"""What activation checkpointing computes again: everything cheap, no product, and with the same bits."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from refimpl.model.blocks import Upsample
from refimpl.model.config import Recompute
from refimpl.model.lora.adapters import add_lora
from refimpl.model.recompute import ATTENTION, PRODUCTS
from refimpl.model.unet import UNet
from refimpl.ops import load_ops
from tests.model.diffusers_unet import inputs, trained_looking
from tests.model.test_unet import SMALL


class Called(TorchDispatchMode):
    """Counts the calls of each operation."""

    def __init__(self):
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))

    def products(self) -> dict[str, int]:
        """Matrix products, convolutions and attention."""
        return {name: n for name, n in self.calls.items() if name in PRODUCTS or name.startswith(ATTENTION)}


def network(how: Recompute, adapted: bool) -> UNet:
    torch.manual_seed(0)
    unet = trained_looking(UNet(SMALL, how))
    if adapted:
        add_lora(unet, ["*.attn1.*", "*.ff.net.0.proj", "*.in_layers.2"], 2, 1.0)
        for name, parameter in unet.named_parameters():
            if "lora_up" in name:
                nn.init.normal_(parameter)
    unet.set_ops(load_ops("kernel"))
    return unet


def counted(how: Recompute, adapted: bool, bf16: bool = False) -> tuple[Called, list[torch.Tensor]]:
    """The operations of a forward and a backward pass, and the gradients."""
    unet, call = network(how, adapted), inputs(SMALL, 4, 6)
    with Called() as called, torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        out = call.ours(unet)
    with called:
        out.float().square().sum().backward()
    return called, [p.grad for p in unet.parameters() if p.grad is not None]


@pytest.mark.parametrize("adapted", [False, True], ids=["plain", "adapted"])
def test_cheap_computes_norms_and_gates_twice_and_no_product(adapted: bool) -> None:
    plain, _ = counted("none", adapted)
    cheap, _ = counted("cheap", adapted)
    assert cheap.products() == plain.products()
    for name in ("geglu", "layer_norm_forward", "group_norm_silu_forward"):
        assert cheap.calls[name] > plain.calls[name], name
    full, _ = counted("full", adapted)
    assert sum(full.products().values()) > sum(plain.products().values())


@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "autocast"])
@pytest.mark.parametrize("adapted", [False, True], ids=["plain", "adapted"])
def test_gradients_have_the_same_bits(adapted: bool, bf16: bool) -> None:
    _, plain = counted("none", adapted, bf16)
    for how in ("cheap", "full"):
        _, again = counted(how, adapted, bf16)
        assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


@pytest.mark.parametrize("how", ["none", "cheap", "full"])
def test_nothing_is_kept_without_gradients(how: Recompute) -> None:
    unet, call = network(how, adapted=False), inputs(SMALL, 4, 6)
    with torch.no_grad():
        out = call.ours(unet)
    assert not out.requires_grad
    assert torch.equal(out, call.ours(network("none", adapted=False)).detach())


@pytest.mark.parametrize(("device", "resizes"), [("meta", 2), ("cpu", 1)])
def test_the_resized_tensor_is_kept_on_the_cpu_alone(device: str, resizes: int) -> None:
    called = Called()
    up, x = Upsample(2).to(device), torch.randn(1, 2, 3, 4, device=device)
    with called:
        torch.autograd.backward(up(x, (6, 8)).square().sum())
    assert called.calls["upsample_nearest2d"] == resizes
    assert called.products()["convolution"] == 1
