"""A Linear and a Conv2d with a low-rank update alongside their weight (Hu et al. 2021, §4.1).

    y = W x + b + (alpha / rank) · up (m ⊙ down x)        m: the dropout mask on the rank's components; else 1

They are the plain layers, with the plain layers' parameters under the same keys, plus the two maps as children. For
a convolution, `down` has its kernel, stride, padding and dilation, and `up` is 1×1.
"""

import torch
from torch import Tensor, nn

from refimpl.errors import InputError
from refimpl.model.lora.config import float32


class _Adapted(nn.Module):
    """What the two adapted layers share; the caller must fill in the maps' values."""

    channel: int
    """the dimension of the layer's output that holds the channels"""
    lora_down: nn.Linear | nn.Conv2d
    lora_up: nn.Linear | nn.Conv2d
    alpha: float
    dropout: float
    kept: Tensor | None
    """the next batch's mask [B, rank]: 0 for a dropped component, 1 / (1 − dropout) for a kept one"""

    def _set_adapter(
        self,
        weight: Tensor,
        down: nn.Linear | nn.Conv2d,
        up: nn.Linear | nn.Conv2d,
        alpha: float,
        dropout: float,
    ) -> None:
        # Created on the meta device, as a new layer would draw from the global generator; `add_lora` draws the
        # values. float32 at least, as training updates would be rounded away in bfloat16.
        dtype = torch.promote_types(weight.dtype, torch.float32)
        self.lora_down = down.to(dtype).to_empty(device=weight.device)
        self.lora_up = up.to(dtype).to_empty(device=weight.device)
        self.alpha, self.dropout, self.kept = float32(alpha), dropout, None

    def _update(self, x: Tensor) -> Tensor:
        """(alpha / rank) · up (m ⊙ down x), in the adapter's dtype unless autocast changes it."""
        low = self.lora_down(x.to(self.lora_down.weight.dtype))
        if self.training and self.dropout > 0:
            low = low * self._kept_as(low)
        return self.lora_up(low) * (self.alpha / len(self.lora_down.weight))

    def _kept_as(self, low: Tensor) -> Tensor:
        if self.kept is None or len(self.kept) != len(low):
            drawn = "no" if self.kept is None else str(len(self.kept))
            raise InputError(
                f"LoRA dropout was drawn for {drawn} rows and the batch has {len(low)}; "
                "call draw_lora_dropout with the keys of the batch before each forward pass in training"
            )
        shape = [len(low)] + [1] * (low.ndim - 1)
        shape[self.channel] = -1
        return self.kept.view(shape)


class LoRALinear(_Adapted, nn.Linear):
    """An adapted Linear over the parameters of `base`."""

    channel = -1

    def __init__(self, base: nn.Linear, rank: int, alpha: float, dropout: float):
        nn.Linear.__init__(self, base.in_features, base.out_features, base.bias is not None, device="meta")
        self.weight, self.bias = base.weight, base.bias
        down = nn.Linear(base.in_features, rank, bias=False, device="meta")
        up = nn.Linear(rank, base.out_features, bias=False, device="meta")
        self._set_adapter(base.weight, down, up, alpha, dropout)
        self.train(base.training)

    def forward(self, input: Tensor) -> Tensor:
        """[..., in] → [..., out], in the dtype that the plain layer returns."""
        output = nn.Linear.forward(self, input)
        return output + self._update(input).to(output.dtype)

    def plain(self) -> nn.Linear:
        """The Linear without its adapter, with the same parameters."""
        layer = nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta")
        layer.weight, layer.bias = self.weight, self.bias
        return layer.train(self.training)


class LoRAConv2d(_Adapted, nn.Conv2d):
    """An adapted Conv2d over the parameters of `base`, which must not be grouped."""

    channel = 1

    def __init__(self, base: nn.Conv2d, rank: int, alpha: float, dropout: float):
        if base.groups != 1:
            raise InputError(f"LoRA cannot adapt grouped convolutions; one has {base.groups} groups")
        nn.Conv2d.__init__(self, **_conv_options(base), device="meta")
        self.weight, self.bias = base.weight, base.bias
        down = nn.Conv2d(**{**_conv_options(base), "out_channels": rank, "bias": False}, device="meta")
        up = nn.Conv2d(rank, base.out_channels, 1, bias=False, device="meta")
        self._set_adapter(base.weight, down, up, alpha, dropout)
        self.train(base.training)

    def forward(self, input: Tensor) -> Tensor:
        """[B, in, h, w] → [B, out, h', w'], in the dtype that the plain layer returns."""
        output = nn.Conv2d.forward(self, input)
        return output + self._update(input).to(output.dtype)

    def plain(self) -> nn.Conv2d:
        """The Conv2d without its adapter, with the same parameters."""
        layer = nn.Conv2d(**_conv_options(self), device="meta")
        layer.weight, layer.bias = self.weight, self.bias
        return layer.train(self.training)


def _conv_options(conv: nn.Conv2d) -> dict:
    return {
        "in_channels": conv.in_channels,
        "out_channels": conv.out_channels,
        "kernel_size": conv.kernel_size,
        "stride": conv.stride,
        "padding": conv.padding,
        "dilation": conv.dilation,
        "padding_mode": conv.padding_mode,
        "bias": conv.bias is not None,
    }


LoRALayer = LoRALinear | LoRAConv2d
