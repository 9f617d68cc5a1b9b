"""Which towers are used, and where they and their tokenizer are found (S Tab. 1, §2.5)."""

import shutil
from pathlib import Path

import pytest
import torch

from refimpl.errors import InputError
from refimpl.text.cleaning import CLEANINGS
from refimpl.text.conditioning import encode_prompts
from refimpl.text.config import TOWERS, TextConfig
from refimpl.text.tower_names import freeze_unused, tower_parameters
from refimpl.text.towers import load_towers, save_towers


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny towers laid out as in a diffusers folder."""
    folder = tmp_path_factory.mktemp("towers")
    save_towers(folder, TextConfig(towers="tiny").load())
    return folder


@pytest.mark.parametrize(
    ("towers", "vector", "context_dim", "vector_dim"),
    [
        ("sdxl", "sizes", 2048, 2816),
        ("bigg", "score", 1280, 2560),
        ("tiny", "sizes", 96, 64 + 1536),
        ("tiny_bigg", "score", 64, 64 + 1280),
    ],
)
def test_widths_are_the_papers(towers: str, vector: str, context_dim: int, vector_dim: int) -> None:
    config = TextConfig(towers=towers, vector=vector)
    assert (config.context_dim, config.vector_dim) == (context_dim, vector_dim)


def test_bigg_alone_is_the_second_half_of_both() -> None:
    both, alone = TextConfig(towers="tiny").load(), TextConfig(towers="tiny_bigg").load()
    assert alone[1] is None
    context, pooled = encode_prompts(["red", "blue " * 90], *both)
    second, second_pooled = encode_prompts(["red", "blue " * 90], *alone)
    assert torch.equal(context[..., 32:], second)
    assert torch.equal(pooled, second_pooled)


def test_a_refiners_folder_has_the_second_tower_and_tokenizer_alone(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "text_encoder_2", tmp_path / "text_encoder_2")
    shutil.copytree(folder / "tokenizer", tmp_path / "tokenizer_2")
    tokenizer, encoder_l, encoder_g = load_towers(tmp_path, has_l=False)
    wanted_tokenizer, _, wanted = load_towers(folder)
    assert encoder_l is None
    assert tokenizer.ids("red circle") == wanted_tokenizer.ids("red circle")
    parameters = tower_parameters(wanted)
    assert all(torch.equal(value, parameters[name]) for name, value in tower_parameters(encoder_g).items())
    with pytest.raises(InputError, match=r"text_encoder: config\.json not found"):
        load_towers(tmp_path)


def test_a_tokenizer_can_be_named(folder: Path, tmp_path: Path) -> None:
    for name in ("text_encoder", "text_encoder_2"):
        shutil.copytree(folder / name, tmp_path / name)
    with pytest.raises(
        InputError, match=r"tokenizer: vocab\.json and merges\.txt, or tokenizer\.json not found"
    ):
        TextConfig(folder=str(tmp_path)).load()
    tokenizer, _, _ = TextConfig(folder=str(tmp_path), tokenizer=str(folder / "tokenizer")).load()
    assert tokenizer.ids("red") == load_towers(folder)[0].ids("red")


def test_cleaning_is_the_configurations(folder: Path) -> None:
    for clean in CLEANINGS:
        for config in (TextConfig(towers="tiny", clean=clean), TextConfig(folder=str(folder), clean=clean)):
            assert config.load()[0].clean == clean
    assert load_towers(folder)[0].clean == "none"


def test_names_have_their_prefix_and_what_is_unused_is_frozen() -> None:
    _, encoder_l, encoder_g = TextConfig(towers="tiny").load()
    assert encoder_l is not None
    for encoder in (encoder_l, encoder_g):
        encoder.requires_grad_(True)
        freeze_unused(encoder)
        names = tower_parameters(encoder)
        assert all(name.startswith(("text_model.", "text_projection.")) for name in names)
        assert len(names) == len(list(encoder.parameters()))
    frozen = {name for name, parameter in tower_parameters(encoder_l).items() if not parameter.requires_grad}
    assert frozen == {
        name for name in tower_parameters(encoder_l) if ".layers.1." in name or "final_layer_norm" in name
    }
    assert all(parameter.requires_grad for parameter in encoder_g.parameters())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"towers": "clip"}, "text.towers 'clip' is unknown; use sdxl, bigg, tiny, tiny_bigg"),
        ({"vector": "none"}, "text.vector 'none' is unknown; use sizes, score"),
        ({"clean": "ftfy"}, "text.clean 'ftfy' is unknown; use none, openclip"),
        ({"learning_rate_g": float("nan")}, "text.learning_rate_g nan must be at least 0"),
        ({"learning_rate_l": float("inf")}, "text.learning_rate_l inf must be at least 0"),
        ({"towers": "bigg", "learning_rate_l": 1e-5}, "trains CLIP-L, which towers 'bigg' do not have"),
    ],
)
def test_impossible_settings_are_named(settings: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        TextConfig(**settings)


@pytest.mark.parametrize("towers", TOWERS)
def test_widths_are_those_of_the_architectures(towers: str) -> None:
    config = TextConfig(towers=towers)
    config_l, config_g = config.architectures()
    assert config.context_dim == config_g.hidden_size + (config_l.hidden_size if config_l else 0)
    assert config.pooled_dim == config_g.projection_dim
