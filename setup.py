"""Builds the compiled backend (csrc/) beside refimpl/ops; metadata lives in pyproject.toml.

The CPU kernels are built whenever a C++ compiler is found, the CUDA kernels when torch has CUDA and an nvcc of the
same first version number is found too. REFIMPL_CUDA=1 turns a CUDA toolchain that is missing or does not fit into an
error; REFIMPL_CUDA=0 leaves the CUDA kernels out. TORCH_CUDA_ARCH_LIST chooses the architectures; without it the
kernels are built for all of CUDA_ARCHES that the toolkit knows, and as PTX for cards newer than the last of them.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import setup

CSRC = Path("csrc")
CPU_SOURCES = [
    "bind.cpp",
    "bind_network.cpp",
    "noise_cpu.cpp",
    "v_loss_cpu.cpp",
    "moments_cpu.cpp",
    "adamw_ema_cpu.cpp",
    "geglu_cpu.cpp",
    "group_norm_cpu.cpp",
    "layer_norm_cpu.cpp",
]
CUDA_SOURCES = [
    "bind_cuda.cpp",
    "noise.cu",
    "v_loss.cu",
    "moments.cu",
    "adamw_ema.cu",
    "geglu.cu",
    "group_norm.cu",
    "layer_norm.cu",
]
# Compute capability → the first CUDA toolkit that compiles for it.
CUDA_ARCHES = {
    "8.0": (11, 0),  # A100
    "8.6": (11, 1),  # RTX 30, A40
    "8.9": (11, 8),  # RTX 40, L4, L40S
    "9.0": (11, 8),  # H100, H200
    "10.0": (12, 8),  # B200
    "12.0": (12, 8),  # RTX 50, RTX PRO Blackwell
}
# No contraction of a·b + c except where formulas.h says so: every processor rounds alike.
CXX_FLAGS = [
    "-O3",
    "-std=c++20",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=off",
    "-fvisibility=hidden",
    "-g0",
]
NVCC_FLAGS = ["-O3", "-std=c++20", "-fmad=false", "--expt-relaxed-constexpr"]


def find_cuda_home() -> str | None:
    """The CUDA toolkit: CUDA_HOME, CUDA_PATH, or the one that nvcc on PATH says it belongs to."""
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        if home := os.environ.get(variable):
            return home if (Path(home) / "bin" / "nvcc").exists() else None
    if (nvcc := shutil.which("nvcc")) is None:
        return None
    command = [nvcc, "--dryrun", "-x", "cu", "-c", os.devnull]  # nvcc may be a script that calls another
    told = re.search(r"TOP=(.*)", subprocess.run(command, capture_output=True, text=True).stderr)
    return str(Path(told[1].strip()).resolve()) if told else None


def toolkit_version(cuda_home: str) -> tuple[int, int]:
    """Version of a CUDA toolkit, as its nvcc says it; (0, 0) where it says none."""
    command = [str(Path(cuda_home) / "bin" / "nvcc"), "--version"]
    told = re.search(r"release (\d+)\.(\d+)", subprocess.run(command, capture_output=True, text=True).stdout)
    return (int(told[1]), int(told[2])) if told else (0, 0)


def missing_cuda(torch_version: str, torch_cuda: str | None, cuda_home: str | None) -> str | None:
    """Why no CUDA kernels can be built for this torch with this toolkit; None where they can."""
    if torch_cuda is None:
        return f"torch {torch_version} has no CUDA"
    torch_has = f"torch {torch_version} has CUDA {torch_cuda}"
    if cuda_home is None:
        return f"{torch_has} and nvcc is not found: set CUDA_HOME"
    major, minor = toolkit_version(cuda_home)
    if major and str(major) != torch_cuda.split(".")[0]:
        return f"{torch_has} and the toolkit in {cuda_home} is CUDA {major}.{minor}, not {torch_cuda.split('.')[0]}.x"
    return None


def default_arches(toolkit: tuple[int, int]) -> str:
    """The architectures that a toolkit compiles for, as TORCH_CUDA_ARCH_LIST has them; the last one as PTX too."""
    known = [arch for arch, first in CUDA_ARCHES.items() if toolkit >= first] or list(CUDA_ARCHES)
    return ";".join(known) + "+PTX"


def cuda_include_folders(cuda_version: str) -> list[str]:
    """Headers of the CUDA libraries that torch's wheel depends on, which a bare toolkit may lack."""
    import torch

    folder = Path(torch.__file__).parents[1] / "nvidia" / f"cu{cuda_version.split('.')[0]}" / "include"
    return [str(folder)] if folder.is_dir() else []


def extensions() -> tuple[list, dict]:
    """The extension modules that can be built here, and the build commands for them."""
    cuda_home = find_cuda_home()
    if cuda_home is not None:
        os.environ["CUDA_HOME"] = cuda_home  # read when torch.utils.cpp_extension is imported
    try:
        import torch
        from torch.utils import cpp_extension
    except ImportError:
        print(
            "refimpl: torch is not installed in the build environment; building without kernels",
            file=sys.stderr,
        )
        return [], {}

    wanted = os.environ.get("REFIMPL_CUDA", "")
    missing = missing_cuda(torch.__version__, torch.version.cuda, cuda_home)
    if wanted == "1" and missing:
        sys.exit(f"refimpl: REFIMPL_CUDA=1, but {missing}")
    with_cuda = wanted != "0" and missing is None
    if wanted != "0" and torch.version.cuda is not None and missing:
        print(f"refimpl: building without CUDA kernels: {missing}", file=sys.stderr)
    compiler = os.environ.get("CXX", "c++")
    if shutil.which(compiler.split()[0]) is None and shutil.which("g++") is None:
        print(f"refimpl: no C++ compiler ({compiler}); building without kernels", file=sys.stderr)
        return [], {}

    sources = CPU_SOURCES + (CUDA_SOURCES if with_cuda else [])
    arguments = {
        "name": "refimpl.ops._kernels",
        "sources": [str(CSRC / source) for source in sources],
        "depends": sorted(str(header) for kind in ("*.h", "*.cuh") for header in CSRC.glob(kind)),
    }
    if with_cuda:
        assert cuda_home is not None  # or there would be no CUDA
        arches = os.environ.setdefault("TORCH_CUDA_ARCH_LIST", default_arches(toolkit_version(cuda_home)))
        define = f'-DREFIMPL_CUDA_ARCHES="{arches}"'
        extension = cpp_extension.CUDAExtension(
            extra_compile_args={"cxx": [*CXX_FLAGS, define], "nvcc": NVCC_FLAGS},
            include_dirs=cuda_include_folders(torch.version.cuda),
            **arguments,
        )
    else:
        extension = cpp_extension.CppExtension(extra_compile_args={"cxx": CXX_FLAGS}, **arguments)
    return [extension], {"build_ext": cpp_extension.BuildExtension}


if __name__ == "__main__":
    ext_modules, cmdclass = extensions()
    setup(ext_modules=ext_modules, cmdclass=cmdclass)
