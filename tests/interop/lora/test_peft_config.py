"""Alphas from PEFT's and diffusers' settings; settings of other adapters are rejected."""

import json

import pytest

from refimpl.errors import InputError
from refimpl.interop.lora.peft_config import METADATA_KEY, read_alphas

MODULE = "unet.down_blocks.1.attentions.0.proj_in"


def alphas(tmp_path, table, metadata=None):
    (tmp_path / "adapter_config.json").write_text(table if isinstance(table, str) else json.dumps(table))
    return read_alphas(tmp_path / "adapter_model.safetensors", metadata or {})


def test_without_settings_it_is_the_rank(tmp_path):
    assert read_alphas(tmp_path / "lora.safetensors", {})(MODULE, 7) == 7.0


def test_settings_beside_the_file_count_for_all(tmp_path):
    assert alphas(tmp_path, {"lora_alpha": 3, "r": 4})(MODULE, 4) == 3
    assert alphas(tmp_path, {"r": 4, "alpha_pattern": None})(MODULE, 4) == 4.0


def test_rank_stabilised_scaling_is_alpha_over_the_root_of_the_rank(tmp_path):
    value = alphas(tmp_path, {"lora_alpha": 3.0, "use_rslora": True})(MODULE, 16)
    assert value / 16 == 3.0 / 4


def test_a_pattern_names_modules_by_their_last_parts(tmp_path):
    value = alphas(tmp_path, {"lora_alpha": 3, "alpha_pattern": {"attentions.0.proj_in": 5, "oj_in": 9}})
    assert value(MODULE, 2) == 5
    assert value(MODULE.replace("attentions.0", "attentions.10"), 2) == 3


def test_metadata_name_each_network_and_come_first(tmp_path):
    table = {"unet.lora_alpha": 5, "text_encoder.lora_alpha": 6, "text_encoder_2.use_rslora": False}
    value = alphas(tmp_path, {"lora_alpha": 3}, {METADATA_KEY: json.dumps(table)})
    assert value(MODULE, 2) == 5
    assert value("text_encoder.text_model.encoder.layers.0.mlp.fc1", 2) == 6
    assert value("text_encoder_2.text_model.encoder.layers.0.mlp.fc1", 2) == 2.0


WRONG = {
    "no JSON": ("{", r"adapter_config\.json is not JSON"),
    "deep": ("[" * 100_000, r"adapter_config\.json is not JSON"),
    "a list": ("[]", r"must be a JSON object of settings, not \[\]"),
    "IA3": ({"peft_type": "IA3"}, r"describes 'IA3'; only plain LoRA is read"),
    "DoRA": ({"peft_type": "LORA", "use_dora": True}, r"describes 'DoRA'"),
    "text": ({"lora_alpha": "8"}, r"alpha '8' of lora_alpha is not a finite float32 number"),
    "true": ({"lora_alpha": True}, r"alpha True of lora_alpha"),
    "null": ({"lora_alpha": None}, r"alpha None of lora_alpha"),
    "infinite": ('{"lora_alpha": Infinity}', r"alpha inf of lora_alpha"),
    "nan": ('{"lora_alpha": NaN}', r"alpha nan of lora_alpha"),
    "beyond float": ('{"lora_alpha": 1' + "0" * 400 + "}", r"of lora_alpha is not a finite float32 number"),
    "pattern": ({"alpha_pattern": {"proj_in": []}}, r"alpha \[\] of proj_in is not a finite float32 number"),
    "pattern list": ({"alpha_pattern": [1]}, r"alpha_pattern must be a JSON object, not \[1\]"),
    "expression": ({"alpha_pattern": {"(a+)+$": 1}}, r"alpha_pattern '\(a\+\)\+\$' is a regular expression"),
}


@pytest.mark.parametrize("name", WRONG)
def test_settings_that_are_none_are_refused(tmp_path, name):
    table, message = WRONG[name]
    with pytest.raises(InputError, match=message):
        alphas(tmp_path, table)


def test_a_file_that_is_not_text_is_named(tmp_path):
    (tmp_path / "adapter_config.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"adapter_config\.json cannot be read"):
        read_alphas(tmp_path / "lora.safetensors", {})
