"""Kohya's sd-scripts themselves: a LoRA in their loader, and metadata from their tools in our index."""

import json
from pathlib import Path

import pytest
from PIL import Image

from refimpl.commands.data.index import looked_at
from refimpl.data.index.data_set import index_of, read_source
from refimpl.data.index.record import IndexOptions
from refimpl.data.tag_rules import TagRules
from tests.peers.checkouts import checkout, other_transformers, run_in
from tests.peers.every_layer import write_lora

pytestmark = pytest.mark.peers

KOHYA = "kohya-ss/sd-scripts"
NOT_ADAPTED = {
    "lora_unet_input_blocks_0_0": "the first convolution, which lies in no residual block",
    "lora_unet_label_emb_0_0": "an embedding, which kohya leaves alone",
    "lora_unet_label_emb_0_2": "an embedding, which kohya leaves alone",
    "lora_unet_out_2": "the last convolution, which lies in no residual block",
    "lora_unet_time_embed_0": "an embedding, which kohya leaves alone",
    "lora_unet_time_embed_2": "an embedding, which kohya leaves alone",
    "lora_te2_text_projection": "not in an attention or an MLP of the tower",
}
"""Modules that kohya's network never has, and why: a LoRA of them can be made here, and kohya ignores it."""


@pytest.fixture(scope="module")
def loras(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A LoRA of every layer, 1059 modules, and one of the default targets, 986."""
    folder = tmp_path_factory.mktemp("lora")
    counts = {
        name: sum(write_lora(folder / f"{name}.safetensors", name == "every").values())
        for name in ("every", "default")
    }
    assert counts == {"every": 1059, "default": 986}
    return {name: folder / f"{name}.safetensors" for name in counts}


def cause(module: str, tower_names: str) -> str:
    """Why kohya's network has no such module; empty where there is no reason."""
    if module in NOT_ADAPTED:
        return NOT_ADAPTED[module]
    if module.startswith("lora_te1_text_model_") and not tower_names.startswith("text_model."):
        return (
            "transformers from 5.6 on has no text_model. in CLIP-L's names, after which kohya names modules"
        )
    return ""


def test_every_unmatched_module_has_a_cause(loras: dict[str, Path]) -> None:
    """Under the transformers that is installed: 72 of CLIP-L's prefix where that is 5.6 or later, and the 7 above."""
    found = run_in("kohya_lora", checkout(KOHYA), loras["every"])
    causes = {module: cause(module, found["tower_names"]) for module in found["unmatched"]}
    print(f"\ntransformers {found['transformers']}: {found['matched']} of {found['modules']} modules matched")
    for module, reason in causes.items():
        print(f"  {module}: {reason}")
    assert found["modules"] == 1059
    assert [module for module, reason in causes.items() if not reason] == []
    is_flat = not found["tower_names"].startswith("text_model.")
    assert len(causes) == len(NOT_ADAPTED) + 72 * is_flat
    assert (found["missing"], found["unexpected"]) == ([], [])


def test_under_the_transformers_that_kohya_pins_all_it_adapts_is_matched(loras: dict[str, Path]) -> None:
    older = other_transformers()
    every = run_in("kohya_lora", checkout(KOHYA), loras["every"], first_on_path=older)
    assert every["transformers"].startswith("4.")
    assert every["unmatched"] == sorted(NOT_ADAPTED)
    assert (every["matched"], every["missing"], every["unexpected"]) == (1059 - len(NOT_ADAPTED), [], [])
    default = run_in("kohya_lora", checkout(KOHYA), loras["default"], first_on_path=older)
    assert (default["modules"], default["matched"], default["unmatched"]) == (986, 986, [])
    assert (default["missing"], default["unexpected"]) == ([], [])


CAPTIONS = {
    "a": ("a girl in a red dress", "1girl, red_dress, ^_^"),
    "sub/b": ("two cats, asleep", "2cats, animal_focus"),
    "sub/c": ("", "no_humans"),
    "ü 1": ("a street at night", "night, city_lights, rain"),
}


def test_metadata_of_its_own_tools_is_indexed_with_the_same_captions(tmp_path: Path) -> None:
    """Captions and tags merged into it and cleaned, by three scripts that are run as a user runs them."""
    images = tmp_path / "images"
    for name, (caption, tags) in CAPTIONS.items():
        path = images / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 48)).save(path)
        path.with_suffix(".caption").write_text(caption, encoding="utf-8")
        path.with_suffix(".txt").write_text(tags, encoding="utf-8")
    tool, older = (
        checkout(KOHYA),
        other_transformers(),
    )  # train_util imports what transformers 5 no longer has
    run_in("kohya_metadata", tool, images, images / "meta.json", images / "clean.json", first_on_path=older)
    for file, rules in (("meta.json", TagRules()), ("clean.json", TagRules(underscores_to_spaces=True))):
        table = json.loads((images / file).read_text(encoding="utf-8"))
        with looked_at(str(images / file), IndexOptions(), 1) as read:
            index = index_of(read)
        assert [bad.reason for bad in index.quarantined] == []
        found = {str(path): caption for path, caption in zip(index.paths, index.captions, strict=True)}
        # A caption, then the tags after a comma, as kohya's fine-tuning data set joins them.
        expected = {key: ", ".join(filter(None, (row["caption"], row["tags"]))) for key, row in table.items()}
        assert found == expected
        for path in images.rglob("*.caption"):
            path.rename(path.with_suffix(".kept"))
        with looked_at(str(images), IndexOptions(rules), 1) as read:
            beside = {
                str(path): caption
                for path, caption in zip(index_of(read).paths, index_of(read).captions, strict=True)
            }
        assert beside == {key: row["tags"] for key, row in table.items()}
        for path in images.rglob("*.kept"):
            path.rename(path.with_suffix(".caption"))
    assert len(read_source(images / "meta.json")) == len(CAPTIONS)
