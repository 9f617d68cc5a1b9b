"""Training steps on one and two threads, alone and beside a program that keeps the first CPU busy.

python -m benchmarks.bench_threads [--blocks N]        writes results/threads.json

The tiny preset's autoencoder and UNet, and wider UNets, each under OpenMP's two ways of waiting: spinning (`active`)
and asleep (`passive`, which the commands set). Quiet and busy steps take turns in blocks. Needs two CPUs and taskset.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace

import torch

from benchmarks.timing import write
from refimpl.latents.vae import VAE
from refimpl.model.unet import UNet
from refimpl.run.presets import load_config

WAITING = {"active": {"OMP_WAIT_POLICY": "ACTIVE"}, "passive": {"OMP_WAIT_POLICY": "PASSIVE"}}
UNET_CHANNELS = (32, 64)  # of the first level; the tiny preset has 32
THREADS = (1, 2)
STEPS = 3  # of a block
TINY = load_config("tiny")
Step = Callable[[], float]


def trained(network: torch.nn.Module, loss_of: Callable[[], torch.Tensor]) -> Step:
    """A whole step of `network`, which returns its loss."""
    optimizer = torch.optim.AdamW(network.parameters(), fused=True)

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    return step


def autoencoder() -> tuple[int, Step]:
    """Weights and step of the tiny preset's autoencoder, as it is trained from scratch."""
    vae, size = VAE(TINY.vae), TINY.latents.train_size
    vae.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  torch's stubs lack it
    images = torch.rand(TINY.latents.train_batch, 3, size, size) * 2 - 1
    return weights(vae), trained(vae, lambda: (vae.decode(vae.encode(images)) - images).square().mean())


def unet(channels: int) -> tuple[int, Step]:
    """Weights and step of the tiny preset's UNet with another number of channels."""
    network, batch = UNet(replace(TINY.unet, channels=channels)), TINY.train.batch_size
    x, t = torch.randn(batch, 4, 8, 8), torch.randint(0, 1000, (batch,))
    context, vector = torch.randn(batch, 77, TINY.unet.context_dim), torch.randn(batch, TINY.unet.vector_dim)
    return weights(network), trained(network, lambda: network(x, t, context, vector).square().mean())


def weights(network: torch.nn.Module) -> int:
    """The number of weights."""
    return sum(parameter.numel() for parameter in network.parameters())


def measure(blocks: int) -> list[dict]:
    """A row for each network, number of threads and state of the first CPU, under this process's way of waiting."""
    loop = ["taskset", "-c", "0", sys.executable, "-S", "-c", "while True: pass"]
    makers = {"autoencoder": autoencoder} | {f"UNet {c}": lambda c=c: unet(c) for c in UNET_CHANNELS}
    rows = []
    with subprocess.Popen(loop) as other:
        try:
            for name, make in makers.items():
                torch.manual_seed(0)
                parameters, step = make()
                for threads in THREADS:
                    torch.set_num_threads(threads)
                    seconds: dict[bool, list[float]] = {False: [], True: []}
                    step()
                    for _ in range(blocks):
                        for is_busy in seconds:
                            other.send_signal(signal.SIGCONT if is_busy else signal.SIGSTOP)
                            time.sleep(0.02)
                            for _ in range(STEPS):
                                start = time.perf_counter()
                                step()
                                seconds[is_busy].append(time.perf_counter() - start)
                    for is_busy, values in seconds.items():
                        row = {"network": name, "parameters": parameters, "threads": threads, "busy": is_busy}
                        times = {
                            "median_ms": 1e3 * statistics.median(values),
                            "worst_ms": 1e3 * max(values),
                        }
                        rows.append(row | times)
                        print(said(rows[-1]), file=sys.stderr, flush=True)
        finally:
            other.kill()
    return rows


def said(row: dict) -> str:
    """A row in words."""
    state = "busy" if row["busy"] else "quiet"
    size = f"{row['parameters'] / 1e6:.1f} M"
    return (
        f"{row['network']:<12} {size:>7}  {row['threads']} threads, {state:<6} {row['median_ms']:6.0f} ms, "
        f"at worst {row['worst_ms']:.0f}"
    )


def check_agreement() -> None:
    """The loss does not depend on the number of threads, but for rounding. Raises AssertionError."""
    losses = []
    for threads in THREADS:
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        losses.append(autoencoder()[1]())
    torch.testing.assert_close(*(torch.tensor(loss) for loss in losses))


def main() -> None:
    """Measure in a process for each way of waiting, and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--blocks", type=int, default=5, help=f"of {STEPS} steps, quiet and busy in turn")
    parser.add_argument("--here", action="store_true", help="measure in this process and print JSON")
    arguments = parser.parse_args()
    if arguments.here:
        check_agreement()
        print(json.dumps(measure(arguments.blocks)))
        return
    load = os.getloadavg()[0]
    rows = []
    for waiting, variables in WAITING.items():
        print(f"waiting: {waiting}", file=sys.stderr, flush=True)
        call = [sys.executable, "-m", "benchmarks.bench_threads", "--here", "--blocks", str(arguments.blocks)]
        told = subprocess.run(call, env=os.environ | variables, stdout=subprocess.PIPE, text=True, check=True)
        rows += [{"waiting": waiting} | row for row in json.loads(told.stdout)]
    print(f"wrote {write('threads', {'load average before': load, 'rows': rows})}")


if __name__ == "__main__":
    main()
