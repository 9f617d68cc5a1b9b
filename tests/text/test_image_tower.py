"""Image prompts: what CLIP's image tower is given, and which towers are refused (S §2.6)."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil, CLIPVisionModelWithProjection

from refimpl.errors import InputError
from refimpl.text.image_tower import PIXEL_STD, clip_pixels, embed_images, load_image_tower
from tests.tolerances import BICUBIC_LEVELS
from tests.train.runs import write_image_tower

SIDE = 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_image_tower(tmp_path_factory.mktemp("tower") / "image_encoder")


def picture(width: int, height: int) -> Image.Image:
    """A smooth image with all levels: on noise, Pillow clips overshoot between its two passes."""
    levels = np.random.default_rng(0).integers(0, 256, (3, 3, 3), dtype=np.uint8)
    return Image.fromarray(levels).resize((width, height), Image.Resampling.BILINEAR)


@pytest.mark.parametrize("size", [(16, 16), (40, 32), (32, 64), (20, 17), (9, 12), (1, 1), (3, 500)])
def test_pixels_are_those_of_clips_own_preprocessing(size: tuple[int, int]) -> None:
    processor = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    image = picture(*size)
    wanted = processor(images=image, return_tensors="pt")["pixel_values"]
    ours = clip_pixels(torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 127.5 - 1, SIDE)
    assert ours.shape == wanted.shape == (1, 3, SIDE, SIDE)
    levels = (ours - wanted).abs() * torch.tensor(PIXEL_STD).view(3, 1, 1) * 255
    assert float(levels.max()) <= BICUBIC_LEVELS


def test_embeddings_are_transformers_own(folder: Path) -> None:
    tower = load_image_tower(folder, 64)
    assert not tower.training
    assert not any(parameter.requires_grad for parameter in tower.parameters())
    images = torch.rand(3, 3, 24, 40, generator=torch.Generator().manual_seed(0)) * 2 - 1
    embedded = embed_images(tower, images)
    assert embedded.shape == (3, 64)
    assert torch.equal(embedded, tower(pixel_values=clip_pixels(images, SIDE)).image_embeds)
    assert not torch.equal(embedded[0], embedded[1])


def test_towers_that_do_not_fit_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"image_encoder: embeds in 64 channels, the pooled text state has 1280"
    ):
        load_image_tower(folder, 1280)
    with pytest.raises(InputError, match=r"absent: config\.json not found"):
        load_image_tower(tmp_path / "absent", 64)
    shutil.copytree(folder, tmp_path / "oblong")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8")) | {"image_size": [16, 16]}
    (tmp_path / "oblong" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(InputError, match="oblong: cannot be read"):
        load_image_tower(tmp_path / "oblong", 64)
    (tmp_path / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match="cannot be read"):
        load_image_tower(tmp_path, 64)
    tower = CLIPVisionModelWithProjection.from_pretrained(str(folder))
    state = {name: value for name, value in tower.state_dict().items() if "visual_projection" not in name}
    tower.save_pretrained(str(tmp_path / "part"), state_dict=state)
    with pytest.raises(InputError, match=r"missing tensors \['visual_projection\.weight'\]"):
        load_image_tower(tmp_path / "part", 64)
