"""Classes of tags: from prefixes, from categories, from a table; implied tags."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refimpl.data.captions import parse_caption
from refimpl.data.tag_rules import TagRules, class_name, read_tag_table
from refimpl.errors import InputError

PLAIN = TagRules()


@given(st.text())
def test_a_text_without_further_rules_is_what_parse_caption_makes_of_it(text: str) -> None:
    assert PLAIN.from_text(text) == parse_caption(text)
    through_tags = TagRules(table={"never a tag": "x"}).from_text(text)
    assert through_tags == parse_caption(text)


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("long_hair", "long hair"),
        ("^_^", "^_^"),
        ("o_o", "o_o"),
        ("<o>_<o>", "<o>_<o>"),
        ("re_zero_(series)", "re zero (series)"),
        ("_lead_", "lead"),
        ("\u00e9t\u00e9_2", "\u00e9t\u00e9 2"),
        ("plain", "plain"),
    ],
)
def test_underscores_to_spaces(name: str, written: str) -> None:
    rules = TagRules(underscores_to_spaces=True)
    assert rules.from_text(name) == (written, {"general": (written,)})
    assert PLAIN.from_text(name)[0] == name


def test_a_table_gives_classes_to_what_has_none() -> None:
    rules = TagRules(table={"hatsune miku": "character", "bob": "artist"}, underscores_to_spaces=True)
    caption, tags = rules.from_text("hatsune_miku, bob, meta:bob, 1girl")
    assert caption == "hatsune miku, bob, bob, 1girl"
    assert tags == {
        "character": ("hatsune miku",),
        "artist": ("bob",),
        "meta": ("bob",),
        "general": ("1girl",),
    }


@pytest.mark.parametrize(
    ("record", "caption", "tags"),
    [
        ({}, "", {}),
        ({"text": "red, character:alice"}, "red, alice", {"general": ("red",), "character": ("alice",)}),
        ({"caption": "a", "text": "b"}, "a", {"general": ("a",)}),
        ({"caption": None, "text": "b"}, "b", {"general": ("b",)}),
        ({"tags": "red, blue"}, "red, blue", {"general": ("red", "blue")}),
        ({"tags": ["red", "artist:bob"]}, "red, bob", {"general": ("red",), "artist": ("bob",)}),
        (
            {"tags": [{"name": "bob", "category": 1}, ["x", 4]]},
            "bob, x",
            {"artist": ("bob",), "character": ("x",)},
        ),
        (
            {"tags": {"artist": "bob, ann", "0": ["x"]}},
            "bob, ann, x",
            {"artist": ("bob", "ann"), "general": ("x",)},
        ),
        ({"tag_string": "long_hair ^_^"}, "long_hair, ^_^", {"general": ("long_hair", "^_^")}),
        (
            {"tag_string_artist": "bob", "tag_string_general": "a b", "tag_string": "a b bob", "tags": 7},
            "bob, a, b",
            {"artist": ("bob",), "general": ("a", "b")},
        ),
        ({"caption": "a text", "tags": ["x"]}, "a text, x", {"general": ("a text", "x")}),
        ({"tags": ["a, b"]}, "a b", {"general": ("a b",)}),
        ({"rating": "e", "score": 9000, "caption": "x"}, "x", {"general": ("x",)}),
    ],
)
def test_records(record: dict, caption: str, tags: dict) -> None:
    assert PLAIN.from_record(record)[:2] == (caption, tags)


def test_whether_a_record_holds_a_caption() -> None:
    assert [PLAIN.from_record(record)[2] for record in ({}, {"rating": "s"}, {"text": ""}, {"tags": []})] == [
        False, False, True, True,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("rating", "tag"),
    [("g", "general"), ("s", "sensitive"), ("q", "questionable"), ("e", "explicit"), ("safe", "safe")],
)
def test_ratings(rating: str, tag: str) -> None:
    rules = TagRules(rating_tags=True)
    assert rules.from_record({"caption": "x", "rating": rating})[1]["rating"] == (tag,)
    assert rules.from_record({"caption": "x"})[1] == {"general": ("x",)}


@pytest.mark.parametrize(
    ("score", "tag"), [(150, "masterpiece"), (149.9, "best"), (100, "best"), (-5, "worst"), (-6, None)]
)
def test_quality(score: float, tag: str | None) -> None:
    rules = TagRules(quality=((150, "masterpiece"), (100, "best"), (-5, "worst")))
    found = rules.from_record({"score": score})[1]
    assert found == ({"quality": (tag,)} if tag else {})


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"text": 5}, "its text is 5"),
        ({"tags": 5}, "its tags are 5"),
        ({"tags": [5]}, "its tag 5 is neither a string"),
        ({"tags": [{"category": 1}]}, "has no name"),
        ({"tags": [["x", 99]]}, "tag class 99 is neither a name nor one of 0 general"),
        ({"tags": [["x", float("inf")]]}, "tag class inf is neither a name nor one of 0 general"),
        ({"tags": [["x", float("nan")]]}, "tag class nan is neither"),
        ({"tags": {"artist": 5}}, "its tags are 5"),
        ({"tag_string": ["a"]}, r"its tags are \['a'\]"),
        ({"rating": 3}, "its rating is 3"),
        ({"score": "high"}, "its score is 'high'"),
        ({"score": True}, "its score is True"),
    ],
)
def test_records_of_another_kind_are_named(record: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TagRules(rating_tags=True, quality=((1, "x"),)).from_record(record)


@pytest.mark.parametrize(
    ("value", "name"),
    [(0, "general"), (1, "artist"), ("3", "copyright"), (4.0, "character"), ("5", "meta"), (" x ", "x")],
)
def test_class_names(value: object, name: str) -> None:
    assert class_name(value) == name


@pytest.mark.parametrize(
    ("name", "content", "table"),
    [
        ("t.json", '{"miku": "character", "bob": 1}', {"miku": "character", "bob": "artist"}),
        (
            "t.csv",
            "tag_id,name,category,count\n7,miku,4,100\n8,bob,1,5\n",
            {"miku": "character", "bob": "artist"},
        ),
        ("t.csv", "\ufeffname,category\nmiku,character\n", {"miku": "character"}),
        ("t.csv", 'tag,class\n"a, b",meta\n', {"a, b": "meta"}),
    ],
)
def test_tag_tables(name: str, content: str, table: dict, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    assert read_tag_table(tmp_path / name) == table


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.json", b"[]", "it is not a JSON object"),
        ("t.json", b"{", "not a tag table"),
        ("t.json", b'{"a": 9}', "tag class 9 is neither"),
        ("t.csv", b"name,count\na,1\n", "needs the columns name and category"),
        ("t.csv", b"", "needs the columns name and category"),
        ("t.csv", b"name,category\na,1\nb,99\n", "line 3: tag class '99'"),
        ("t.csv", b"name,category\nb\n", "line 2: tag class None"),
        ("t.csv", b"caf\xe9", "not UTF-8 at byte 3"),
    ],
)
def test_tables_that_are_none_are_named(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_tag_table(tmp_path / name)
