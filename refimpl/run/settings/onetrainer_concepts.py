"""OneTrainer's concepts, which name the images and how their captions vary, as settings of refimpl."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from refimpl.errors import InputError
from refimpl.file_kinds import named_kind
from refimpl.run.settings.kohya_data import ONE_SET
from refimpl.run.settings.translated import Rule, Translation, same, to
from refimpl.tables import parsed_json


def read_concepts(fields: dict[str, Any], folder: str) -> list[Mapping[str, Any]]:
    """The concepts in the configuration, or in the file that it names, if that is here.

    Raises InputError for a file that is not JSON.
    """
    concepts = fields.pop("concepts", None)
    name = fields.get("concept_file_name")
    if not concepts and isinstance(name, str) and name:
        path = next((p for p in (Path(folder) / name, Path(name)) if p.is_file()), None)
        if path is None:
            return []
        try:
            concepts = parsed_json(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            problem = named_kind(path, "a file of concepts", "give the JSON file that OneTrainer writes")
            raise InputError(
                f"concept_file_name {problem or f'{path} is not valid JSON: {error}'}"
            ) from error
    return [entry for entry in concepts if isinstance(entry, Mapping)] if isinstance(concepts, list) else []


def translate_concepts(t: Translation, concepts: list[Mapping[str, Any]]) -> None:
    """The first concept's images are trained on, the first validation concept's are held out."""
    used: dict[str, int] = {}
    for number, concept in enumerate(concepts):
        where = f"concepts[{number}]"
        is_enabled = concept.get("enabled", True)
        setting = "data.heldout" if concept.get("validation_concept") else "data.folder"
        if not is_enabled:
            t.off.append(f"{where}.path")
        elif setting in used:
            t.left[f"{where}.path"] = ONE_SET
        else:
            used[setting] = number
            t.set(f"{where}.path", setting, concept.get("path", ""))
        for name in ("enabled", "validation_concept", "name", "seed"):
            if name in concept:
                t.same[f"{where}.{name}"] = "it says which images these are"
    if "data.folder" in used:
        _captions(t, f"concepts[{used['data.folder']}]")
    if t.has("concept_file_name"):
        known = "its concepts are translated with it"
        (t.same if concepts else t.left)["concept_file_name"] = (
            known if concepts else "it is not here to be read"
        )


def _captions(t: Translation, where: str) -> None:
    rules: dict[str, Rule] = {
        "image.enable_random_flip": to("data.horizontal_flip"),
        "image.enable_crop_jitter": same("crops are drawn at random (N §4.1.3)"),
        "include_subdirectories": same("subfolders are read too"),
        "text.enable_tag_shuffling": to("data.shuffle_tags"),
        "text.keep_tags_count": to("data.keep_first_tags"),
        "text.tag_delimiter": same("tags are separated by commas", (",",), "tags are separated by commas"),
        "text.prompt_source": same(
            "captions lie beside the images", ("sample",), "captions lie beside the images, name.txt"
        ),
        "balancing": same(
            "every image is seen once in an epoch", (1, 1.0), "an image is seen once in an epoch"
        ),
        "balancing_strategy": same(
            "every image is seen once in an epoch", ("REPEATS",), "samples aren't drawn"
        ),
        "image_variations": same("a visit's crop and captions are drawn anew, without a cache"),
        "text_variations": same("a visit's crop and captions are drawn anew, without a cache"),
        "loss_weight": same(
            "images weigh alike", (1, 1.0), "tags weigh images (tag_weights); concepts do not"
        ),
    }
    for name, rule in rules.items():
        value = t.fields.get(f"{where}.{name}")
        if value is not None:
            rule(t, f"{where}.{name}", value)
