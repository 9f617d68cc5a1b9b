"""The step of diffusers' SDXL text-to-image trainer, rebuilt from the installed library's parts.

What its loop does, with the settings that this comparison needs: noise by `randn_like`, timesteps by `randint`,
`DDPMScheduler.add_noise`, the UNet under autocast (bf16) or with TF32 products, `get_velocity`, a float32 mean square
weighted by min-SNR per sample, backward, `clip_grad_norm_` to 1, AdamW as `torch.optim.AdamW` gives it, `zero_grad`,
`EMAModel.step`. Latents and text states are cached. With accumulation, the loss is divided as accelerate does it.
"""

import contextlib
from collections.abc import Callable

import torch
import torch.nn.functional as F
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.training_utils import EMAModel, compute_snr

from benchmarks.step_inputs import Case, Marks, cached_batches, with_random_weights

SNR_GAMMA = 5.0


def diffusers_unet(small: bool) -> UNet2DConditionModel:
    """SDXL's UNet, or the project's tiny one, with the library's own settings."""
    tiny = {
        "sample_size": 8,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
        "block_out_channels": [32, 64],
        "transformer_layers_per_block": [1, 1],
        "attention_head_dim": [1, 2],
        "cross_attention_dim": 96,
        "projection_class_embeddings_input_dim": 64 + 6 * 256,
    }
    full = {
        "sample_size": 128,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "block_out_channels": [320, 640, 1280],
        "transformer_layers_per_block": [1, 2, 10],
        "attention_head_dim": [5, 10, 20],
        "cross_attention_dim": 2048,
        "projection_class_embeddings_input_dim": 2816,
    }
    settings = {
        **(tiny if small else full),
        "in_channels": 4,
        "out_channels": 4,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "layers_per_block": 2,
    }
    unet = UNet2DConditionModel.from_config(settings)
    assert isinstance(unet, UNet2DConditionModel)
    return unet


def diffusers_step(case: Case, marks: Marks) -> Callable[[], None]:
    """One optimizer step as a function without arguments."""
    device = marks.device
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    with torch.device(device):
        unet = diffusers_unet(case.small)
    with_random_weights(unet)
    unet.train()
    if case.checkpointing == "full":
        unet.enable_gradient_checkpointing()
    scheduler = DDPMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
    )
    parameters = list(unet.parameters())
    average = EMAModel(parameters)
    optimizer = torch.optim.AdamW(parameters, lr=1e-5, weight_decay=1e-2)
    batches = cached_batches(case, device, case.accumulate)
    is_bf16 = case.precision == "bf16"

    def step() -> None:
        marks.start()
        for batch in batches:
            noise = torch.randn_like(batch.latents)
            t = torch.randint(0, 1000, (case.batch,), device=device)
            noisy = scheduler.add_noise(batch.latents, noise, t)  # pyright: ignore[reportArgumentType]
            added = {
                "text_embeds": batch.pooled,
                "time_ids": torch.full((case.batch, 6), 1024.0, device=device),
            }
            marks("prelude")
            precision = torch.autocast(device, torch.bfloat16) if is_bf16 else contextlib.nullcontext()
            with precision:
                predicted = unet(noisy, t, batch.context, added_cond_kwargs=added, return_dict=False)[0]
            target = scheduler.get_velocity(batch.latents, noise, t)  # pyright: ignore[reportArgumentType]
            snr = compute_snr(scheduler, t)
            weight = torch.stack([snr, SNR_GAMMA * torch.ones_like(t)], dim=1).min(dim=1)[0] / (snr + 1)
            loss = F.mse_loss(predicted.float(), target.float(), reduction="none")
            loss = (loss.mean(dim=list(range(1, loss.ndim))) * weight).mean() / len(batches)
            marks("forward")
            loss.backward()
            marks("backward")
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average.step(parameters)
        marks("update")

    return step
