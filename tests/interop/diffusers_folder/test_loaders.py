"""diffusers' own ways in, at tiny size and offline: single file, folder, LoRA, and its conversion scripts."""

import dataclasses
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import diffusers
import pytest
import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline
from diffusers.pipelines.stable_diffusion import convert_from_ckpt
from safetensors.torch import load_file
from torch import nn

from refimpl.conformance.adapters.checkouts.checkout import Checkout
from refimpl.errors import InputError
from refimpl.interop import diffusers_folder, single_file
from refimpl.interop.checkpoint import Checkpoint, Prediction
from refimpl.interop.diffusers_folder.scheduler import lines_for_single_file, scheduler_table
from refimpl.interop.lora import files as lora_files
from refimpl.interop.lora.files import LoRAFile
from refimpl.interop.lora.merge import merge_into_checkpoint
from refimpl.interop.network.architecture import Architecture
from refimpl.latents.vae import VAEConfig
from refimpl.model.lora.adapters import add_lora, lora_state
from refimpl.model.lora.config import ATTENTION_TARGETS, TEXT_TARGETS
from refimpl.model.unet import UNet, UNetConfig
from refimpl.text.encoders import tiny_configs, tiny_encoders
from refimpl.text.tokenizer import tiny_tokenizer
from tests.interop.checkpoints import PARTS, bits, random_bits, same_bits, working
from tests.interop.diffusers_folder.test_pipeline import V_ZTSNR, pipeline, theirs
from tests.interop.lora_examples import fill
from tests.tolerances import NETWORK_FLOAT32

DIFFUSERS_COMMIT = "58eb52c0803ea9af3abec60841c2a093bdf1f951"
SCRIPT = "scripts/convert_diffusers_to_original_sdxl.py"
NETWORKS = ("unet", "vae", "text_encoder", "text_encoder_2")
PREDICTIONS = {
    "v with zero SNR": V_ZTSNR,
    "v": Prediction("v", False, "given"),
    "x0 with zero SNR": Prediction("x0", True, "given"),
    "EDM": Prediction("v", False, "given", 0.002, 120.0),
}
# As many blocks per level as SDXL: the scripts count them.
BLOCKS = Architecture(
    dataclasses.replace(UNetConfig.tiny(), res_blocks=2),
    dataclasses.replace(VAEConfig.tiny(), res_blocks=2),
    *tiny_configs(),
)


def both(folder: Path, checkpoint: Checkpoint) -> tuple[Path, Path]:
    """The checkpoint as a single file and as a diffusers folder."""
    single_file.save(checkpoint, folder / "model.safetensors")
    diffusers_folder.save(checkpoint, folder / "folder", tokenizer=tiny_tokenizer())
    return folder / "model.safetensors", folder / "folder"


