"""ComfyUI models with the optimal network for Gaussian data, and their sampling by the project's samplers."""

import torch
from torch import Tensor

from refimpl.comfyui.nodes import ZsnrVpredConditioningNode
from refimpl.diffusion.schedule import NoiseSchedule
from tests.comfyui import stub
from tests.sample.gaussian import Gaussian
from tests.sample.schedules import ZERO_SNR

DATA = {"positive": Gaussian(0.4, 0.7), "negative": Gaussian(-0.3, 1.1)}


def network(schedule: NoiseSchedule = ZERO_SNR) -> stub.Network:
    """v for x [B, ...] at timesteps t [B], float32 as ComfyUI passes it, for the data of a condition."""

    def predict(x: Tensor, t: Tensor, condition: str) -> Tensor:
        levels = schedule.t_to_sigma_edm(t.double())
        rows = zip(x.double(), levels, strict=True)
        return torch.stack([DATA[condition].predict_v(row, level) for row, level in rows]).float()

    return predict


def model(sampling=None, predict: stub.Network | None = None) -> stub.ModelPatcher:
    """A ComfyUI model, by default set up for plain v-prediction."""
    return stub.ModelPatcher(stub.BaseModel(predict or network(), sampling or stub.plain_sampling()))


def zsnr_model(**inputs) -> stub.ModelPatcher:
    """That model after the ZSNR V-Prediction node, with the schedule's own levels."""
    given = {
        "zsnr": "true",
        "v_prediction": "true",
        "sigma_min": 0.0,
        "sigma_data": 1.0,
        "min_snr_gamma": 5.0,
        "resolution_scaling": "true",
        **inputs,
    }
    return ZsnrVpredConditioningNode().apply_conditioning(model(), **given)[0]


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))
