"""One training step of a tiny SDXL with v-prediction, on noise that is a function of the sample (N §2.1, §2.2, §2.4).

python examples/train_step.py kernel       # the compiled operations; if they are not built, the error says how
python examples/train_step.py reference    # the same in plain PyTorch
"""

import argparse

import torch
from torch import Tensor

from refimpl.diffusion.min_snr import min_snr_weight
from refimpl.diffusion.philox import Purpose, draw_key, keyed_uniform
from refimpl.diffusion.schedule import sdxl_schedule, zero_terminal_snr
from refimpl.model.unet import UNet, UNetConfig
from refimpl.ops import Ops, load_ops

SEED, BATCH, VISIT = 0, 4, 0


def losses(unet: UNet, latents: Tensor, context: Tensor, vector: Tensor, ids: Tensor, ops: Ops) -> Tensor:
    """The weighted v-loss of each sample.

    latents  [B, 4, H, W]        context  [B, n, D]        vector  [B, E]        ids  [B]        returns  [B]
    """
    schedule = zero_terminal_snr(sdxl_schedule())
    # t and noise are functions of (seed, id, visit): the same in any batch and on any number of ranks
    u = keyed_uniform(draw_key(SEED, ids, VISIT, Purpose.TIMESTEP), 1)[:, 0]
    t = (u * schedule.timesteps).long()
    key = draw_key(SEED, ids, VISIT, Purpose.NOISE)
    alpha, sigma = schedule.at(t)
    weight = min_snr_weight(schedule.snr[t]).float()  # N §2.4: MinSNR with γ = 5
    # N §2.2: x_t = alpha·x0 + sigma·eps
    x_t = ops.add_keyed_noise(latents, key, alpha, sigma)
    # N §2.1: weight · mean (v_θ − v)², v = alpha·eps − sigma·x0, with eps drawn once more from its key
    return ops.keyed_v_loss(unet(x_t, t, context, vector), latents, key, alpha, sigma, weight)


def main() -> None:
    """Takes one AdamW step and prints the loss of the same batch before and after it."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("backend", choices=("kernel", "reference"))
    ops = load_ops(parser.parse_args().backend)

    torch.manual_seed(SEED)
    config = UNetConfig.tiny()
    unet = UNet(config)
    latents, ids = torch.randn(BATCH, 4, 16, 16), torch.arange(BATCH)
    context, vector = torch.randn(BATCH, 77, config.context_dim), torch.randn(BATCH, config.vector_dim)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-3)

    before = losses(unet, latents, context, vector, ids, ops).mean()
    before.backward()
    optimizer.step()
    after = losses(unet, latents, context, vector, ids, ops).mean()
    print(f"loss before {before.item():.6f}   after one step {after.item():.6f}")


if __name__ == "__main__":
    main()
