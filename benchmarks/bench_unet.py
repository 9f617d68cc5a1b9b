"""Forward and backward of the tiny UNet against diffusers' UNet of the same configuration and weights, on the CPU.

python -m benchmarks.bench_unet [--rounds N] [--threads N]        writes results/unet_cpu.json
Exits with 1 when ours is the slower.
"""

import argparse
import importlib.metadata
import statistics
from collections.abc import Callable

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from benchmarks.timing import interleaved, summary, write
from refimpl.model.unet import UNet, UNetConfig
from tests.model.diffusers_unet import Inputs, diffusers_unet, inputs, to_diffusers, trained_looking
from tests.tolerances import NETWORK_FLOAT32

SIZES = ((8, 8), (4, 16), (5, 12))  # latent height and width of tiny's buckets, and an odd one
BATCH = 16
TOKENS = 77
SIZE_FEATURES = 256


def train_step(network: nn.Module, predict: Callable[[], Tensor]) -> Callable[[], None]:
    """Forward, mean square, backward: a training step without the optimiser."""

    def step() -> None:
        network.zero_grad(set_to_none=True)
        predict().square().mean().backward()

    return step


def assert_agreement(config: UNetConfig, ours: UNet, theirs: UNet2DConditionModel, call: Inputs) -> None:
    """Same output and same gradients, or there is nothing to compare."""
    mine, oracle = call.ours(ours), call.theirs(theirs)
    assert (mine - oracle).abs().max() <= NETWORK_FLOAT32 * oracle.abs().max()
    train_step(ours, lambda: call.ours(ours))()
    train_step(theirs, lambda: call.theirs(theirs))()
    gradients = {name: p.grad for name, p in ours.named_parameters() if p.grad is not None}
    renamed = to_diffusers(gradients, config)
    expected = {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None}
    assert renamed.keys() == expected.keys()
    scale = max(gradient.abs().max() for gradient in expected.values())
    for name, gradient in expected.items():
        assert (renamed[name] - gradient).abs().max() <= NETWORK_FLOAT32 * scale, name


def main() -> None:
    """Assert, time, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=60, help="timed calls of each network per size")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)

    config = UNetConfig.tiny()
    ours, theirs = trained_looking(UNet(config)), diffusers_unet(config, SIZE_FEATURES)
    theirs.load_state_dict(to_diffusers(ours.state_dict(), config))
    rows = []
    for height, width in SIZES:
        call = inputs(config, height, width, BATCH, TOKENS, SIZE_FEATURES)
        assert_agreement(config, ours, theirs, call)
        steps = {
            "refimpl": train_step(ours, lambda call=call: call.ours(ours)),
            "diffusers": train_step(theirs, lambda call=call: call.theirs(theirs)),
        }
        seconds = interleaved(steps, arguments.rounds)
        pairs = [a / b for a, b in zip(seconds["refimpl"], seconds["diffusers"], strict=True)]
        low, _, high = statistics.quantiles(pairs, n=4)
        row = {
            "latent": [height, width],
            "batch": BATCH,
            "refimpl": summary(seconds["refimpl"]),
            "diffusers": summary(seconds["diffusers"]),
            "ratio": statistics.median(seconds["refimpl"]) / statistics.median(seconds["diffusers"]),
            "ratio_quartiles": [low, high],
        }
        rows.append(row)
        print(
            f"{height}×{width}: refimpl {row['refimpl']['median_ms']:.1f} ms, "
            f"diffusers {row['diffusers']['median_ms']:.1f} ms, "
            f"ratio {row['ratio']:.3f} (quartiles {low:.3f} to {high:.3f})"
        )
    worst = max(row["ratio"] for row in rows)
    versions = {"diffusers": importlib.metadata.version("diffusers")}
    result = {"rounds": arguments.rounds, "parameters": sum(p.numel() for p in ours.parameters())}
    path = write("unet_cpu", {"versions": versions, **result, "worst_ratio": worst, "sizes": rows})
    print(f"worst ratio {worst:.3f}; wrote {path}")
    if worst > 1:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
