"""The reconstruction losses."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from refimpl.autoencoder.decoder_losses import l1_loss, load_features, perceptual_loss
from refimpl.errors import InputError

CPU = torch.device("cpu")
FIRST, SECOND = torch.ones(2, 3, 4, 4), torch.zeros(2, 3, 4, 4)


class Edges(torch.nn.Module):
    """Differences along rows and along columns, as the feature maps of two layers."""

    def forward(self, x: Tensor) -> list[Tensor]:
        return [x[..., 1:] - x[..., :-1], x[:, :, 1:] - x[:, :, :-1]]


class Numbers(torch.nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean()


def save(module: torch.nn.Module, path: Path) -> Path:
    torch.jit.save(torch.jit.script(module), str(path))
    return path


def test_l1() -> None:
    assert l1_loss(FIRST, SECOND).item() == 1


def test_the_distance_is_that_of_unit_vectors() -> None:
    """(1, 0, 0) and (0, 3, 0) are √2 apart as unit vectors; positions where all features are 0 stay 0."""
    one, other = torch.zeros(1, 3, 1, 2), torch.zeros(1, 3, 1, 2)
    one[0, 0, 0, 0], other[0, 1, 0, 0] = 1.0, 3.0
    assert perceptual_loss(lambda x: [x], one, other).item() == pytest.approx((2 + 0) / 2)
    assert perceptual_loss(lambda x: [x, 5 * x], one, one).item() == 0


def test_a_gradient_reaches_the_restored_picture_alone() -> None:
    restored = torch.rand(1, 3, 4, 4, requires_grad=True)
    images = torch.rand(1, 3, 4, 4, requires_grad=True)
    perceptual_loss(lambda x: [x, x[..., :2]], restored, images).backward()
    assert restored.grad is not None
    assert torch.isfinite(restored.grad).all()
    assert images.grad is None


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_network_is_read_from_a_file(tmp_path: Path) -> None:
    features = load_features(save(Edges(), tmp_path / "edges.pt"), 8, CPU, trusts_code=True)
    assert [m.shape for m in features(FIRST)] == [(2, 3, 4, 3), (2, 3, 3, 4)]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_files_that_are_no_such_network_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.pt does not exist"):
        load_features(tmp_path / "none.pt", 8, CPU)
    (tmp_path / "text.pt").write_text("not a network")
    with pytest.raises(InputError, match=r"text\.pt cannot be used on images of 8 px"):
        load_features(tmp_path / "text.pt", 8, CPU, trusts_code=True)
    with pytest.raises(InputError, match=r"must return a tensor or a list of tensors \[B, C, h, w\]"):
        load_features(save(Numbers(), tmp_path / "numbers.pt"), 8, CPU, trusts_code=True)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_code_in_a_file_is_run_only_where_the_user_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(Edges(), tmp_path / "edges.pt")
    monkeypatch.setattr(torch.jit, "load", lambda *_, **__: pytest.fail("the file was loaded"))
    with pytest.raises(
        InputError, match=r"edges\.pt is taken for TorchScript, which brings code .* --trust-perceptual"
    ):
        load_features(path, 8, CPU)
