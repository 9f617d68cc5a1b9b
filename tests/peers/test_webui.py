"""Forge and A1111: what they make of our markers and of a side-car .yaml, by their own functions.

Single functions are taken from the checkouts and given stand-ins for what they call: the rest of Forge downloads, and
A1111's needs a network of Stability's to be built.
"""

import os
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from refimpl.conformance.adapters.checkouts.checkout import Checkout
from refimpl.diffusion.schedule import sdxl_schedule, zero_terminal_snr
from refimpl.interop import single_file
from refimpl.interop.checkpoint import Prediction
from refimpl.interop.single_file.prediction_markers import detect
from refimpl.storage import safetensors_file
from tests.interop.checkpoints import working
from tests.interop.single_file.test_prediction_markers import SGM_YAML, V_YAML
from tests.peers.checkouts import A1111_DEVELOPMENT, at_commit, checkout
from tests.tolerances import FLOAT32_ROUNDING

pytestmark = pytest.mark.peers

A1111 = "AUTOMATIC1111/stable-diffusion-webui"

SIDECARS = {
    "in SD 2's place": (V_YAML, "v"),
    "by the scaling": (SGM_YAML.format(scaling="VScaling"), "v"),
    "eps by the scaling": (SGM_YAML.format(scaling="EpsScaling"), "eps"),
    "in flow style": ("{model: {params: {parameterization: v}}}", "v"),
    "quoted": ("model: {'params': {'parameterization': 'v'}}", "v"),
    "of something else": ("model: {params: {other: v}}", "eps"),
}


class _Config(dict):
    """A scheduler's settings as diffusers has them: entries that are attributes too."""

    prediction_type = "epsilon"


@pytest.fixture(scope="module")
def forge() -> Callable[[Path], Any]:
    """Forge's loader: what it makes of a file, with `prediction_type` and `ztsnr`."""
    repository, guess = (
        checkout("lllyasviel/stable-diffusion-webui-forge"),
        checkout("lllyasviel/huggingface_guess"),
    )
    kinds = SimpleNamespace(
        **{name: SimpleNamespace(name=name) for name in ("EPS", "V_PREDICTION", "V_PREDICTION_EDM", "EDM")}
    )
    model_type = guess.take(
        "huggingface_guess/model_list.py",
        "SDXL.model_type",
        ModelType=kinds,
        latent=SimpleNamespace(),
        torch=torch,
    ).model_type

    class Guess:
        huggingface_repo = "stabilityai/stable-diffusion-xl-base-1.0"
        unet_target, vae_target = "unet", "vae"
        unet_key_prefix, vae_key_prefix = ["model.diffusion_model."], ["first_stage_model."]
        sampling_settings: dict = {}  # noqa: RUF012  as theirs
        clip_target = staticmethod(lambda state: {})
        process_vae_state_dict = staticmethod(lambda state: state)
        process_clip_state_dict = staticmethod(lambda state: state)

        def model_type(self, state: dict) -> Any:
            return model_type(self, state)

    class Found:
        matched_guesses = (Guess,)

        def __init__(self, estimated_config: Any, huggingface_components: dict) -> None:
            self.ztsnr = estimated_config.ztsnr
            self.prediction_type = huggingface_components["scheduler"].config.prediction_type

    def component(*_: Any) -> Any:
        return SimpleNamespace(config=_Config(prediction_type="epsilon"))

    loader: Any = repository.take(
        "backend/loader.py", "split_state_dict", "preprocess_state_dict", "forge_loader", torch=torch, os=os,
        dir_path="",
        huggingface_guess=SimpleNamespace(guess=lambda state: Guess()),
        load_torch_file=lambda path: dict(safetensors_file.read(path)[0]),
        try_filter_state_dict=lambda state, prefixes: {},
        replace_state_dict=None, possible_models=[Found], chroma_is_in_huggingface_guess=True,
        DiffusionPipeline=SimpleNamespace(load_config=lambda path: {"scheduler": ["diffusers", "x"]}),
        load_huggingface_component=component,
    )  # fmt: skip
    return lambda path: loader.forge_loader(str(path))


@pytest.mark.parametrize(
    ("prediction", "kind", "zero_snr"),
    [
        (Prediction("v", True, "given"), "v_prediction", True),
        (Prediction("v", False, "given"), "v_prediction", False),
        (Prediction("eps", False, "given"), "epsilon", False),
    ],
)
def test_forge_reads_our_markers(
    prediction: Prediction, kind: str, zero_snr: bool, forge: Callable[[Path], Any], tmp_path: Path
) -> None:
    single_file.save(working(prediction=prediction), tmp_path / "model.safetensors")
    found = forge(tmp_path / "model.safetensors")
    assert (found.prediction_type, found.ztsnr) == (kind, zero_snr)


@pytest.mark.parametrize("name", SIDECARS)
def test_forge_and_we_read_a_sidecar_alike(name: str, forge: Callable[[Path], Any], tmp_path: Path) -> None:
    text, kind = SIDECARS[name]
    single_file.save(working(), tmp_path / "model.safetensors", dtype=torch.float16)
    safetensors_file.write(
        tmp_path / "model.safetensors", safetensors_file.read(tmp_path / "model.safetensors")[0]
    )
    (tmp_path / "model.yaml").write_text(text)
    assert detect({}, {}, tmp_path / "model.safetensors").kind == kind
    found = forge(tmp_path / "model.safetensors")
    assert found.prediction_type == {"v": "v_prediction", "eps": "epsilon"}[kind]


CONFIGS = ("sdxl", "sdxlv", "sdxl_inpainting", "sdxl_refiner", "default", "sd3")
"""A1111's settings of networks, each standing for itself: the files are Stability's or its own."""


