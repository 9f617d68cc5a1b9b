"""diffusers loads the exported LoRA, into the UNet and both text towers, and computes what our networks compute."""

import copy

import pytest
import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline
from hypothesis import given, settings
from hypothesis import strategies as st

from refimpl.interop.lora import files as lora_files
from refimpl.interop.lora.files import LoRAFile
from refimpl.text.encoders import penultimate_and_pooled, penultimate_state, tiny_encoders
from tests.interop.lora_examples import (
    ARCHITECTURE,
    CONFIG,
    EVERYTHING,
    diffusers_spelled,
    lora_file,
    networks,
    peft,
    unet,
)
from tests.model.diffusers_unet import diffusers_unet, inputs, to_diffusers
from tests.tensors import relative_error
from tests.tolerances import NETWORK_FLOAT32


@pytest.fixture
def pipeline() -> StableDiffusionXLPipeline:
    """diffusers' pipeline around the tiny networks, without adapters."""
    theirs = diffusers_unet(CONFIG).eval()
    theirs.load_state_dict(to_diffusers(unet().state_dict(), CONFIG))
    encoder_l, encoder_g = tiny_encoders()
    return StableDiffusionXLPipeline(
        vae=None,
        text_encoder=encoder_l,
        text_encoder_2=encoder_g,
        tokenizer=None,
        tokenizer_2=None,
        unet=theirs,
        scheduler=EulerDiscreteScheduler(),
    )


@settings(max_examples=4)
@given(
    st.integers(1, 4),
    st.sampled_from((0.5, 1.0, 8.0)),
    st.lists(st.sampled_from(EVERYTHING), min_size=1, max_size=len(EVERYTHING), unique=True),
)
@torch.no_grad()
def test_the_pipeline_computes_what_we_compute(tmp_path_factory, pipeline, rank, alpha, targets):
    parts = networks(rank, alpha, tuple(targets))
    path = tmp_path_factory.mktemp("lora") / "lora.safetensors"
    lora_files.save(lora_file(parts), path)
    call = inputs(CONFIG, 6, 5)
    ids = torch.randint(2, 50, (2, 77), generator=torch.Generator().manual_seed(0))
    ids[:, 40] = eos = parts["text_g"].config.eos_token_id
    plain = call.theirs(pipeline.unet)
    pipeline.load_lora_weights(str(path))
    try:
        wanted = call.theirs(pipeline.unet)
        assert relative_error(call.ours(parts["unet"]), wanted) <= NETWORK_FLOAT32
        assert relative_error(plain, wanted) > NETWORK_FLOAT32  # the adapters have an effect
        theirs = penultimate_state(pipeline.text_encoder.eval(), ids)
        assert relative_error(penultimate_state(parts["text_l"], ids), theirs) <= NETWORK_FLOAT32
        ours = penultimate_and_pooled(parts["text_g"], ids, eos)
        for mine, other in zip(
            ours, penultimate_and_pooled(pipeline.text_encoder_2.eval(), ids, eos), strict=True
        ):
            assert relative_error(mine, other) <= NETWORK_FLOAT32
    finally:
        pipeline.unload_lora_weights()


def test_what_diffusers_saves_is_read(tmp_path):
    """PEFT's keys in the file that diffusers' trainers write; their alphas are in its metadata."""
    from peft import LoraConfig

    written = lora_file(networks(2, 3.0))
    settings_of = LoraConfig(r=2, lora_alpha=3, target_modules=["to_q"]).to_dict()
    settings_of = {key: value for key, value in settings_of.items() if isinstance(value, int | str)}
    StableDiffusionXLPipeline.save_lora_weights(
        str(tmp_path),
        unet_lora_layers=peft("", diffusers_spelled(written.unet)),
        text_encoder_lora_layers=peft("", written.text_l),
        text_encoder_2_lora_layers=peft("", written.text_g),
        unet_lora_adapter_metadata=settings_of,
        text_encoder_lora_adapter_metadata=settings_of,
        text_encoder_2_lora_adapter_metadata=settings_of,
    )
    read = lora_files.load(tmp_path, ARCHITECTURE)
    for part in lora_files.PARTS:
        first, second = getattr(written, part), getattr(read, part)
        assert set(first) == set(second)
        assert all(torch.equal(value, second[key]) for key, value in first.items())


def test_what_peft_saves_of_a_wrapped_network_is_read(tmp_path):
    from peft import LoraConfig, get_peft_model

    wanted = diffusers_spelled(lora_file(networks(2, 3.0, ("*.to_q",))).unet)
    theirs = copy.deepcopy(diffusers_unet(CONFIG))
    own = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    config = LoraConfig(r=2, lora_alpha=3, target_modules=["to_q"], alpha_pattern={own: 5})
    wrapped = get_peft_model(theirs, config)
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            key = name.removeprefix("base_model.model.").replace(".default", "")
            parameter.data.copy_(wanted[key.replace("lora_A", "lora_down").replace("lora_B", "lora_up")])
    wrapped.save_pretrained(str(tmp_path))
    read = LoRAFile(unet=lora_files.load(tmp_path, ARCHITECTURE).unet)
    spelled = diffusers_spelled(read.unet)
    assert set(spelled) == set(wanted)
    for key, value in wanted.items():
        expected = torch.tensor(5.0) if key == f"{own}.alpha" else value
        assert torch.equal(spelled[key], expected), key
