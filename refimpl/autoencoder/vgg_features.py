"""VGG-16's feature maps, for the perceptual loss, from plain tensors (Simonyan & Zisserman 2015, configuration D).

features.{0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28}.weight [out, in, 3, 3] and .bias [out], torchvision's names:

    save_file(torchvision.models.vgg16(weights="DEFAULT").state_dict(), "vgg16.safetensors")

The maps are those after the last rectifier of each of the five blocks, which Zhang et al. 2018 (LPIPS) compare. A
file of tensors holds no code, unlike TorchScript's.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from refimpl.errors import InputError
from refimpl.storage import safetensors_file
from refimpl.storage.safetensors_header import Reader

BLOCKS = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
"""The convolutions of each block, by their number in torchvision's network; between blocks, the sides are halved."""
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of the images that torchvision's weights were trained on, in 0 … 1."""
READER = Reader("feature network", "write it again as the documentation of train-decoder says")
SMALLEST_SIDE = 2 ** (len(BLOCKS) - 1)


class VGGFeatures:
    """Images [B, 3, H, W] in −1..1 → five maps [B, C, H / 2^k, W / 2^k]."""

    def __init__(self, state: Mapping[str, Tensor], device: torch.device) -> None:
        self._state = {name: tensor.float().to(device) for name, tensor in state.items()}
        self._mean, self._std = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (MEAN, STD))

    def __call__(self, images: Tensor) -> Sequence[Tensor]:
        """The maps, differentiable in the images."""
        x = ((images + 1) / 2 - self._mean) / self._std
        maps = []
        for number, block in enumerate(BLOCKS):
            x = F.max_pool2d(x, 2) if number else x
            for layer in block:
                weight, bias = (self._state[f"features.{layer}.{kind}"] for kind in ("weight", "bias"))
                x = F.relu(F.conv2d(x, weight, bias, padding=1))
            maps.append(x)
        return maps


def load_vgg_features(path: Path, device: torch.device) -> VGGFeatures:
    """The network of a safetensors file with torchvision's names; what belongs to its classifier is left out.

    The widths are those of the file. Raises InputError, naming the tensor, when it is not VGG-16.
    """
    tensors, _ = safetensors_file.read(path, READER)
    state: dict[str, Tensor] = {}
    width = 3
    for layer in (layer for block in BLOCKS for layer in block):
        name = f"features.{layer}"
        weight, bias = tensors.get(f"{name}.weight"), tensors.get(f"{name}.bias")
        if weight is None or bias is None:
            raise InputError(f"{path} is not VGG-16: it lacks {name}.weight or {name}.bias; {READER.remedy}")
        shapes = tuple(weight.shape), tuple(bias.shape)
        out = len(bias) if bias.ndim else 0
        if shapes != ((out, width, 3, 3), (out,)) or not (
            weight.is_floating_point() and bias.is_floating_point()
        ):
            raise InputError(
                f"{path} is not VGG-16: {name} has {list(weight.shape)} {weight.dtype} and {list(bias.shape)} "
                f"{bias.dtype}, and needs [out, {width}, 3, 3] and [out] of floating-point numbers; {READER.remedy}"
            )
        state[f"{name}.weight"], state[f"{name}.bias"] = weight, bias
        width = out
    rest = [name for name in tensors if name not in state and not name.startswith("classifier.")]
    if rest:
        raise InputError(f"{path} is not VGG-16: it has {', '.join(rest[:5])} as well; {READER.remedy}")
    return VGGFeatures(state, device)
