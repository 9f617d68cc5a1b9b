"""Compiles every .cu file for each architecture and prints each kernel's resource usage; register spills are errors.

Needs only nvcc (no GPU, no torch): python csrc/compile_check.py [--arch 90]
nvcc is taken from CUDA_HOME, CUDA_PATH or PATH, in this order.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
ARCHES = ("80", "90", "100")  # A100; H100 and H200; B200
PROGRAM = "standalone_check.cu"  # host code that calls the launchers: no kernel is in it
NVCC_FLAGS = ("-O3", "-std=c++20", "-fmad=false", "--expt-relaxed-constexpr")  # as in setup.py


class Usage(NamedTuple):
    """What the assembler reports for one kernel on one architecture."""

    file: str
    arch: str
    kernel: str
    registers: int
    spilled: int  # bytes of spill stores and loads
    stack: int  # bytes of stack frame
    shared: int  # bytes of static shared memory


def find_nvcc() -> str | None:
    """The path of nvcc from CUDA_HOME or CUDA_PATH, else from PATH; None if there is none."""
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        if home := os.environ.get(variable):
            nvcc = Path(home) / "bin" / "nvcc"
            if nvcc.exists():
                return str(nvcc)
    return shutil.which("nvcc")


def readable(mangled: str) -> str:
    """The kernel's C++ name without its parameters and namespaces."""
    filt = shutil.which("c++filt") or shutil.which("cu++filt")
    if filt is None:
        return mangled
    name = subprocess.run([filt, mangled], capture_output=True, text=True, check=True).stdout.strip()
    name = re.sub(r"refimpl::(cuda::)?(\(anonymous namespace\)::)?", "", name)
    name = re.sub(r"\((Source|Order|bool)\)", "", name.removeprefix("void "))
    return name[: name.rindex("(")] if name.endswith(")") else name


def compile_file(nvcc: str, source: Path, arch: str, folder: Path) -> list[Usage]:
    """The usage of each kernel in one file. Raises SystemExit with nvcc's output when it does not compile."""
    target = f"arch=compute_{arch},code=sm_{arch}"
    command = [nvcc, *NVCC_FLAGS, "-gencode", target, "-Xptxas", "-v", "-c", str(source), "-o", os.devnull]
    result = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    if result.returncode:
        sys.exit(f"{' '.join(command)}\n{result.stdout}{result.stderr}")
    found = re.findall(
        r"Compiling entry function '(\w+)'.*\n"
        r".*Function properties.*\n"
        r"\s*(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads\n"
        r".*?Used (\d+) registers(.*)\n",
        result.stderr,
    )
    if not found:
        sys.exit(f"{source.name}: no kernel in the assembler's report:\n{result.stderr}")
    usages = []
    for kernel, stack, stores, loads, registers, rest in found:
        shared = re.search(r"(\d+) bytes smem", rest)
        usages.append(
            Usage(
                source.name,
                f"sm_{arch}",
                readable(kernel),
                int(registers),
                int(stores) + int(loads),
                int(stack),
                int(shared[1]) if shared else 0,
            )
        )
    return usages


def main() -> None:
    """Prints one line per kernel and architecture; exits with status 1 if any kernel spills."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--arch", action="append", choices=ARCHES, help="compile only for this architecture (may be repeated)"
    )
    arguments = parser.parse_args()
    nvcc = find_nvcc()
    if nvcc is None:
        sys.exit("nvcc not found: install the CUDA toolkit, and set CUDA_HOME or PATH")
    usages: list[Usage] = []
    with tempfile.TemporaryDirectory() as folder:
        for source in sorted(HERE.glob("*.cu")):
            if source.name == PROGRAM:
                continue
            for arch in arguments.arch or ARCHES:
                usages += compile_file(nvcc, source, arch, Path(folder))
    print(f"{'file':<12} {'arch':<7} {'registers':>9} {'spilled':>8} {'stack':>6} {'shared':>7}  kernel")
    for u in usages:
        print(
            f"{u.file:<12} {u.arch:<7} {u.registers:>9} {u.spilled:>8} {u.stack:>6} {u.shared:>7}  {u.kernel}"
        )
    spilling = [u for u in usages if u.spilled]
    print(f"{len(usages)} kernels, {len(spilling)} of them spill registers")
    if spilling:
        sys.exit(1)


if __name__ == "__main__":
    main()
