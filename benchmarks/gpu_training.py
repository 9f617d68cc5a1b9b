"""20 optimizer steps through torchrun on tiny real images, in TF32 and bf16, by the kernels and by the reference.

python -m benchmarks.gpu_training --out FILE [--device cuda] [--small]

The four runs start from the same seed and go side by side. The file holds each run's losses, and how far the two
backends are apart; tests/ops/test_training.py is where that distance has a bound.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.timing import write
from tests.train import runs

STEPS = 20


def start(root: Path, name: str, device: str, precision: str, backend: str) -> tuple[Path, subprocess.Popen]:
    """Starts one run; returns its folder and process."""
    out = root / name
    settings = runs.write_toml(
        root,
        root / f"{name}.toml",
        out,
        optimizer={"learning_rate": 1e-3},
        train={
            "steps": STEPS,
            "checkpoint_every": STEPS,
            "validate_every": STEPS,
            "device": device,
            "precision": precision,
            "backend": backend,
        },
    )
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1"]
    with (root / f"{name}.log").open("w") as log:
        process = subprocess.Popen(
            [*torchrun, "-m", "refimpl.train", settings], stdout=log, stderr=subprocess.STDOUT
        )
    return out, process


def main() -> None:
    """Runs all, writes the losses and prints one line for each precision."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--small", action="store_true", help="one precision only, to try the script")
    arguments = parser.parse_args()
    precisions = ("fp32",) if arguments.small else ("tf32", "bf16")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        runs.write_images(root / "train", 18)
        runs.write_autoencoder(root / "autoencoder.safetensors")
        started = {
            (precision, backend): start(root, f"{precision}-{backend}", arguments.device, precision, backend)
            for precision in precisions
            for backend in ("reference", "kernel")
        }
        losses: dict[tuple[str, str], list[float]] = {}
        for (precision, backend), (out, process) in started.items():
            if process.wait() != 0:
                print((root / f"{precision}-{backend}.log").read_text()[-3000:])
                raise SystemExit(f"the run {precision}-{backend} ended with exit code {process.returncode}")
            rows = (json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines())
            losses[precision, backend] = [row["loss"] for row in rows if "loss" in row]
    result: dict = {"device": arguments.device, "steps": STEPS, "runs": []}
    for precision in precisions:
        reference, kernel = losses[precision, "reference"], losses[precision, "kernel"]
        assert len(reference) == len(kernel) == STEPS
        apart = max(abs(math.log(a / b)) for a, b in zip(reference, kernel, strict=True))
        result["runs"].append(
            {"precision": precision, "reference": reference, "kernel": kernel, "largest_ln_ratio": apart}
        )
        print(f"{precision}: {STEPS} steps by torchrun, losses of the two backends at most {apart:.1e} apart")
    print(f"wrote {write('training_gpu', result, arguments.out)}")


if __name__ == "__main__":
    main()
