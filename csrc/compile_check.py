"""Compiles every .cu file for each architecture and prints what each kernel uses. Fails on a register spill, and on
a kernel for aligned tensors that reads or writes them by fewer than 16 bytes.

Needs nvcc and nvdisasm, no GPU and no torch: python csrc/compile_check.py [--arch 90] [FILE.cu ...]
Both are taken from CUDA_HOME, CUDA_PATH or PATH, in this order; pip has nvdisasm too, as nvidia-cuda-nvdisasm.
"issued" counts the instructions of a thread on the shortest way through a tile, per element that it stores.
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

import sass

HERE = Path(__file__).resolve().parent
ARCHES = ("80", "90", "100")  # A100; H100 and H200; B200
PROGRAM = "standalone_check.cu"  # host code that calls the launchers: no kernel is in it
NVCC_FLAGS = ("-O3", "-std=c++20", "-fmad=false", "--expt-relaxed-constexpr")  # as in setup.py
QUAD = 16  # bytes
BYTES = {"float": 4, "bf16": 2, "f16": 2}
# Accesses that are narrower for a reason: loads of scalars of a sample (in two formats, and twice where the compiler
# unrolls the loop over tiles), a tensor or a row, stores of a tile's partial results or of a row's statistics.
NARROW_LOADS = {"noise_kernel": 8, "loss_kernel": 12, "adamw_ema_kernel": 4, "layer_norm_slopes_kernel": 2}
NARROW_STORES = {"loss_kernel": 1, "moments_kernel": 12, "layer_norm_kernel": 2}


class Usage(NamedTuple):
    """What the assembler reports for one kernel on one architecture."""

    file: str
    arch: str
    kernel: str
    registers: int
    spilled: int  # bytes of spill stores and loads
    stack: int  # bytes of stack frame
    shared: int  # bytes of static shared memory
    issued: float | None  # instructions per element; None unless it is for aligned tensors
    faults: list[str]  # what is wrong with its accesses


def find_tool(name: str) -> str:
    """The path of a tool of the CUDA toolkit. Raises SystemExit where there is none."""
    folders = [Path(home) / "bin" for home in map(os.environ.get, ("CUDA_HOME", "CUDA_PATH")) if home]
    folders += map(Path, os.get_exec_path())
    folders += [folder for path in sys.path for folder in Path(path).glob("nvidia/cu*/bin")]
    path = shutil.which(name, path=os.pathsep.join(map(str, folders)))
    if path is None:
        sys.exit(
            f"{name} not found: install the CUDA toolkit, and set CUDA_HOME or PATH (pip has nvidia-cuda-nvdisasm)"
        )
    return path


def readable(mangled: str) -> str:
    """The kernel's C++ name without its parameters and namespaces."""
    filt = shutil.which("c++filt") or shutil.which("cu++filt")
    if filt is None:
        sys.exit("c++filt not found: install binutils")
    name = subprocess.run([filt, mangled], capture_output=True, text=True, check=True).stdout.strip()
    name = re.sub(r"refimpl::(cuda::)?(\(anonymous namespace\)::)?", "", name)
    name = re.sub(r"\((Source|Order|bool)\)", "", name.removeprefix("void "))
    return name[: name.rindex("(")] if name.endswith(")") else name


def place_of_aligned(source: str) -> dict[str, int]:
    """Which template argument of each kernel says that its tensors are aligned: the parameter `bool ALIGNED`."""
    places = {}
    for parameters, kernel in re.findall(r"template <([^>]*)>\s*__global__[^;{]*?\b(\w+_kernel)\(", source):
        names = [parameter.split()[-1] for parameter in parameters.split(",")]
        if "ALIGNED" in names:
            places[kernel] = names.index("ALIGNED")
    return places


