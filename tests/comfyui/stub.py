"""A stub of ComfyUI: the part of its public behaviour that nodes and samplers rely on, written for these tests.

A ModelPatcher holds a base model; sampling applies its object patches, wraps the sampler, and calls the model as
KSAMPLER, the guider and BaseModel do: noise_scaling, then per step calculate_input, timestep, the network,
calculate_denoised, the guidance function. State and levels are float32, as they are there.
"""

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn


def spread(sigma: Tensor, like: Tensor) -> Tensor:
    return sigma.reshape(()) if sigma.numel() == 1 else sigma.reshape(-1, *[1] * (like.ndim - 1))


class EPS:
    sigma_data: float

    def calculate_input(self, sigma: Tensor, noise: Tensor) -> Tensor:
        return noise / torch.sqrt(spread(sigma, noise) ** 2 + self.sigma_data**2)

    def calculate_denoised(self, sigma: Tensor, model_output: Tensor, model_input: Tensor) -> Tensor:
        return model_input - spread(sigma, model_output) * model_output

    def noise_scaling(
        self, sigma: Tensor, noise: Tensor, latent_image: Tensor, max_denoise: bool = False
    ) -> Tensor:
        sigma = spread(sigma, noise)
        return noise * (torch.sqrt(1 + sigma**2) if max_denoise else sigma) + latent_image

    def inverse_noise_scaling(self, sigma: Tensor, latent: Tensor) -> Tensor:
        return latent


class V_PREDICTION(EPS):
    def calculate_denoised(self, sigma: Tensor, model_output: Tensor, model_input: Tensor) -> Tensor:
        sigma, data = spread(sigma, model_output), self.sigma_data
        total = sigma**2 + data**2
        return model_input * data**2 / total - model_output * sigma * data / torch.sqrt(total)


class ModelSamplingDiscrete(nn.Module):
    sigmas: Tensor
    log_sigmas: Tensor

    def __init__(self, model_config: Any = None, zsnr: bool | None = None):
        super().__init__()
        settings = {} if model_config is None else model_config.sampling_settings
        self.zsnr = settings.get("zsnr", False) if zsnr is None else zsnr
        self.num_timesteps = settings.get("timesteps", 1000)
        self.sigma_data = 1.0
        roots = torch.linspace(0.00085**0.5, 0.012**0.5, self.num_timesteps, dtype=torch.float64)
        abar = torch.cumprod(1 - roots**2, dim=0)
        if self.zsnr:
            root = abar.sqrt()
            abar = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
            abar[-1] = 4.8973451890853435e-08
        self.set_sigmas(((1 - abar) / abar).sqrt())

    def set_sigmas(self, sigmas: Tensor) -> None:
        self.register_buffer("sigmas", sigmas.float())
        self.register_buffer("log_sigmas", sigmas.log().float())

    @property
    def sigma_min(self) -> Tensor:
        return self.sigmas[0]

    @property
    def sigma_max(self) -> Tensor:
        return self.sigmas[-1]

    def timestep(self, sigma: Tensor) -> Tensor:
        distance = (sigma.log() - self.log_sigmas[:, None]).abs()
        return distance.argmin(dim=0).view(sigma.shape)

    def sigma(self, timestep: Tensor) -> Tensor:
        t = timestep.float().clamp(0, len(self.sigmas) - 1)
        low, high, part = t.floor().long(), t.ceil().long(), t.frac()
        return ((1 - part) * self.log_sigmas[low] + part * self.log_sigmas[high]).exp()

    def percent_to_sigma(self, percent: float) -> float:
        if percent <= 0:
            return 999999999.9
        return 0.0 if percent >= 1 else float(self.sigma(torch.tensor((1 - percent) * 999.0)))


class ModelSamplingDiscreteFlow(nn.Module):
    """A model of another kind, without discrete timesteps."""


Network = Callable[[Tensor, Tensor, str], Tensor]  # (x [B, ...], t [B], "positive" | "negative") -> output


class BaseModel:
    """network(x, t, condition) under a model-sampling object."""

    def __init__(self, network: Network, sampling: Any):
        self.model_config = SimpleNamespace(sampling_settings={})
        self.network = network
        self.model_sampling = sampling

    def apply_model(self, x: Tensor, sigma: Tensor, condition: str) -> Tensor:
        x_in = self.model_sampling.calculate_input(sigma, x)
        t = self.model_sampling.timestep(sigma).float()
        return self.model_sampling.calculate_denoised(sigma, self.network(x_in, t, condition).float(), x)


