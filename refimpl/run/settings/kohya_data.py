"""The data side of a configuration of kohya's sd-scripts: its arguments, and the file of `dataset_config`."""

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from refimpl.data.config import DataConfig
from refimpl.errors import InputError
from refimpl.file_kinds import named_kind
from refimpl.printable import one_line
from refimpl.run.settings.translated import Rule, Translation, leave, same, to
from refimpl.run.settings.typed import short

DEFAULT_LONGEST, DEFAULT_SHORTEST, DEFAULT_STEP = (
    1024,
    256,
    64,
)  # max_bucket_reso, min_bucket_reso, bucket_reso_steps
REPEATED = re.compile(r"\d+_.+")  # folders of DreamBooth's layout: 10_name is repeated 10 times

ONE_SET = "refimpl trains on one data set; index several with `refimpl data index A B -o ALL.index`"
RANDOM_CROP = "the crop is drawn at random at every visit, and the network is told where it was (N §4.1.3)"


@dataclass
class Merged:
    """Fields as sd-scripts takes them: of those with the same name, the last one."""

    known: frozenset[str]
    """Names of its fields."""
    fields: dict[str, Any] = field(default_factory=dict)
    """The fields by their plain names; unknown ones, and those that another overrides, by their place."""
    places: dict[str, str] = field(default_factory=dict)
    """Where each of the former stands, with its name."""
    overridden: dict[str, str] = field(default_factory=dict)
    """The place of each of the latter, and the place of the field that overrides it."""

    def add(self, later: Mapping[str, Any], table: str) -> None:
        """Adds the fields of a table, which override those before; of no table where its name is empty."""
        for name, value in later.items():
            place = f"{table or 'top level'}.{name}"
            if name not in self.known:
                self.fields[place if table else name] = value
                continue
            if name in self.fields:
                before = self.places[name]
                self.fields[before] = self.fields.pop(name)
                self.overridden[before] = place
            self.fields[name], self.places[name] = value, place

    def tell_overridden(self, translation: Translation) -> None:
        """Accounts for the fields that others override."""
        for name, by in self.overridden.items():
            translation.left.pop(name, None)
            translation.off[:] = [other for other in translation.off if other != name]
            translation.same[name] = f"{short(self.fields[name])}: {by} overrides it"


def add_data(found: Merged, folder: str) -> None:
    """Adds the fields of `dataset_config` and of the first data set by their plain names.

    Further data sets keep their paths, `datasets[1].subsets[0].image_dir`.
    Raises InputError for a dataset configuration that is not TOML, and for data sets that are no tables.
    """
    table: dict[str, Any] = {n: found.fields.pop(n) for n in ("general", "datasets") if n in found.fields}
    named = found.fields.get("dataset_config")
    where = "general"
    if isinstance(named, str) and "datasets" not in table:
        found.fields |= table
        path = next((p for p in (Path(folder) / named, Path(named)) if p.is_file()), None)
        if path is None:
            return
        table, where = _read_data(path), "dataset_config.general"
    general = table.get("general", {})
    found.add(general if isinstance(general, Mapping) else {"general": general}, where)
    for number, data in enumerate(_tables("datasets", table.get("datasets", []))):
        subsets = _tables("subsets", data.get("subsets", []))
        for place, fields in enumerate([{k: v for k, v in data.items() if k != "subsets"}, *subsets]):
            where = f"datasets[{number}]" + (f".subsets[{place - 1}]" if place else "")
            if number == 0 and place <= 1:
                found.add(fields, where)
            else:
                found.fields |= {f"{where}.{name}": value for name, value in fields.items()}
    found.fields |= {
        f"dataset_config.{name}": value
        for name, value in table.items()
        if name not in ("general", "datasets")
    }


