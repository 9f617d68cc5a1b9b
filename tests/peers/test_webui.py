"""Forge and A1111: what they make of our markers and of a side-car .yaml, by their own functions.

Single functions are taken from the checkouts and given stand-ins for what they call: the rest of Forge downloads, and
A1111's needs a network of Stability's to be built.
"""

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from refimpl.interop import single_file
from refimpl.interop.checkpoint import Prediction
from refimpl.interop.single_file.prediction_markers import detect
from refimpl.storage import safetensors_file
from tests.interop.checkpoints import working
from tests.interop.single_file.test_prediction_markers import SGM_YAML, V_YAML
from tests.peers.checkouts import checkout

pytestmark = pytest.mark.peers

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


def test_a1111_takes_the_sidecar_and_does_not_know_the_markers(tmp_path: Path) -> None:
    """Release 1.10.1 has no key for v: without a side-car it takes any SDXL file for sd_xl_base.yaml, eps."""
    configs = {
        name: name
        for name in ("config_sdxl", "config_sdxl_inpainting", "config_sdxl_refiner", "config_default")
    }
    found: Any = checkout("AUTOMATIC1111/stable-diffusion-webui").take(
        "modules/sd_models_config.py", "guess_model_config_from_state_dict", "find_checkpoint_config",
        "find_checkpoint_config_near_filename", os=os, torch=torch, **configs,
    )  # fmt: skip
    path = tmp_path / "model.safetensors"
    single_file.save(working(prediction=Prediction("v", True, "given")), path)
    tensors, info = safetensors_file.read(path)[0], SimpleNamespace(filename=str(path))
    assert {"v_pred", "ztsnr"} <= tensors.keys()
    assert found.find_checkpoint_config(tensors, info) == "config_sdxl"
    path.with_suffix(".yaml").write_text(SGM_YAML.format(scaling="VScaling"))
    taken = found.find_checkpoint_config(tensors, info)
    assert taken == str(path.with_suffix(".yaml"))
    omegaconf = pytest.importorskip("omegaconf")  # with which A1111 reads it
    params = omegaconf.OmegaConf.load(taken).model.params
    assert params.denoiser_config.params.scaling_config.target.endswith(".VScaling")
    assert single_file.load(path).prediction.kind == "v"
