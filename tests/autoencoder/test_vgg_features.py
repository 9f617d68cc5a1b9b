"""VGG-16's maps from a safetensors file, against torch's own layers, and files that are something else."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from refimpl.autoencoder.decoder_losses import load_features
from refimpl.autoencoder.vgg_features import BLOCKS, MEAN, STD, load_vgg_features
from refimpl.errors import InputError
from refimpl.storage import safetensors_file
from tests.tolerances import NETWORK_FLOAT32

CPU = torch.device("cpu")
WIDTHS = (4, 6, 8, 10, 12)


def network() -> nn.Sequential:
    """Configuration D with narrow layers, as torchvision lays it out: a rectifier after every convolution."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    width = 3
    for block, out in zip(BLOCKS, WIDTHS, strict=True):
        for _ in block:
            layers += [nn.Conv2d(width, out, 3, padding=1), nn.ReLU(inplace=False)]
            width = out
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers)


def write(path: Path, **changes: Tensor | None) -> Path:
    state = {f"features.{name}": value for name, value in network().state_dict().items()}
    state |= {"classifier.0.weight": torch.zeros(2, 2)}
    for name, value in changes.items():
        key = name.replace("__", ".")
        if value is None:
            del state[key]
        else:
            state[key] = value
    safetensors_file.write(path, state)
    return path


def test_the_maps_are_those_after_each_blocks_last_rectifier(tmp_path: Path) -> None:
    images = torch.rand(2, 3, 32, 48) * 2 - 1
    found = load_vgg_features(write(tmp_path / "vgg16.safetensors"), CPU)(images)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    x, expected = ((images + 1) / 2 - mean) / std, []
    for layer in network():
        if isinstance(layer, nn.MaxPool2d):
            expected.append(x)
        x = layer(x)
    assert [tuple(maps.shape) for maps in found] == [
        (2, width, 32 >> level, 48 >> level) for level, width in enumerate(WIDTHS)
    ]
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=NETWORK_FLOAT32)


def test_a_gradient_reaches_the_images(tmp_path: Path) -> None:
    images = torch.rand(1, 3, 16, 16, requires_grad=True)
    features = load_features(write(tmp_path / "vgg16.safetensors"), 16, CPU)
    sum(maps.sum() for maps in features(images)).backward()
    assert images.grad is not None
    assert images.grad.isfinite().all()
    assert images.grad.any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features__10__bias": None}, r"it lacks features\.10\.weight or features\.10\.bias"),
        ({"features__2__weight": torch.zeros(4, 5, 3, 3)}, r"features\.2 has \[4, 5, 3, 3\] .* needs \[out, 4, "),
        ({"features__2__bias": torch.tensor(1.0)}, r"features\.2 has .* and \[\] torch\.float32"),
        ({"features__0__bias": torch.zeros(4, dtype=torch.int64)}, r"features\.0 has .* of floating-point numbers"),
        ({"features__30__weight": torch.zeros(1)}, r"it has features\.30\.weight as well"),
    ],
)  # fmt: skip
def test_what_is_not_vgg16_is_named(changes: dict[str, Tensor | None], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"x\.safetensors is not VGG-16: {message}"):
        load_vgg_features(write(tmp_path / "x.safetensors", **changes), CPU)


def test_images_below_the_last_map_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"decoder\.size 15 px is below VGG-16's smallest image, 16 px"):
        load_features(write(tmp_path / "vgg16.safetensors"), 15, CPU)
