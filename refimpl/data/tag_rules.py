"""Which class a tag belongs to, and which tags follow from an image's metadata record (N §4.2, §4.3)."""

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from refimpl.data.captions import DEFAULT_TAG_CLASSES, Tags, parse_caption
from refimpl.errors import InputError
from refimpl.tables import parsed_json

CLASS_OF_NUMBER = {
    0: "general",
    1: "artist",
    3: "copyright",
    4: "character",
    5: "meta",
}  # Danbooru's categories
TAG_STRINGS = (
    "character",
    "copyright",
    "artist",
    "general",
    "meta",
)  # Danbooru's tag_string_… fields, in this order
RATINGS = {"g": "general", "s": "sensitive", "q": "questionable", "e": "explicit"}
TAG_COLUMNS, CLASS_COLUMNS = ("name", "tag"), ("category", "class")


@dataclass(frozen=True)
class TagRules:
    """How captions and metadata records become tags by class."""

    classes: tuple[str, ...] = DEFAULT_TAG_CLASSES
    """classes that a tag may name as its prefix, as in `character:alice`"""
    table: Mapping[str, str] = field(default_factory=dict)
    """class of each tag that has none from a prefix or a record; names may be spelled with spaces or underscores"""
    underscores_to_spaces: bool = False
    """write long_hair as `long hair`; names without two adjacent letters or digits, such as ^_^, are kept as is"""
    rating_tags: bool = False
    """add a tag of class rating where a record has a `rating`"""
    quality: tuple[tuple[float, str], ...] = ()
    """(minimum score, tag): add the tag, of class quality, of the highest minimum that a record's `score` reaches"""

    def __post_init__(self) -> None:
        bounds = [bound for bound, _ in self.quality]
        if sorted(bounds, reverse=True) != bounds or len(set(bounds)) != len(bounds):
            raise InputError(
                f"quality bounds {bounds} must be listed from the highest to the lowest, each once"
            )

    def named(self, name: str, tag_class: str = "") -> tuple[str, str] | None:
        """Class and name of a tag as written, of class "general" where no other is known; None for an empty tag."""
        name = " ".join(name.replace(",", " ").split())
        prefix, colon, rest = (part.strip() for part in name.partition(":"))
        if not tag_class and colon and rest and prefix in self.classes:
            tag_class, name = prefix, rest
        if not tag_class or tag_class == "general":
            tag_class = (
                self.table.get(name) or self.table.get(name.replace("_", " ")) or tag_class or "general"
            )
        if self.underscores_to_spaces and re.search(r"[^\W_]{2}", name):
            name = " ".join(name.replace("_", " ").split())
        return (tag_class, name) if name else None

    def listed(self, tags: Sequence[tuple[str, str]]) -> tuple[str, Tags]:
        """Caption and tags by class from (class or "", tag as written) pairs."""
        found = [pair for tag_class, name in tags if (pair := self.named(name, tag_class))]
        by_class: dict[str, list[str]] = {}
        for tag_class, name in found:
            by_class.setdefault(tag_class, []).append(name)
        return ", ".join(name for _, name in found), {c: tuple(names) for c, names in by_class.items()}

    def from_text(self, text: str) -> tuple[str, Tags]:
        """Caption and tags by class from text: tags separated by commas or line breaks."""
        if not self.table and not self.underscores_to_spaces:
            return parse_caption(text, self.classes)
        return self.listed([("", name) for name in re.split(r"[,\r\n]", text)])

    def from_record(self, record: Mapping[str, Any]) -> tuple[str, Tags, bool]:
        """Caption, tags by class, and whether the record has a text or tags at all.

        record  `caption` or `text`; `tags`: a comma-separated string, a list of names, of {name, category} or of
                [name, class], or lists by class; or Danbooru's `tag_string…`; `rating`; `score`. Other fields are
                ignored.
        A text and tags are joined, the text first, as other trainers do.
        Raises ValueError for values of another type.
        """
        text = _first(record, ("caption", "text"))
        if text is not None and not isinstance(text, str):
            raise ValueError(f"its text is {text!r}, which is not a string")
        pairs = _record_tags(record)
        held = text is not None or pairs is not None
        implied = self._implied(record)
        if text is not None:
            pairs = [("", name) for name in re.split(r"[,\r\n]", text)] + (pairs or [])
        return (*self.listed((pairs or []) + implied), held)

    def _implied(self, record: Mapping[str, Any]) -> list[tuple[str, str]]:
        implied = []
        rating, score = record.get("rating"), record.get("score")
        if self.rating_tags and rating is not None:
            if not isinstance(rating, str):
                raise ValueError(f"its rating is {rating!r}, which is not a string")
            implied.append(("rating", RATINGS.get(rating, rating)))
        if self.quality and score is not None:
            if isinstance(score, bool) or not isinstance(score, int | float):
                raise ValueError(f"its score is {score!r}, which is not a number")
            implied += [("quality", tag) for bound, tag in self.quality if score >= bound][:1]
        return implied