class ModelPatcher:
    def __init__(self, model: BaseModel):
        self.model = model
        self.model_options: dict[str, Any] = {"wrappers": {}}
        self.object_patches: dict[str, Any] = {}

    def clone(self) -> "ModelPatcher":
        other = ModelPatcher(self.model)
        wrappers = {kind: dict(by_key) for kind, by_key in self.model_options["wrappers"].items()}
        post = list(self.model_options.get("sampler_post_cfg_function", []))
        other.model_options = {
            **self.model_options,
            "wrappers": wrappers,
            "sampler_post_cfg_function": post,
        }
        other.object_patches = dict(self.object_patches)
        return other

    def add_object_patch(self, name: str, value: Any) -> None:
        self.object_patches[name] = value

    def get_model_object(self, name: str) -> Any:
        return self.object_patches.get(name, getattr(self.model, name))

    def set_model_sampler_cfg_function(self, function: Callable[[dict], Tensor]) -> None:
        self.model_options["sampler_cfg_function"] = function

    def set_model_sampler_post_cfg_function(self, function: Callable[[dict], Tensor]) -> None:
        earlier = self.model_options.get("sampler_post_cfg_function", [])
        self.model_options["sampler_post_cfg_function"] = [*earlier, function]

    def add_wrapper_with_key(self, kind: str, key: str, wrapper: Callable[..., Any]) -> None:
        self.model_options["wrappers"].setdefault(kind, {}).setdefault(key, [])
        self.model_options["wrappers"][kind][key] = [*self.model_options["wrappers"][kind][key], wrapper]

    def remove_wrappers_with_key(self, kind: str, key: str) -> None:
        self.model_options["wrappers"].get(kind, {}).pop(key, None)


class Guider:
    """Classifier-free guidance over a base model, as samplers call it: guider(x, sigma, model_options, seed)."""

    def __init__(self, patcher: ModelPatcher, scale: float):
        self.inner_model, self.options, self.scale = patcher.model, patcher.model_options, scale

    def __call__(self, x: Tensor, timestep: Tensor, model_options: dict, seed: int | None = None) -> Tensor:
        model = self.inner_model
        cond = model.apply_model(x, timestep, "positive")
        # at scale 1 the unconditional prediction is not computed
        alone = math.isclose(self.scale, 1.0)
        uncond = torch.zeros_like(cond) if alone else model.apply_model(x, timestep, "negative")
        known = {
            "cond_denoised": cond,
            "uncond_denoised": uncond,
            "cond_scale": self.scale,
            "sigma": timestep,
            "input": x,
            "model": model,
            "model_options": model_options,
        }
        if "sampler_cfg_function" in model_options:
            given = {**known, "cond": x - cond, "uncond": x - uncond, "timestep": timestep}
            denoised = x - model_options["sampler_cfg_function"](given)
        else:
            denoised = uncond + (cond - uncond) * self.scale
        for function in model_options.get("sampler_post_cfg_function", []):
            denoised = function({**known, "denoised": denoised, "cond": [], "uncond": []})
        return denoised


def euler(model: Callable[..., Tensor], x: Tensor, sigmas: Tensor, extra_args: dict, callback: Any) -> Tensor:
    ones = x.new_ones(len(x))
    for i in range(len(sigmas) - 1):
        denoised = model(x, sigmas[i] * ones, **extra_args)
        callback({"i": i, "denoised": denoised, "x": x})
        x = x + (x - denoised) / sigmas[i] * (sigmas[i + 1] - sigmas[i])
    return x


def heun(model: Callable[..., Tensor], x: Tensor, sigmas: Tensor, extra_args: dict, callback: Any) -> Tensor:
    ones = x.new_ones(len(x))
    for i in range(len(sigmas) - 1):
        denoised = model(x, sigmas[i] * ones, **extra_args)
        callback({"i": i, "denoised": denoised, "x": x})
        slope, width = (x - denoised) / sigmas[i], sigmas[i + 1] - sigmas[i]
        ahead = x + slope * width
        if sigmas[i + 1] > 0:
            slope = (slope + (ahead - model(ahead, sigmas[i + 1] * ones, **extra_args)) / sigmas[i + 1]) / 2
        x = x + slope * width
    return x


