"""Builds, links and imports the CPU and CUDA kernels in an environment whose torch has CUDA; needs no GPU.

    python csrc/cuda_build.py

The environment must have torch (a CUDA build), numpy, setuptools, ninja and pybind11; nvcc is taken from CUDA_HOME
or PATH. Everything is built in a temporary folder: an extension that is already installed is left untouched.
Then it checks that each op has a kernel for every dispatch key, and that tracing with fake tensors works on CUDA.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OPS = (
    "add_noise",
    "add_keyed_noise",
    "keyed_normal",
    "v_loss",
    "keyed_v_loss",
    "v_loss_forward",
    "v_loss_backward",
    "v_loss_correct_",
    "channel_moments",
    "geglu",
    "geglu_backward",
    "group_norm_silu",
    "group_norm_silu_forward",
    "group_norm_silu_backward",
    "layer_norm",
    "layer_norm_forward",
    "layer_norm_backward",
    "adamw_ema_",
)
DIFFERENTIABLE = (
    "add_noise",
    "add_keyed_noise",
    "v_loss",
    "keyed_v_loss",
    "v_loss_backward",
    "channel_moments",
    "geglu",
    "geglu_backward",
    "group_norm_silu",
    "group_norm_silu_backward",
    "layer_norm",
    "layer_norm_backward",
)


def build(folder: Path) -> None:
    """Copies the sources into folder and builds the extension in its refimpl/ops."""
    shutil.copytree(
        ROOT / "refimpl", folder / "refimpl", ignore=shutil.ignore_patterns("*.so", "__pycache__")
    )
    shutil.copytree(ROOT / "csrc", folder / "csrc", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    (folder / "README.md").touch()  # named in pyproject.toml
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    subprocess.run(command, cwd=folder, env={**os.environ, "REFIMPL_CUDA": "1"}, check=True)


def check() -> None:
    """Imports the extension from the current folder and checks its registrations."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    from refimpl.ops import _kernels, adamw_ema_kernel, load_ops

    ops = load_ops("kernel")
    print(f"torch {torch.__version__}, built for {_kernels.cuda_arches}, CPU kernels {_kernels.isa()}")
    registered = torch._C._dispatch_has_kernel_for_dispatch_key
    for op in OPS:
        keys = ["CPU", "CUDA", "Meta"] + (["Autograd"] if op in DIFFERENTIABLE else [])
        missing = [key for key in keys if not registered(f"refimpl::{op}", key)]
        print(f"refimpl::{op:<16} {' '.join(keys)}")
        if missing:
            sys.exit(f"refimpl::{op} has no kernel for {', '.join(missing)}")

    for device in ("cuda", "cpu", "meta"):
        with FakeTensorMode() if device != "meta" else torch.device("meta"):
            x0 = torch.empty(2, 4, 6, 5, device=device, dtype=torch.bfloat16)
            eps, prediction = torch.empty_like(x0), torch.empty_like(x0).to(memory_format=torch.channels_last)
            key = torch.empty(2, 2, dtype=torch.int64, device=device)
            alpha = sigma = weight = torch.empty(2, device=device)
            results = {
                "add_noise": (ops.add_noise(x0, eps, alpha, sigma), x0.shape, torch.bfloat16),
                "add_keyed_noise": (
                    ops.add_keyed_noise(x0, key, alpha, sigma, 0.05),
                    x0.shape,
                    torch.bfloat16,
                ),
                "keyed_normal": (ops.keyed_normal(key, (4, 6, 5)), x0.shape, torch.float32),
                "v_loss": (ops.v_loss(prediction, x0, eps, alpha, sigma, weight), (2,), torch.float32),
                "keyed_v_loss": (
                    ops.keyed_v_loss(prediction, x0, key, alpha, sigma, weight),
                    (2,),
                    torch.float32,
                ),
                "channel_moments": (ops.channel_moments(x0)[1], (4,), torch.float64),
                "geglu": (ops.geglu(x0.flatten(2)), (2, 4, 15), torch.bfloat16),
                "group_norm_silu": (
                    ops.group_norm_silu(x0, x0.new_empty(4), x0.new_empty(4), 2, 1e-5),
                    x0.shape,
                    torch.bfloat16,
                ),
                "layer_norm": (
                    ops.layer_norm(x0, x0.new_empty(5), x0.new_empty(5), 1e-5),
                    x0.shape,
                    torch.bfloat16,
                ),
            }
        for name, (result, shape, dtype) in results.items():
            if (result.shape, result.dtype, result.device.type) != (torch.Size(shape), dtype, device):
                sys.exit(
                    f"{name} on fake {device} tensors gave {result.dtype} {list(result.shape)} {result.device}"
                )
    print("fake kernels agree on cuda, cpu and meta")

    x0, eps, prediction = torch.randn(3, 2, 4, 8, 8).unbind()
    alpha = sigma = weight = torch.full((2,), 0.5)
    expected = load_ops("reference").v_loss(prediction, x0, eps, alpha, sigma, weight)
    torch.testing.assert_close(ops.v_loss(prediction, x0, eps, alpha, sigma, weight), expected)
    one, half = torch.ones(3), torch.full((), 0.5)
    lists = [[one.clone()] for _ in range(5)]
    adamw_ema_kernel.adamw_ema_(*lists, [half.clone()], half, 0 * half, 0.1, 0.9, 0.999, 1e-8, 0.01, 0.5)
    torch.testing.assert_close(lists[4][0], (one + lists[0][0]) / 2)
    print("the CPU kernels of the same binary run")


def main() -> None:
    """Builds in a temporary folder, then checks in a fresh process there."""
    if sys.argv[1:] == ["--check"]:
        sys.path.insert(0, os.getcwd())
        return check()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        build(folder)
        subprocess.run([sys.executable, str(Path(__file__).resolve()), "--check"], cwd=folder, check=True)
    return None


if __name__ == "__main__":
    main()