def _first(record: Mapping[str, Any], names: Sequence[str]) -> Any:
    return next((record[name] for name in names if record.get(name) is not None), None)


def _record_tags(record: Mapping[str, Any]) -> list[tuple[str, str]] | None:
    """(class or "", name) of each tag; None where the record has no tag field at all."""
    classed = {c: record[f"tag_string_{c}"] for c in TAG_STRINGS if f"tag_string_{c}" in record}
    if classed:
        return [(c, name) for c, names in classed.items() for name in _words(names)]
    if record.get("tag_string") is not None:
        return [("", name) for name in _words(record["tag_string"])]
    tags = record.get("tags")
    if tags is None:
        return None
    if isinstance(tags, str):
        return [("", name) for name in re.split(r"[,\r\n]", tags)]
    if isinstance(tags, Mapping):
        return [(class_name(c), name) for c, names in tags.items() for name in _names(names)]
    if isinstance(tags, list | tuple):
        return [_pair(tag) for tag in tags]
    raise ValueError(f"its tags are {tags!r}: give a comma-separated string, a list, or lists by class")


def _words(value: Any) -> list[str]:
    if not isinstance(value, str):
        raise ValueError(f"its tags are {value!r}, which is not a string")
    return value.split()


def _names(value: Any) -> list[str]:
    if isinstance(value, str):
        return re.split(r"[,\r\n]", value)
    if not isinstance(value, list | tuple) or not all(isinstance(name, str) for name in value):
        raise ValueError(f"its tags are {value!r}, which is not a list of strings")
    return list(value)


def _pair(tag: Any) -> tuple[str, str]:
    if isinstance(tag, str):
        return "", tag
    if isinstance(tag, Mapping):
        name, tag_class = _first(tag, TAG_COLUMNS), _first(tag, CLASS_COLUMNS)
    elif isinstance(tag, list | tuple) and len(tag) == 2:
        name, tag_class = tag
    else:
        raise ValueError(f"its tag {tag!r} is neither a string nor a name with a class")
    if not isinstance(name, str):
        raise ValueError(f"its tag {tag!r} has no name")
    return "" if tag_class is None else class_name(tag_class), name


def class_name(value: Any) -> str:
    """The class for a name or for Danbooru's category number. Raises ValueError for anything else."""
    if isinstance(value, str) and not value.strip().isdecimal():
        return value.strip()
    try:
        return CLASS_OF_NUMBER[int(value)]
    except (KeyError, ValueError, TypeError, OverflowError):  # the last for ±∞, as 1e999 is read
        known = ", ".join(f"{number} {name}" for number, name in CLASS_OF_NUMBER.items())
        raise ValueError(f"tag class {value!r} is neither a name nor one of {known}") from None


def read_tag_table(path: Path) -> dict[str, str]:
    """Tag → class, from JSON ({tag: class}) or from CSV with at least the columns name and category.

    Classes are names or Danbooru's category numbers. Raises InputError for anything else; for CSV it gives the line.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 at byte {error.start}; save it as UTF-8") from error
    except OSError as error:
        raise InputError(f"{path}: the tag table can't be read ({error.strerror})") from error
    try:
        if path.suffix.lower() == ".json":
            table = parsed_json(text)
            if not isinstance(table, dict):
                raise ValueError("it is not a JSON object of tag: class")
            return {name: class_name(value) for name, value in table.items()}
        rows = csv.DictReader(text.splitlines())
        name, tag_class = (
            next((column for column in rows.fieldnames or () if column in known), None)
            for known in (TAG_COLUMNS, CLASS_COLUMNS)
        )
        if name is None or tag_class is None:
            raise ValueError(
                f"its first line names {rows.fieldnames}: it needs the columns name and category"
            )
        found = {}
        for row in rows:
            try:
                found[row[name]] = class_name(row[tag_class])
            except ValueError as error:
                raise ValueError(f"line {rows.line_num}: {error}") from None
        return found
    except (ValueError, csv.Error, RecursionError) as error:
        raise InputError(f"{path}: not a tag table: {error}") from error