def dpmpp_2m(
    model: Callable[..., Tensor], x: Tensor, sigmas: Tensor, extra_args: dict, callback: Any
) -> Tensor:
    ones, old, last_h = x.new_ones(len(x)), None, None
    for i in range(len(sigmas) - 1):
        denoised = model(x, sigmas[i] * ones, **extra_args)
        callback({"i": i, "denoised": denoised, "x": x})
        h = (sigmas[i] / sigmas[i + 1]).log()
        mixed = denoised
        if old is not None and sigmas[i + 1] > 0:
            ratio = last_h / h
            mixed = (1 + 1 / (2 * ratio)) * denoised - 1 / (2 * ratio) * old
        x = sigmas[i + 1] / sigmas[i] * x - torch.expm1(-h) * mixed
        old, last_h = denoised, h
    return x


class KSampler:
    def __init__(self, function: Callable[..., Tensor]):
        self.function = function

    def sample(
        self,
        model_wrap: Guider,
        sigmas: Tensor,
        extra_args: dict,
        callback: Any,
        noise: Tensor,
        latent_image: Tensor,
        denoise_mask: Tensor | None = None,
        disable_pbar: bool = False,
    ) -> Tensor:
        sampling, first = model_wrap.inner_model.model_sampling, float(sigmas[0])
        largest = float(sampling.sigma_max)
        whole = math.isclose(largest, first, rel_tol=1e-5) or first > largest
        steps = len(sigmas) - 1

        def told(now: dict[str, Any]) -> None:
            if callback is not None:
                callback(now["i"], now["denoised"], now["x"], steps)

        x = sampling.noise_scaling(sigmas[0], noise, latent_image, whole)
        x = self.function(model_wrap, x, sigmas, extra_args, told)
        return sampling.inverse_noise_scaling(sigmas[-1], x)


def sample(
    patcher: ModelPatcher,
    noise: Tensor,
    sigmas: Tensor,
    sampler: Callable[..., Tensor] = euler,
    scale: float = 1.0,
    latent_image: Tensor | None = None,
    denoise_mask: Tensor | None = None,
    callback: Any = None,
) -> Tensor:
    """What SamplerCustom does: apply object patches, wrap the sampler, and remove the patches."""
    model = patcher.model
    saved = {name: getattr(model, name) for name in patcher.object_patches}
    for name, value in patcher.object_patches.items():
        setattr(model, name, value)
    try:
        run: Callable[..., Tensor] = KSampler(sampler).sample
        by_key = patcher.model_options["wrappers"].get("sampler_sample", {})
        for wrapper in [wrapper for several in by_key.values() for wrapper in several]:
            run = _wrapped(wrapper, run)
        extra_args = {"model_options": patcher.model_options, "seed": 0}
        latent = torch.zeros_like(noise) if latent_image is None else latent_image
        return run(Guider(patcher, scale), sigmas, extra_args, callback, noise, latent, denoise_mask, True)
    finally:
        for name, value in saved.items():
            setattr(model, name, value)


def _wrapped(wrapper: Callable[..., Tensor], inner: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda *arguments: wrapper(inner, *arguments)


@contextmanager
def installed() -> Iterator[None]:
    """Makes `comfy.model_sampling` and `comfy.patcher_extension` importable while the `with` block runs."""
    modules = {
        name: ModuleType(name) for name in ("comfy", "comfy.model_sampling", "comfy.patcher_extension")
    }
    for kind in (EPS, V_PREDICTION, ModelSamplingDiscrete, ModelSamplingDiscreteFlow):
        setattr(modules["comfy.model_sampling"], kind.__name__, kind)
    modules["comfy.patcher_extension"].WrappersMP = SimpleNamespace(SAMPLER_SAMPLE="sampler_sample")  # type: ignore[attr-defined]
    before = {name: sys.modules.get(name) for name in modules}
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name, module in before.items():
            del sys.modules[name]
            if module is not None:
                sys.modules[name] = module


def plain_sampling(zsnr: bool = False, v_prediction: bool = True) -> Any:
    """ComfyUI's own object for an SDXL model."""
    kind = V_PREDICTION if v_prediction else EPS
    return type("ModelSampling", (ModelSamplingDiscrete, kind), {})(None, zsnr)
