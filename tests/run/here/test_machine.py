"""The optimizer's library and the GPU, found or not without torch's help."""

import importlib.util
import sys
from pathlib import Path

import pytest

from refimpl.run.here.machine import LIBRARIES, device_problem, library_problem


def without_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    """The optimizers' libraries are not installed; all else is."""
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec",
        lambda name, package=None: None if name in LIBRARIES.values() else find(name, package),
    )


def test_a_library_that_is_lacking_is_named_with_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    without_libraries(monkeypatch)
    assert library_problem("adamw") == library_problem("adafactor") == ""
    assert library_problem("prodigy").startswith(
        "optimizer.kind 'prodigy' needs the prodigyopt package: pip install"
    )


@pytest.fixture
def without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delitem(sys.modules, "torch")


@pytest.mark.usefixtures("without_torch")
@pytest.mark.parametrize(
    "sign", ["proc/driver/nvidia/gpus/0000:01:00.0", "dev/nvidia0", "dev/nvmap", "dev/dxg"]
)
def test_a_gpu_shows_in_the_system_s_folders(
    sign: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusal = "train.device 'cuda': torch sees no GPU; use --train.device cpu"
    assert device_problem("cuda", tmp_path) == refusal
    (tmp_path / sign).parent.mkdir(parents=True)
    (tmp_path / sign).touch()
    assert device_problem("cuda", tmp_path) == ""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert device_problem("cuda", tmp_path) == refusal


@pytest.mark.usefixtures("without_torch")
def test_another_system_or_device_is_not_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert device_problem("auto", tmp_path) == device_problem("cpu", tmp_path) == ""
    monkeypatch.setattr(sys, "platform", "win32")
    assert device_problem("cuda", tmp_path) == ""


@pytest.mark.parametrize("sees", [True, False])
def test_torch_is_asked_where_it_is_loaded(
    sees: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: sees)
    assert bool(device_problem("cuda", tmp_path)) is not sees
