"""Adapter of ComfyUI, read from a checkout: its ModelSamplingDiscrete with zsnr and v-prediction, and its nodes."""

import math
import re
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from refimpl.conformance.adapter import Adapter, Size
from refimpl.conformance.adapters.checkouts.checkout import Checkout

COMMIT = "a125cd84b054a57729b5eecab930ca9408719832"
MODEL, SAMPLERS, STEPS = "comfy/model_sampling.py", "comfy/samplers.py", "comfy/k_diffusion/sampling.py"
UTIL, NODES = "comfy/ldm/modules/diffusionmodules/util.py", "comfy_extras/nodes_model_advanced.py"
TEXT, FILES, NETWORK = "comfy/sd1_clip.py", "comfy/supported_models.py", "comfy/model_base.py"
GRIDS = {"native": "normal_scheduler", "trailing": "simple_scheduler", "leading": "ddim_scheduler"}
VOCABULARY = {"start_token": 49406, "end_token": 49407, "max_length": 77, "max_word_length": 8}


class ComfyUI(Adapter):
    """Its default grid "normal" as native, "simple" as trailing, "ddim_uniform" as leading."""

    name = "ComfyUI"

    def __init__(self) -> None:
        self.code = Checkout("Comfy-Org/ComfyUI", COMMIT)
        self.version = self.code.version
        betas = self.code.take(UTIL, "make_beta_schedule", torch=torch, np=np, math=math).make_beta_schedule
        parts: Any = self.code.take(
            MODEL, "rescale_zero_terminal_snr_sigmas", "reshape_sigma", "EPS", "V_PREDICTION",
            "ModelSamplingDiscrete", torch=torch, math=math, make_beta_schedule=betas,
        )  # fmt: skip
        sampling = type("ModelSampling", (parts.ModelSamplingDiscrete, parts.V_PREDICTION), {})
        self.plain, self.sampling = sampling(zsnr=False), sampling(zsnr=True)
        self.samplers: Any = self.code.take(SAMPLERS, *GRIDS.values(), "cfg_function", torch=torch, math=math)
        self.steps: Any = self.code.take(
            STEPS, "append_zero", "get_sigmas_karras", "get_sigmas_exponential", "get_sigmas_laplace", "to_d",
            "sample_euler", torch=torch, math=math, trange=_steps, utils=SimpleNamespace(append_dims=_append_dims),
        )  # fmt: skip
        self.rescale_node: Any = self.code.take(NODES, "RescaleCFG", torch=torch).RescaleCFG()
        self.text: Any = self.code.take(
            TEXT, "escape_important", "unescape_important", "SDTokenizer.tokenize_with_weights",
            "ClipTokenWeightEncoder", torch=torch, re=re, token_weights=None,
            model_management=SimpleNamespace(intermediate_device=lambda: "cpu"),
        )  # fmt: skip
        kinds = SimpleNamespace(EPS="eps", V_PREDICTION="v", V_PREDICTION_EDM="edm", EDM="edm")
        self.files: Any = self.code.take(
            FILES, "SDXL.model_type", model_base=SimpleNamespace(ModelType=kinds), torch=torch
        )
        self.network: Any = self.code.take(
            NETWORK, "SDXL.encode_adm", torch=torch, sdxl_pooled=lambda *_: torch.zeros(1, 0)
        )

    def link(self, method: str) -> str:
        """The line of the function that the method calls."""
        called = {
            "schedule": (MODEL, "rescale_zero_terminal_snr_sigmas"),
            "scalings": (MODEL, "V_PREDICTION"),
            "sigma_to_t": (MODEL, "ModelSamplingDiscrete", "timestep"),
            "first_step": (STEPS, "sample_euler"),
            "grid": (SAMPLERS, "ddim_scheduler"),
            "guide": (NODES, "RescaleCFG"),
            "chunks": (TEXT, "SDTokenizer.tokenize_with_weights"),
            "pool": (TEXT, "ClipTokenWeightEncoder"),
            "size_ints": (NETWORK, "SDXL.encode_adm"),
            "markers": (FILES, "SDXL.model_type"),
        }
        return self.code.link(*called[method]) if method in called else ""

    def schedule(self, zero_snr: bool) -> Tensor:
        """Of its table of sigmas."""
        sigmas = (self.sampling if zero_snr else self.plain).sigmas.double()
        return 1 / (1 + sigmas**2)

    def scalings(self, sigma_edm: Tensor) -> Sequence[Tensor]:
        """calculate_denoised without and with an output of 1, and calculate_input of 1."""
        one, zero = torch.ones_like(sigma_edm), torch.zeros_like(sigma_edm)
        c_skip = self.sampling.calculate_denoised(sigma_edm, zero, one)
        c_out = self.sampling.calculate_denoised(sigma_edm, one, zero)
        return c_skip, c_out, self.sampling.calculate_input(sigma_edm, one)

    def sigma_to_t(self, sigma_edm: Tensor) -> Tensor:
        """timestep."""
        return self.sampling.timestep(sigma_edm)

    def first_step(self, noise: Tensor, network: Callable[[Tensor], Tensor], sigma_next: float) -> Tensor:
        """noise_scaling of the empty latent with max_denoise, and sample_euler for one step."""
        sigmas = torch.tensor([float(self.sampling.sigma_max), sigma_next])

        def model(x: Tensor, sigma: Tensor) -> Tensor:
            output = network(self.sampling.calculate_input(sigma, x)).float()
            return self.sampling.calculate_denoised(sigma, output, x)

        start = self.sampling.noise_scaling(sigmas[0], noise, torch.zeros_like(noise), True)
        return self.steps.sample_euler(model, start, sigmas)

    def grid(self, kind: str, n: int) -> Tensor:
        """The schedulers of those names, and the nodes' functions with the model's own ends."""
        if kind in GRIDS:
            return getattr(self.samplers, GRIDS[kind])(self.sampling, n)
        low, high = float(self.sampling.sigma_min), float(self.sampling.sigma_max)
        return getattr(self.steps, f"get_sigmas_{kind}")(n, low, high)

    def guide(self, cond: Tensor, uncond: Tensor, scale: float, rescale: float) -> Tensor:
        """cfg_function, and the node RescaleCFG, which take denoised latents: here at sigma 1, of latent 0."""
        root = math.sqrt(2.0)
        latent, sigma = torch.zeros_like(cond), torch.ones(len(cond))
        options: dict[str, Any] = {}
        if rescale > 0:
            model = SimpleNamespace(
                set_model_sampler_cfg_function=lambda f: options.update(sampler_cfg_function=f)
            )
            self.rescale_node.patch(SimpleNamespace(clone=lambda: model), rescale)
        denoised = self.samplers.cfg_function(
            None, -cond / root, -uncond / root, scale, latent, sigma, model_options=options
        )
        return -denoised * root

    def chunks(self, ids: Sequence[int]) -> tuple[Tensor, Tensor]:
        """tokenize_with_weights of both tokenizers."""
        return self._rows(ids, 49407), self._rows(ids, 0)

    def pool(self, states: Sequence[Tensor]) -> Tensor:
        """encode_token_weights, one prompt after the other."""
        encoder = self.text.ClipTokenWeightEncoder()
        pooled = []
        for chunks in states:
            encoder.encode = lambda tokens, chunks=chunks: (torch.zeros(len(tokens), 1, 1), chunks)
            pooled.append(encoder.encode_token_weights([[(0, 1.0)]] * len(chunks))[1])
        return torch.cat(pooled)

    def size_ints(self, original: Size, crop: tuple[int, int], target: Size) -> Tensor:
        """encode_adm, with an embedder that returns what it gets."""
        given = {"width": original[0], "height": original[1], "crop_h": crop[0], "crop_w": crop[1]}
        given |= {"target_width": target[0], "target_height": target[1]}
        model = SimpleNamespace(embedder=lambda value: value, noise_augmentor=None)
        return self.network.encode_adm(model, **given)[0]

    def markers(self, keys: Sequence[str]) -> tuple[str, bool]:
        """model_type of its SDXL."""
        model = SimpleNamespace(sampling_settings={})
        kind = self.files.model_type(model, dict.fromkeys(keys))
        return kind, bool(model.sampling_settings.get("zsnr", False))

    def _rows(self, ids: Sequence[int], padding: int) -> Tensor:
        tokenizer = SimpleNamespace(
            **VOCABULARY, pad_token=padding, pad_to_max_length=True, min_length=None, min_padding=None,
            embedding_key="", embedding_identifier="embedding:", embedding_directory=None,
            tokenizer_adds_end_token=True, tokens_start=1,
            tokenizer=lambda text: {"input_ids": [49406, *ids, 49407]},
        )  # fmt: skip
        text = "prompt" if ids else ""
        rows = self.text.tokenize_with_weights(tokenizer, text, disable_weights=True)
        return torch.tensor([[token for token, _ in row] for row in rows])


def _steps(count: int, disable: object = None) -> range:
    return range(count)


def _append_dims(x: Tensor, dims: int) -> Tensor:
    return x[(...,) + (None,) * (dims - x.ndim)]
