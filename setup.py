"""Builds the compiled backend (csrc/) beside refimpl/ops; metadata lives in pyproject.toml.

The CPU kernels are built whenever a C++ compiler is found, the CUDA kernels when torch has CUDA and nvcc is
found too. REFIMPL_CUDA=1 turns a missing CUDA toolchain into an error; REFIMPL_CUDA=0 leaves the CUDA kernels
out. TORCH_CUDA_ARCH_LIST chooses the architectures.
"""

import os
import shutil
import sys
from pathlib import Path

from setuptools import setup

CSRC = Path("csrc")
CPU_SOURCES = ["bind.cpp", "noise_cpu.cpp", "v_loss_cpu.cpp", "moments_cpu.cpp"]
CUDA_SOURCES = ["bind_cuda.cpp", "noise.cu", "v_loss.cu", "moments.cu"]
CUDA_ARCHES = "8.0;9.0;10.0"  # A100; H100 and H200; B200
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


def extensions() -> tuple[list, dict]:
    """The extension modules that can be built here, and the build commands for them."""
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
    nvcc = cpp_extension.CUDA_HOME is not None and (Path(cpp_extension.CUDA_HOME) / "bin" / "nvcc").exists()
    with_cuda = wanted != "0" and torch.version.cuda is not None and nvcc
    if wanted == "1" and not with_cuda:
        sys.exit(
            f"refimpl: REFIMPL_CUDA=1, but torch {torch.__version__} has "
            f"{'CUDA ' + torch.version.cuda if torch.version.cuda else 'no CUDA'} and nvcc is "
            f"{'found' if nvcc else 'not found: set CUDA_HOME'}"
        )
    compiler = os.environ.get("CXX", "c++")
    if shutil.which(compiler.split()[0]) is None and shutil.which("g++") is None:
        print(f"refimpl: no C++ compiler ({compiler}); building without kernels", file=sys.stderr)
        return [], {}

    sources = CPU_SOURCES + (CUDA_SOURCES if with_cuda else [])
    arguments = {
        "name": "refimpl.ops._kernels",
        "sources": [str(CSRC / source) for source in sources],
        "depends": sorted(str(header) for header in CSRC.glob("*.h")),
    }
    if with_cuda:
        arches = os.environ.setdefault("TORCH_CUDA_ARCH_LIST", CUDA_ARCHES)
        define = f'-DREFIMPL_CUDA_ARCHES="{arches}"'
        extension = cpp_extension.CUDAExtension(
            extra_compile_args={"cxx": [*CXX_FLAGS, define], "nvcc": NVCC_FLAGS}, **arguments
        )
    else:
        extension = cpp_extension.CppExtension(extra_compile_args={"cxx": CXX_FLAGS}, **arguments)
    return [extension], {"build_ext": cpp_extension.BuildExtension}


ext_modules, cmdclass = extensions()
setup(ext_modules=ext_modules, cmdclass=cmdclass)