def a1111_finder(tool: Checkout) -> Any:
    """A1111's functions that choose a file's settings."""
    return tool.take(
        "modules/sd_models_config.py", "guess_model_config_from_state_dict", "find_checkpoint_config",
        "find_checkpoint_config_near_filename", os=os, torch=torch,
        **{f"config_{name}": name for name in CONFIGS},
    )  # fmt: skip


def v_model(folder: Path) -> tuple[dict[str, torch.Tensor], Any]:
    """The tensors of a file for v-prediction from zero SNR, and the file as A1111 names it."""
    path = folder / "model.safetensors"
    single_file.save(working(prediction=Prediction("v", True, "given")), path)
    tensors = dict(safetensors_file.read(path)[0])
    assert {"v_pred", "ztsnr"} <= tensors.keys()
    return tensors, SimpleNamespace(filename=str(path))


def test_the_release_of_a1111_takes_the_sidecar_and_does_not_know_the_markers(tmp_path: Path) -> None:
    """Release 1.10.1 has no key for v: without a side-car it takes any SDXL file for sd_xl_base.yaml, eps."""
    found = a1111_finder(checkout(A1111))
    tensors, info = v_model(tmp_path)
    path = Path(info.filename)
    assert found.find_checkpoint_config(tensors, info) == "sdxl"
    path.with_suffix(".yaml").write_text(SGM_YAML.format(scaling="VScaling"))
    taken = found.find_checkpoint_config(tensors, info)
    assert taken == str(path.with_suffix(".yaml"))
    omegaconf = pytest.importorskip("omegaconf")  # with which A1111 reads it
    params = omegaconf.OmegaConf.load(taken).model.params
    assert params.denoiser_config.params.scaling_config.target.endswith(".VScaling")
    assert single_file.load(path).prediction.kind == "v"


@pytest.mark.parametrize(("scaling", "kind"), [("VScaling", "v"), ("EpsScaling", "eps")])
def test_a1111_predicts_what_the_sidecars_scaling_says(scaling: str, kind: str) -> None:
    """It builds the class that the side-car names, and asks whether it is VScaling."""
    names = ("VScaling", "EpsScaling")
    scalings = SimpleNamespace(**{name: type(name, (), {}) for name in names})
    parts = SimpleNamespace(
        denoiser_scaling=scalings,
        discretizer=SimpleNamespace(
            LegacyDDPMDiscretization=lambda: SimpleNamespace(alphas_cumprod=sdxl_schedule().alpha ** 2)
        ),
    )
    extend: Any = checkout(A1111).take(
        "modules/sd_models_xl.py", "extend_sdxl", torch=torch,
        torch_utils=SimpleNamespace(get_param=lambda network: next(network.parameters())),
        sgm=SimpleNamespace(modules=SimpleNamespace(diffusionmodules=parts)),
        devices=SimpleNamespace(device=torch.device("cpu")),
    )  # fmt: skip
    model = SimpleNamespace(
        model=SimpleNamespace(diffusion_model=torch.nn.Linear(1, 1)),
        denoiser=SimpleNamespace(scaling=getattr(scalings, scaling)()),
        conditioner=SimpleNamespace(),
    )
    extend.extend_sdxl(model)
    assert model.parameterization == kind


def a1111_schedule(tool: Checkout, setting: str, **model: Any) -> torch.Tensor:
    """The abar that A1111 samples with, for its setting *Noise schedule for sampling*."""
    functions: Any = tool.take(
        "modules/sd_models.py", "rescale_zero_terminal_snr_abar", "apply_alpha_schedule_override",
        opts=SimpleNamespace(use_downcasted_alpha_bar=False, sd_noise_schedule=setting),
        shared=SimpleNamespace(device=torch.device("cpu")),
    )  # fmt: skip
    own = SimpleNamespace(
        alphas_cumprod=None, alphas_cumprod_original=(sdxl_schedule().alpha ** 2).float(), **model
    )
    functions.apply_alpha_schedule_override(own)
    return own.alphas_cumprod


def test_the_setting_of_a1111_gives_our_zero_snr_schedule() -> None:
    """But for its last level, in whose place it puts a constant."""
    ours = zero_terminal_snr(sdxl_schedule()).alpha.float() ** 2
    theirs = a1111_schedule(checkout(A1111), "Zero Terminal SNR")
    assert (theirs[:-1] - ours[:-1]).abs().max() <= FLOAT32_ROUNDING * ours.max()
    assert torch.equal(a1111_schedule(checkout(A1111), "Default"), (sdxl_schedule().alpha ** 2).float())


def test_the_development_version_of_a1111_reads_both_markers(tmp_path: Path) -> None:
    files = ("modules/sd_models_config.py", "modules/sd_models.py")
    tool = at_commit(A1111, A1111_DEVELOPMENT, files, tmp_path / "dev")
    tensors, info = v_model(tmp_path)
    assert a1111_finder(tool).find_checkpoint_config(tensors, info) == "sdxlv"
    assert "v_pred" not in tensors  # it takes the marker out of the tensors that it loads
    loader = (tool.path / "modules" / "sd_models.py").read_text()
    assert re.search(r"if 'ztsnr' in state_dict:\n\s+model\.ztsnr = True", loader)
    marked = a1111_schedule(tool, "Default", ztsnr=True)
    assert torch.equal(marked, a1111_schedule(tool, "Zero Terminal SNR", ztsnr=False))
    assert torch.equal(a1111_schedule(tool, "Default", ztsnr=False), (sdxl_schedule().alpha ** 2).float())
