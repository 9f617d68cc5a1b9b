"""The card that is planned for, and one that torch can't see."""

from pathlib import Path

import pytest
import torch

from refimpl.errors import InputError
from refimpl.train.budget.cards import CARDS
from refimpl.train.first import card
from refimpl.train.first.card import backend_here, planned_card, unseen_gpu


@pytest.fixture
def without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.usefixtures("without_gpu")
def test_named_cards_and_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(card, "unseen_gpu", lambda: "")
    assert planned_card("auto") is None
    assert planned_card("cpu") is None
    assert planned_card("rtx4090") == CARDS["rtx4090"]
    assert backend_here() == "reference"
    with pytest.raises(InputError, match="the nearest is 'rtx4090'"):
        planned_card("rtx490")


@pytest.mark.usefixtures("without_gpu")
@pytest.mark.parametrize(
    ("cuda", "said"), [(None, "built for the CPU only"), ("13.0", "built for CUDA 13.0")]
)
def test_a_card_that_torch_cannot_see_is_named(
    cuda: str | None, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(card, "unseen_gpu", lambda: "/dev/nvidia0")
    monkeypatch.setattr(torch.version, "cuda", cuda)
    with pytest.raises(InputError) as error:
        planned_card("auto")
    message = str(error.value)
    assert message.startswith("this machine has a GPU (/dev/nvidia0) that torch can't see: ")
    assert said in message
    assert message.endswith("or train on the CPU with --gpu cpu")
    assert planned_card("cpu") is None


def test_gpus_are_found_by_the_driver_or_as_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    driver, devices = tmp_path / "gpus", tmp_path / "dev"
    devices.mkdir()
    (devices / "nvidiactl").touch()
    assert unseen_gpu(driver, devices) == ""
    (devices / "nvidia0").touch()
    assert unseen_gpu(driver, devices) == str(devices / "nvidia0")
    (driver / "0000:01:00.0").mkdir(parents=True)
    assert unseen_gpu(driver, devices) == str(driver / "0000:01:00.0")
    for hidden in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        assert unseen_gpu(driver, devices) == ""
