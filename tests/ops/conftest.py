"""Devices of the kernel tests, the CPU always and CUDA where there is one, and dtypes."""

import os

import pytest
import torch

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def missing_cuda() -> str | None:
    """Why the CUDA kernels cannot be tested here, or None."""
    from refimpl.ops import _kernels

    if not torch.cuda.is_available():
        return "no CUDA device"
    if not _kernels.cuda_arches:
        return "the extension was built without CUDA: reinstall with REFIMPL_CUDA=1"
    return None


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request) -> str:
    """A device with kernels; REFIMPL_REQUIRE_CUDA=1 makes a missing GPU a failure instead of a skip."""
    if request.param == "cuda" and (reason := missing_cuda()):
        if os.environ.get("REFIMPL_REQUIRE_CUDA") == "1":
            pytest.fail(f"REFIMPL_REQUIRE_CUDA=1, but {reason}")
        pytest.skip(reason)
    return request.param


@pytest.fixture
def cuda() -> str:
    """The CUDA device, for tests that make sense only there."""
    if reason := missing_cuda():
        if os.environ.get("REFIMPL_REQUIRE_CUDA") == "1":
            pytest.fail(f"REFIMPL_REQUIRE_CUDA=1, but {reason}")
        pytest.skip(reason)
    return "cuda"


@pytest.fixture(params=DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
def dtype(request, device) -> torch.dtype:
    """A dtype that the kernels take on the device."""
    if device == "cuda" and request.param == torch.float64:
        pytest.skip("the CUDA kernels have no float64: the reference runs there")
    return request.param