def narrow_accesses(name: str, kernel: sass.Kernel) -> list[str]:
    """What is wrong with the accesses of a kernel for aligned tensors."""
    faults = []
    for what, kind, allowed in (("loads", "LD", NARROW_LOADS), ("stores", "ST", NARROW_STORES)):
        widths = sass.global_accesses(kernel, kind)
        narrow = sum(width < QUAD for width in widths)
        if narrow > allowed.get(name, 0):
            faults.append(f"{narrow} of {len(widths)} {what} are narrower than {QUAD} bytes")
    if max(sass.global_accesses(kernel, "LD"), default=0) < QUAD:
        faults.append(f"no load of {QUAD} bytes")
    return faults


def compile_file(source: Path, arch: str, folder: Path) -> list[Usage]:
    """The usage of each kernel in one file. Raises SystemExit with nvcc's output when it does not compile."""
    target, cubin = f"arch=compute_{arch},code=sm_{arch}", folder / f"{source.stem}.cubin"
    command = [find_tool("nvcc"), *NVCC_FLAGS, f"-I{HERE}", "-gencode", target, "-Xptxas", "-v", "-cubin"]
    command += [str(source.resolve()), "-o", str(cubin)]
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
    command = [find_tool("nvdisasm"), "-c", str(cubin)]
    disassembly = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    code = {kernel.name: kernel for kernel in sass.kernels(disassembly)}
    places = place_of_aligned(source.read_text())
    usages = []
    for kernel, stack, stores, loads, registers, rest in found:
        shared = re.search(r"(\d+) bytes smem", rest)
        full = readable(kernel)
        name, _, arguments = full.rstrip(">").partition("<")
        arguments = arguments.split(", ")
        issued, faults = None, []
        if name in places and arguments[places[name]] == "true":
            faults = narrow_accesses(name, code[kernel])
            issued = issued_per_element(code[kernel], arguments[0])
        usage = Usage(
            source.name,
            f"sm_{arch}",
            full,
            int(registers),
            int(stores) + int(loads),
            int(stack),
            int(shared[1]) if shared else 0,
            issued,
            faults,
        )
        usages.append(usage)
    return usages


def issued_per_element(kernel: sass.Kernel, kind: str) -> float | None:
    """Instructions issued per element of type `kind` stored in whole quads; None if it stores none."""
    elements = sum(w for w in sass.global_accesses(kernel, "ST") if w >= QUAD) // BYTES.get(kind, 4)
    return sass.issued_per_tile(kernel) / elements if elements else None


def main() -> None:
    """Prints one line per kernel and architecture; exits with status 1 if any kernel has a fault."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--arch", action="append", choices=ARCHES, help="compile only for this architecture (may be repeated)"
    )
    parser.add_argument("files", nargs="*", type=Path, help="instead of those beside this script")
    arguments = parser.parse_args()
    files = arguments.files or [file for file in sorted(HERE.glob("*.cu")) if file.name != PROGRAM]
    usages: list[Usage] = []
    with tempfile.TemporaryDirectory() as folder:
        for source in files:
            for arch in arguments.arch or ARCHES:
                usages += compile_file(source, arch, Path(folder))
    columns = ("registers", "spilled", "stack", "shared", "issued")
    print(f"{'file':<12} {'arch':<7}" + "".join(f"{column:>10}" for column in columns) + "  kernel")
    for u in usages:
        issued = "" if u.issued is None else f"{u.issued:.1f}"
        numbers = (u.registers, u.spilled, u.stack, u.shared, issued)
        print(f"{u.file:<12} {u.arch:<7}" + "".join(f"{number:>10}" for number in numbers) + f"  {u.kernel}")
    for u in usages:
        for fault in u.faults:
            print(f"{u.file}, {u.arch}: {u.kernel}: {fault}")
    spilling, narrow = sum(u.spilled > 0 for u in usages), sum(bool(u.faults) for u in usages)
    print(f"{len(usages)} kernels; {spilling} spill registers, {narrow} access aligned tensors in pieces")
    if spilling or narrow:
        sys.exit(1)


if __name__ == "__main__":
    main()