def _read_data(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        problem = named_kind(path, "a file of settings", "give a TOML file")
        raise InputError(f"dataset_config {problem or f'{path} is not text; give a TOML file'}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"dataset_config {path} is not valid TOML: {error}") from error


def leave_other_sets(translation: Translation) -> None:
    """Leaves the fields of further data sets, with the reason."""
    for name, value in translation.fields.items():
        if name.startswith("datasets[") and name not in translation.unknown:
            leave(ONE_SET)(translation, name, value)


def _tables(name: str, value: Any) -> list[Mapping[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(entry, Mapping) for entry in value):
        raise InputError(
            f"{name} must be a list of tables, as [[{name}]] makes it, not {one_line(repr(value))}"
        )
    return value


def _without(t: Translation, name: str, value: Any) -> None:
    if value is False or (name == "token_warmup_min" and value == 1) or value == 0:
        t.off.append(name)
    else:
        t.left[name] = "refimpl has no such setting"


def _dataset_config(t: Translation, name: str, value: Any) -> None:
    if "image_dir" in t.fields or "metadata_file" in t.fields:
        t.same[name] = "its data set is translated with it"
    else:
        t.left[name] = f"{value} is not here to be read"


def _folder(t: Translation, name: str, value: Any) -> None:
    if t.has("in_json") or t.has("metadata_file"):
        t.same[name] = "the metadata names the images"
        return
    t.set(name, "data.folder", value)
    if os.path.isdir(value):
        repeated = sorted(
            entry.name for entry in os.scandir(value) if entry.is_dir() and REPEATED.fullmatch(entry.name)
        )
        if repeated:
            t.left[f"{name}: repeats of {', '.join(repeated)}"] = "every image is seen once in an epoch"


def _resolution(t: Translation, name: str, value: Any) -> None:
    """An area: the buckets' largest one; without buckets, a single square one."""
    sides = [int(side) for side in re.findall(r"\d+", str(value))]
    if len(sides) not in (1, 2):
        t.left[name] = f"{value!r} is neither a side nor two of them"
        return
    width, height = sides[0], sides[-1]
    t.set(name, "buckets.max_area", width * height)
    if t.has("enable_bucket"):
        t.assume("buckets.min_side", t.fields.get("min_bucket_reso") or DEFAULT_SHORTEST, "min_bucket_reso")
        longest = max(int(t.fields.get("max_bucket_reso") or DEFAULT_LONGEST), width, height)
        t.assume("buckets.max_side", longest, "max_bucket_reso")
        t.assume("buckets.step", t.fields.get("bucket_reso_steps") or DEFAULT_STEP, "bucket_reso_steps")
    elif width == height:
        for setting in ("min_side", "max_side"):
            t.set(name, f"buckets.{setting}", width)
    else:
        t.left[name] = (
            f"a single bucket of {width}×{height} without enable_bucket; buckets of that area are made"
        )
        t.origin["buckets.max_area"] = f"{name} of {t.trainer}, with buckets"


def side(setting: str) -> Rule:
    """Carries over a bucket's side or step, which have an effect only with enable_bucket."""

    def rule(t: Translation, name: str, value: Any) -> None:
        if t.has("enable_bucket"):
            t.set(name, setting, value)
        else:
            t.same[name] = "without enable_bucket it has no effect"

    return rule


def _tag_dropout(t: Translation, name: str, value: Any) -> None:
    classes = ("general", *DataConfig().tag_classes)
    t.set(name, "data.tag_dropout", tuple(f"{tag_class}:{value}" for tag_class in classes))


DATA_RULES: dict[str, Rule] = {
    "dataset_config": _dataset_config,
    "train_data_dir": _folder,
    "image_dir": _folder,
    "in_json": to("data.folder"),
    "metadata_file": to("data.folder"),
    "batch_size": to("train.batch_size"),
    "resolution": _resolution,
    "enable_bucket": same("images are sorted into buckets (N §4.1.2); without it, into the single one of resolution"),
    "min_bucket_reso": side("buckets.min_side"),
    "max_bucket_reso": side("buckets.max_side"),
    "bucket_reso_steps": side("buckets.step"),
    "bucket_no_upscale": leave("images smaller than their bucket are enlarged"),
    "skip_image_resolution": leave("no image is left out for its size; `refimpl data check` lists the small ones"),
    "random_crop": same(RANDOM_CROP, (True,), RANDOM_CROP),
    "shuffle_caption": to("data.shuffle_tags"),
    "keep_tokens": to("data.keep_first_tags"),
    "flip_aug": to("data.horizontal_flip"),
    "caption_dropout_rate": to("train.caption_dropout"),
    "caption_tag_dropout_rate": _tag_dropout,
    "caption_extension": same("read beside each image", (".txt", ".caption"), "captions end in .txt or .caption"),
    "caption_extention": same("read beside each image", (".txt", ".caption"), "captions end in .txt or .caption"),
    "caption_separator": same("tags are separated by commas", (",", ", "), "tags are separated by commas"),
    "resize_interpolation": same("images are scaled by Lanczos", ("lanczos",), "images are scaled by Lanczos"),
    "num_repeats": same("every image is seen once in an epoch", (1,), "an image is seen once in an epoch"),
    "dataset_repeats": same("every image is seen once in an epoch", (1,), "an image is seen once in an epoch"),
    **dict.fromkeys(
        ("color_aug", "face_crop_aug_range", "caption_prefix", "caption_suffix", "keep_tokens_separator",
         "secondary_separator", "enable_wildcard", "token_warmup_min", "token_warmup_step", "class_tokens",
         "is_reg", "cache_info", "support_controlnet", "support_dreambooth", "support_dropout",
         "support_finetuning", "custom_attributes", "conditioning_data_dir"),
        _without,
    ),
}  # fmt: skip
