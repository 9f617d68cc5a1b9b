"""Full-size checkpoints: an fp16 single file into a bf16 UNet, and single file ↔ diffusers folder.

python -m benchmarks.bench_interop [--rounds N] [--folder F]        writes results/interop.json

The references of the same rounds: reading the UNet's bytes through safetensors (`get_tensor(key).clone()`), and
copying the file. Writing and copying end when the bytes are on the disk (fsync). Every step runs in a fresh process,
so that none profits from memory that another has had; before each its input is read once, into the page cache, and
what the others have left there is dropped.
Needs 28 GB of disk and 8 GB of memory. Exits with 1 when a goal is missed.
"""

import argparse
import importlib.metadata
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch
from safetensors import safe_open

from benchmarks.timing import write
from refimpl.interop import diffusers_folder, single_file
from refimpl.interop.checkpoint import Checkpoint
from refimpl.interop.network.clip_keys import CLIP_BIGG, CLIP_L, tower_shapes
from refimpl.interop.network.networks import unet_of
from refimpl.interop.single_file.layout import UNET, unet_shapes, vae_shapes
from refimpl.latents.vae import VAEConfig
from refimpl.model.unet import UNet, UNetConfig

LOAD_GOAL, CONVERT_GOAL = 1.3, 2.5
SCRATCH = (
    64 << 20
)  # bytes beside the weights: the pieces converted in, the network's Python objects, the header
BLOCK = 1 << 24  # random values, repeated: what they are does not change the time to move them


def random_checkpoint() -> Checkpoint:
    """SDXL base at full size in fp16, 6.9 GB as a file; every tensor is a view of one block, or repeats it."""
    block = torch.randn(BLOCK, generator=torch.Generator().manual_seed(0)).half()

    def fill(shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
        filled = {}
        for key, shape in shapes.items():
            size = int(torch.Size(shape).numel())
            values = block[:size] if size <= BLOCK else block.repeat(-(-size // BLOCK))[:size]
            filled[key] = values.view(shape)
        return filled

    return Checkpoint(
        unet=fill(dict(unet_shapes(UNetConfig.sdxl()))),
        vae=fill(dict(vae_shapes(VAEConfig.sdxl()))),
        text_l=fill(tower_shapes(CLIP_L)),
        text_g=fill(tower_shapes(CLIP_BIGG)),
    )


def read(file: Path) -> None:
    """The UNet's bytes into memory, through safetensors."""
    with safe_open(str(file), "pt") as opened:
        tensors = {key: opened.get_tensor(key).clone() for key in opened.keys() if key.startswith(UNET)}  # noqa: SIM118
    assert len(tensors) == 1680


def load(file: Path) -> None:
    """The bf16 UNet, from the file's name to a network."""
    unet = unet_of(single_file.load(file), str(file), torch.bfloat16)
    assert sum(parameter.numel() for parameter in unet.parameters()) == 2_567_463_684


def copy(file: Path) -> None:
    """The file, on the disk a second time."""
    target = file.with_name("copy.safetensors")
    shutil.copyfile(file, target)
    with target.open("rb") as opened:
        os.fsync(opened.fileno())


def to_diffusers(file: Path) -> None:
    """Single file to diffusers folder."""
    diffusers_folder.save(single_file.load(file), file.with_name("diffusers"))


def to_single(file: Path) -> None:
    """That folder to a single file."""
    single_file.save(diffusers_folder.load(file.with_name("diffusers")), file.with_name("again.safetensors"))


STEPS = {"read": read, "load": load, "copy": copy, "to_diffusers": to_diffusers, "to_single": to_single}


def anonymous_memory() -> int:
    """Bytes of this process that are no file's."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(line for line in status.splitlines() if line.startswith("RssAnon")).split()[1])


def one_step(name: str, file: Path, watch: bool) -> None:
    """Runs in a process of its own: prints seconds, and with `watch` by how much memory grew at its peak."""
    folder = file.with_name("diffusers")
    inputs = sorted(folder.rglob("*.safetensors")) if name == "to_single" else [file]
    for other in set(file.parent.rglob("*.safetensors")) - set(inputs):
        with other.open("rb") as opened:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    for source in inputs:
        with source.open("rb", buffering=0) as opened:
            while opened.read(1 << 24):
                pass
    with torch.device("meta"):
        UNet(UNetConfig.tiny())  # what torch imports at the first use is not timed, as no other import is
    before, peak, done = anonymous_memory(), 0, threading.Event()

    def sample() -> None:
        nonlocal peak
        while not done.wait(0.002):
            peak = max(peak, anonymous_memory())

    thread = threading.Thread(target=sample)
    if watch:
        thread.start()
    start = time.perf_counter()
    STEPS[name](file)
    seconds = time.perf_counter() - start
    if watch:
        done.set()
        thread.join()
    print(json.dumps({"seconds": seconds, "memory": peak - before}))


def run(name: str, file: Path, watch: bool = False) -> dict[str, float]:
    """One step in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.bench_interop", "--step", name, "--folder", str(file)]
    result = subprocess.run(
        [*command, *(["--watch"] if watch else [])], stdout=subprocess.PIPE, text=True, check=True
    )
    for made in ("copy.safetensors", "again.safetensors"):
        file.with_name(made).unlink(missing_ok=True)
    return json.loads(result.stdout.splitlines()[-1])


def main() -> None:
    """Make, check, time, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3, help="timed runs of each step")
    parser.add_argument("--folder", type=Path, help="where the files are made (and removed)")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--watch", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        one_step(arguments.step, arguments.folder, arguments.watch)
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        file = Path(folder) / "sdxl.safetensors"
        single_file.save(random_checkpoint(), file)
        size = file.stat().st_size
        seconds: dict[str, list[float]] = {name: [] for name in STEPS}
        for _ in range(arguments.rounds):
            for name in STEPS:
                seconds[name].append(run(name, file)["seconds"])
                print(f"{name:<13}{seconds[name][-1]:8.2f} s", flush=True)
            shutil.rmtree(file.with_name("diffusers"))
        memory = run("load", file, watch=True)["memory"]
    pairs = {"load": "read", "to_diffusers": "copy", "to_single": "copy"}
    ratios = {
        name: statistics.median(a / b for a, b in zip(seconds[name], seconds[other], strict=True))
        for name, other in pairs.items()
    }
    sizes = [2 * torch.Size(shape).numel() for _, shape in unet_shapes(UNetConfig.sdxl())]
    allowed = sum(sizes) + max(sizes) + SCRATCH
    result = {
        "versions": {"safetensors": importlib.metadata.version("safetensors")},
        "file_bytes": size,
        "seconds": seconds,
        "ratios": ratios,
        "goals": {"load": LOAD_GOAL, "to_diffusers": CONVERT_GOAL, "to_single": CONVERT_GOAL},
        "load_memory": {"peak_bytes": memory, "target_bytes": sum(sizes), "largest_tensor_bytes": max(sizes)},
        "load_average": os.getloadavg(),
    }
    path = write("interop", result)
    for name, ratio in ratios.items():
        print(f"{name:<13}{ratio:8.3f} × {pairs[name]} (goal {result['goals'][name]})")
    print(f"memory of load {memory / 1e9:.3f} GB, allowed {allowed / 1e9:.3f} GB; wrote {path}")
    if memory > allowed or any(ratio > result["goals"][name] for name, ratio in ratios.items()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
