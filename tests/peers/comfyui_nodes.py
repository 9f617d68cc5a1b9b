"""The nodes in ComfyUI: its loader finds, its server describes, its samplers use them. Arguments: checkout, folder.

The network is the optimal one for Gaussian data, so that what the samplers must arrive at is known.
"""

import asyncio
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import refimpl.comfyui
from refimpl.sample.guidance import cfg, rescale
from refimpl.sample.samplers import SAMPLERS
from tests.peers.checkouts import answer
from tests.peers.comfyui import begin
from tests.sample.gaussian import Gaussian
from tests.sample.schedules import ZERO_SNR

DATA = {1.0: Gaussian(0.4, 0.7), -1.0: Gaussian(-0.3, 1.1)}
"""The positive condition's data and the negative one's, by the value that fills the condition's context."""
OURS = ("ZsnrVpredConditioningNode", "CFGRescaleNode", "LaplaceSchedulerNode", "NAINativeSchedulerNode")
LATENT_FACTOR = 0.13025
STEPS, SEED, SHAPE = 12, 7, (2, 4, 6, 5)


class Network(nn.Module):
    """Stands in for the UNet: v of the optimal network, for the timestep and the condition it is given."""

    def __init__(self, **_: Any) -> None:
        super().__init__()
        self.dtype = torch.float32
        self.anchor = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, timesteps: Tensor, context: Tensor, **_: Any) -> Tensor:
        """x [B, 4, h, w], timesteps [B], context [B, 77, D] → v."""
        levels = ZERO_SNR.t_to_sigma_edm(timesteps.double().clamp(0, 999))
        rows = zip(x.double(), levels, context[:, 0, 0].tolist(), strict=True)
        return torch.stack([DATA[round(kind, 0)].predict_v(row, level) for row, level, kind in rows]).float()


def described(nodes: Any) -> dict[str, Any]:
    """What /object_info of ComfyUI's own server says about the nodes."""
    import server
    from aiohttp.test_utils import TestClient, TestServer

    async def ask() -> dict[str, Any]:
        prompts = server.PromptServer(asyncio.get_running_loop())
        await nodes.init_extra_nodes(init_custom_nodes=True, init_api_nodes=False)
        prompts.add_routes()
        async with TestClient(TestServer(prompts.app)) as client:
            reply = await client.get("/object_info")
            return await reply.json()

    return asyncio.run(ask())


def run_of(model: Any, sigmas: Tensor, scale: float, factor: float) -> Tensor:
    """Where the project's Euler sampler arrives on these levels, the stand-in for infinity being infinite."""
    import comfy.sample

    noise = comfy.sample.prepare_noise(torch.zeros(SHAPE), SEED)
    levels = sigmas.double().clone()
    levels[0] = torch.inf

    def predict_v(x: Tensor, sigma: Tensor) -> Tensor:
        v, other = DATA[1.0].predict_v(x, sigma), DATA[-1.0].predict_v(x, sigma)
        return rescale(cfg(v, other, scale), v, factor)

    return SAMPLERS["euler"](predict_v, noise.double(), levels)


def main() -> None:
    """Loads, describes and samples."""
    folder, scratch = sys.argv[1], Path(sys.argv[2])
    begin(folder)
    import comfy.cli_args
    import folder_paths
    import nodes

    comfy.cli_args.args.front_end_root = str(scratch)
    (scratch / "custom_nodes").mkdir()
    (scratch / "custom_nodes" / "refimpl").symlink_to(Path(refimpl.comfyui.__file__).parent)
    for setter in (
        folder_paths.set_user_directory,
        folder_paths.set_output_directory,
        folder_paths.set_temp_directory,
    ):
        setter(str(scratch / "user"))
    folder_paths.add_model_folder_path("custom_nodes", str(scratch / "custom_nodes"))
    told = described(nodes)
    import comfy.model_base
    import comfy.model_patcher
    import comfy.samplers
    import comfy.supported_models

    config = comfy.supported_models.SDXL({})
    base = comfy.model_base.BaseModel(config, comfy.model_base.ModelType.EPS, torch.device("cpu"), Network)
    plain = comfy.model_patcher.ModelPatcher(base, torch.device("cpu"), torch.device("cpu"))
    mapped = {name: nodes.NODE_CLASS_MAPPINGS[name] for name in (*OURS, "KSampler", "SamplerCustom")}

    def call(node: str, **inputs: Any) -> Any:
        kind = mapped[node]
        return getattr(kind(), kind.FUNCTION)(**inputs)

    def defaults(node: str) -> dict[str, Any]:
        declared = told[node]["input"]
        every = {**declared["required"], **declared.get("optional", {})}
        return {name: options[1]["default"] for name, options in every.items() if name != "model"}

    conditions = {
        name: [[torch.full((1, 77, 8), value), {"pooled_output": torch.zeros(1, 8)}]]
        for name, value in (("positive", 1.0), ("negative", -1.0))
    }
    latent = {"samples": torch.zeros(SHAPE)}
    model = call("ZsnrVpredConditioningNode", model=plain, **defaults("ZsnrVpredConditioningNode"))[0]
    rescaled = call("CFGRescaleNode", model=model, **defaults("CFGRescaleNode"))[0]
    factor = defaults("CFGRescaleNode")["rescale_multiplier"]
    errors = {}
    for name, used, scale, phi in (
        ("plain", model, 1.0, 0.0),
        ("cfg", model, 4.0, 0.0),
        ("rescale", rescaled, 4.0, factor),
    ):
        for scheduler in ("simple", "normal", "sgm_uniform"):
            sampled = call(
                "KSampler", model=used, seed=SEED, steps=STEPS, cfg=scale, sampler_name="euler", scheduler=scheduler,
                latent_image=latent, denoise=1.0, **conditions,
            )[0]["samples"]  # fmt: skip
            sigmas = comfy.samplers.calculate_sigmas(
                used.get_model_object("model_sampling"), scheduler, STEPS
            )
            expected = run_of(used, sigmas, scale, phi)
            errors[f"KSampler {name} {scheduler}"] = float((sampled * LATENT_FACTOR - expected).abs().max())
    for node, inputs in (("NAINativeSchedulerNode", {"steps": STEPS}), ("LaplaceSchedulerNode", {})):
        given = {**defaults(node), **inputs}
        sigmas = call(node, model=rescaled, **given)[0]
        sampled = call(
            "SamplerCustom", model=rescaled, add_noise=True, noise_seed=SEED, cfg=4.0,
            sampler=comfy.samplers.sampler_object("euler"), sigmas=sigmas, latent_image=latent, **conditions,
        )[0]["samples"]  # fmt: skip
        expected = run_of(rescaled, sigmas, 4.0, factor)
        errors[f"SamplerCustom {node}"] = float((sampled * LATENT_FACTOR - expected).abs().max())
    answer(
        described={name: told.get(name) for name in OURS},
        builtin="KSampler" in told,
        errors=errors,
    )


if __name__ == "__main__":
    main()