def from_single_file(path: Path, config: Path) -> StableDiffusionXLPipeline:
    """diffusers' loader; config replaces the published folder that it would download."""
    pipe = StableDiffusionXLPipeline.from_single_file(str(path), config=str(config), local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the published scheduler, eps on the plain schedule, as `from_single_file` finds by default."""
    path = tmp_path_factory.mktemp("published") / "folder"
    diffusers_folder.save(working(seed=9), path, tokenizer=tiny_tokenizer())
    return path


def test_from_single_file_has_every_weight_of_the_folder(tmp_path: Path) -> None:
    path, folder = both(tmp_path, working(prediction=V_ZTSNR))
    pipe, expected = from_single_file(path, folder), pipeline(folder)
    for name in NETWORKS:
        assert same_bits(getattr(pipe, name).state_dict(), getattr(expected, name).state_dict()), name
    assert torch.equal(theirs(pipe, 2), theirs(expected, 2))


def test_the_two_lines_say_what_the_loader_ignores(tmp_path: Path, published: Path) -> None:
    path, folder = both(tmp_path, working(prediction=V_ZTSNR))
    pipe, expected = from_single_file(path, published), theirs(pipeline(folder), 2)
    assert pipe.scheduler.config.prediction_type == "epsilon"  # whatever the file says
    assert not torch.equal(theirs(pipe, 2), expected)
    exec("\n".join(lines_for_single_file(V_ZTSNR)), {"pipe": pipe})
    assert torch.equal(theirs(pipe, 2), expected)


@pytest.mark.parametrize("prediction", PREDICTIONS.values(), ids=list(PREDICTIONS))
def test_they_make_the_scheduler_that_a_folder_has(prediction: Prediction) -> None:
    published = EulerDiscreteScheduler.from_config(scheduler_table(Prediction("eps", False, "")))
    pipe, table = SimpleNamespace(scheduler=published), scheduler_table(prediction)
    lines = lines_for_single_file(prediction)
    assert len(lines) == 2
    exec("\n".join(lines), {"pipe": pipe})
    expected = getattr(diffusers, table["_class_name"]).from_config(table)
    assert type(pipe.scheduler) is type(expected)
    for scheduler in (pipe.scheduler, expected):
        scheduler.set_timesteps(7)
    assert torch.equal(pipe.scheduler.sigmas, expected.sigmas)
    assert torch.equal(pipe.scheduler.timesteps, expected.timesteps)
    assert pipe.scheduler.config.prediction_type == expected.config.prediction_type


def test_an_eps_model_needs_no_lines() -> None:
    assert lines_for_single_file(Prediction("eps", False, "given")) == []


def test_the_folder_carries_what_the_pipeline_reads(tmp_path: Path) -> None:
    _, folder = both(tmp_path, working(prediction=V_ZTSNR))
    config = pipeline(folder).scheduler.config
    assert (config.prediction_type, config.rescale_betas_zero_snr) == ("v_prediction", True)
    assert config.timestep_spacing == "linspace"


def adapters(seed: int = 0) -> LoRAFile:
    """A LoRA of the tiny networks, UNet and both towers."""
    encoder_l, encoder_g = tiny_encoders()
    parts: dict[str, nn.Module] = {"unet": UNet(UNetConfig.tiny()), "text_l": encoder_l, "text_g": encoder_g}
    for number, (part, network) in enumerate(parts.items()):
        add_lora(network, ATTENTION_TARGETS if part == "unet" else TEXT_TARGETS, 2, 1.0, seed=seed + number)
        fill(network, seed + number)
    return LoRAFile(**{part: lora_state(network) for part, network in parts.items()})


def test_load_lora_weights_fuses_to_the_merged_checkpoint(tmp_path: Path) -> None:
    checkpoint, lora = working(prediction=V_ZTSNR), adapters()
    path, folder = both(tmp_path, checkpoint)
    lora_files.save(lora, tmp_path / "lora.safetensors")
    (tmp_path / "merged").mkdir()
    _, merged = both(tmp_path / "merged", merge_into_checkpoint(checkpoint, lora))
    wanted, plain = pipeline(merged), pipeline(folder)
    for pipe in (pipeline(folder), from_single_file(path, folder)):
        pipe.load_lora_weights(str(tmp_path / "lora.safetensors"))
        pipe.fuse_lora()
        pipe.unload_lora_weights()
        for name, state in lora.parts().items():
            network = {"text_l": "text_encoder", "text_g": "text_encoder_2"}.get(name, name)
            fused, expected, before = (
                getattr(source, network).state_dict() for source in (pipe, wanted, plain)
            )
            changed = [key for key in before if not torch.equal(before[key], expected[key])]
            assert len(changed) == len(state) // 3  # down, up and alpha of each
            for key, value in expected.items():
                scale = value.abs().max() if key in changed else 0.0
                assert (fused[key] - value).abs().max() <= NETWORK_FLOAT32 * scale, key


def test_the_conversion_from_one_file_gives_our_folder(tmp_path: Path) -> None:
    """What diffusers' convert_original_stable_diffusion_to_diffusers.py calls, network by network."""
    path, folder = both(tmp_path, random_bits(BLOCKS, 1, (torch.float32,)))
    tensors = load_file(path)
    unet = convert_from_ckpt.convert_ldm_unet_checkpoint(
        dict(tensors), {"layers_per_block": 2, "class_embed_type": None, "addition_embed_type": "text_time"}
    )
    vae = convert_from_ckpt.convert_ldm_vae_checkpoint(dict(tensors), {})
    for name, converted in (("unet", unet), ("vae", vae)):
        found = load_file(folder / name / "diffusion_pytorch_model.safetensors")
        assert {key: bits(value) for key, value in converted.items()} == {
            key: bits(value) for key, value in found.items()
        }
    bigg = convert_from_ckpt.convert_open_clip_checkpoint(
        dict(tensors), str(folder / "text_encoder_2"), "conditioner.embedders.1.model.",
        has_projection=True, local_files_only=True,
    )  # fmt: skip
    expected = load_file(folder / "text_encoder_2" / "model.safetensors")
    state = bigg.state_dict()
    assert {bits(value) for value in expected.values()} == {bits(value) for value in state.values()}


def test_their_script_writes_our_file_but_not_what_it_predicts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """convert_diffusers_to_original_sdxl.py, from a checkout in REFIMPL_PEERS."""
    try:
        script = Checkout("huggingface/diffusers", DIFFUSERS_COMMIT).path / SCRIPT
    except InputError as error:
        pytest.skip(str(error))
    path, folder = both(tmp_path, random_bits(BLOCKS, 2, (torch.float32,), prediction=V_ZTSNR))
    out = tmp_path / "out.safetensors"
    arguments = ["--model_path", str(folder), "--checkpoint_path", str(out), "--use_safetensors"]
    monkeypatch.setattr(sys, "argv", [SCRIPT, *arguments])
    runpy.run_path(str(script), run_name="__main__")
    tensors, expected = load_file(out), load_file(path)
    assert set(expected) - set(tensors) == {"v_pred", "ztsnr"}
    assert all(bits(value) == bits(expected[key]) for key, value in tensors.items())
    read, own = single_file.load(out), single_file.load(path)
    assert all(same_bits(getattr(read, part), getattr(own, part)) for part in PARTS)
    assert read.prediction.kind == "eps"  # so that `refimpl convert --v-pred --ztsnr` is needed after it
