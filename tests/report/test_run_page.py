"""report.html: complete, self-contained, and free of active content whatever the data contain."""

import base64
import hashlib
import io
import json
import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from refimpl.data.demo.photographs import PHOTOGRAPHS, Licence
from refimpl.diffusion.schedule import sdxl_schedule, zero_terminal_snr
from refimpl.errors import InputError
from refimpl.printable import printable
from refimpl.report import figures
from refimpl.report.noised_image import example_image
from refimpl.report.page import SCRIPTS, Headline, Markup, image, page, static, table, text, verdict
from refimpl.report.run_page import Criterion, Grid, ReportContent, render_report, write_report
from refimpl.report.style import svg_bytes

HOSTILE = "<script>alert('x')</script>\" onload=\"y' & <b>"


class Reader(HTMLParser):
    """Collects elements, attributes, visible text and scripts; nothing in the data may become an element."""

    def __init__(self, markup: str):
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.visible: list[str] = []
        self.scripts: list[str] = []
        self.open: list[str] = []
        self.feed(markup)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        (self.scripts if self.open[-1:] == ["script"] else self.visible).append(data)

    def of(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def shown(markup: str) -> str:
    """The words of some HTML as a reader sees them."""
    return "".join(Reader(markup).visible)


def full_content(words: str = "plain") -> ReportContent:
    pictures = [np.full((16, 24, 3), value, np.uint8) for value in (0, 90, 255)]
    plain = sdxl_schedule()
    return ReportContent(
        title=words,
        summary=[words],
        criteria=[Criterion(words, 0.123456, words, True), Criterion("two", words, "1", False)],
        series={"loss": {"steps": [0, 1], "values": [1.0, 0.5]}, words: {"steps": [1], "values": [2.0]}},
        samples=[
            Grid(words, pictures, [words] * 3, words),
            Grid("other", torch.zeros(1, 8, 8, 3).byte(), ["b"]),
        ],
        buckets=[(64, 64), (128, 32)],
        bucket_counts=[3, 0],
        mean_aspect_error=0.0213,
        schedules=(plain, zero_terminal_snr(plain)),
        latents_before=([1.0, 2.0], [3.0, 4.0]),
        latents_after=(torch.zeros(2), torch.ones(2)),
        latents_reference=([4.8119, 0.1607], [9.9181, 6.2753]),
        weights={"none": torch.ones(1000)},
        weights_note=words,
        originals=pictures,
        reconstructions=pictures,
        psnr=[24.0, 25.0, 26.0],
        environment={words: words, "threads": 2},
        timings={words: 1.25, "training": 2.5},
        licences=[Licence(words, words, words, words)],
    )


@pytest.fixture(scope="module")
def full() -> Reader:
    return Reader(render_report(full_content()))


@pytest.fixture(scope="module")
def hostile() -> Reader:
    return Reader(render_report(full_content(HOSTILE)))


def test_every_section_is_there_in_order_and_linked(full):
    headings = [
        "Criteria", "Samples", "Curves", "Buckets", "Schedule", "Latent statistics", "Loss weight by timestep",
        "VAE reconstructions", "Environment", "Timings", "Licences of the photographs",
    ]  # fmt: skip
    assert [link["href"] for link in full.of("a")] == [f"#{section['id']}" for section in full.of("section")]
    assert [word for word in full.visible if word in headings] == headings * 2  # links, then sections


def test_images_are_data_in_the_page_with_alternative_text(full):
    images = full.of("img")
    heads = Counter(attributes["src"].partition(",")[0] for attributes in images)
    assert heads == {"data:image/svg+xml;base64": 4, "data:image/png;base64": 7}
    for attributes in images:
        head, _, data = attributes["src"].partition(",")
        content = base64.b64decode(data, validate=True)
        if "png" in head:
            Image.open(io.BytesIO(content)).verify()
        else:
            assert ElementTree.fromstring(content).tag.endswith("svg")
        assert attributes["alt"]


def test_images_of_a_grid_are_in_reading_order_each_above_its_label():
    pictures = [np.full((16, 16, 3), colour, np.uint8) for colour in (0, 90, 255)]
    markup = render_report(ReportContent("t", samples=[Grid("g", pictures, ["a", "b", "c"], columns=2)]))
    reader = Reader(markup)
    assert "--columns: 2" in markup
    for attributes, label, colour in zip(reader.of("img"), "abc", (0, 90, 255), strict=True):
        content = base64.b64decode(str(attributes["src"]).partition(",")[2])
        assert np.asarray(Image.open(io.BytesIO(content))).flatten().tolist() == [colour] * 16 * 16 * 3
        assert attributes["alt"] == label
        assert reader.visible.count(label) == 1
    tags = [tag for tag, _ in reader.elements if tag in ("img", "figcaption")]
    assert tags == ["figcaption", *["img", "figcaption"] * 3]


@pytest.mark.parametrize(("count", "labels"), [(0, []), (2, ["a"]), (1, ["a", "b"])])
def test_one_label_for_each_image(count, labels):
    grid = Grid("g", [np.zeros((8, 8, 3), np.uint8)] * count, labels)
    with pytest.raises(InputError, match="one label for each image"):
        render_report(ReportContent("t", samples=[grid]))


def test_the_worst_headline_comes_first_with_its_list_and_what_to_do():
    told = [
        Headline("note", "a note"),
        Headline("bad", HOSTILE, "do this", [HOSTILE]),
        Headline("good", "fine"),
    ]
    reader = Reader(render_report(ReportContent("t", headlines=told)))
    shown = [words.strip() for words in reader.visible if words.strip()]
    order = [
        shown.index(word)
        for word in ("Problem", HOSTILE, "do this", "Show the list", "Good", "fine", "Note", "a note")
    ]
    assert order == sorted(order)
    assert shown.count(HOSTILE) == 2
    assert not reader.of("script")


def test_figures_follow_the_readers_colours():
    """Every colour of a figure is one that a dark page replaces, and its background is the page's."""
    moments = ([1.0, 2.0], [3.0, 4.0])
    drawn = svg_bytes(figures.latent_statistics(moments, moments, moments)).decode()
    assert "prefers-color-scheme:dark" in drawn
    assert not re.findall(r"(?:fill|stroke): #", drawn)
    assert drawn == svg_bytes(figures.latent_statistics(moments, moments, moments)).decode()


def test_nothing_is_loaded_from_anywhere_and_nothing_runs(full, hostile):
    for reader in (full, hostile):
        for tag, attributes in reader.elements:
            assert tag not in ("link", "iframe", "object", "base", "form")
            assert not any(name.startswith("on") for name in attributes)
            assert attributes.get("src", "data:").startswith("data:")
            assert attributes.get("href", "#").startswith("#")
        assert "url(" not in " ".join(reader.visible)
        assert "default-src 'none'" in reader.of("meta")[1]["content"]


def test_only_the_scripts_of_the_charts_run(full, hostile):
    """Allowed by their hashes; the data that they draw is no script, and a page without curves has none."""
    for reader in (full, hostile):
        policy = reader.of("meta")[1]["content"].partition("script-src ")[2]
        allowed = [
            base64.b64encode(hashlib.sha256(static(name).encode()).digest()).decode() for name in SCRIPTS
        ]
        assert policy.split() == [f"'sha256-{each}'" for each in allowed]
        assert reader.of("script") == [{"type": "application/json", "id": "data"}, *[{}] * len(SCRIPTS)]
        held, *sources = reader.scripts
        assert json.loads(held)["series"]["loss"] == {"steps": [0, 1], "values": [1.0, 0.5]}
        assert sources == [static(name) for name in SCRIPTS]
    reader = Reader(render_report(replace(full_content(), series={})))
    assert not reader.of("script")
    assert "script-src" not in reader.of("meta")[1]["content"]


def test_hostile_words_are_shown_as_they_are(full, hostile):
    """The elements are the same whatever the text, and every place that shows the text shows it unchanged."""
    assert [tag for tag, _ in hostile.elements] == [tag for tag, _ in full.elements]
    shown = "".join(hostile.visible)
    words = "".join(full.visible).replace("unicode-bidi: plaintext", "")  # which is the style's
    assert shown.count(HOSTILE) == words.count("plain")
    assert any(HOSTILE in attributes["alt"] for attributes in hostile.of("img"))


def test_numbers_of_the_run_are_in_the_tables(full):
    shown = " ".join(full.visible)
    for words in ("1 of 2 criteria reached.", "0.1235", "pass", "FAIL", "3 images in 1 of 2 buckets", "0.0213",
                  "4.8119", "6.2753", "25.00 dB", "3.8"):  # fmt: skip
        assert words in shown, words


def test_a_report_of_nothing_but_a_title_has_no_sections():
    reader = Reader(render_report(ReportContent("empty")))
    assert reader.of("section") == []
    assert "empty" in reader.visible


def test_the_noised_image_is_part_of_the_schedule():
    plain = sdxl_schedule()
    schedules = (plain, zero_terminal_snr(plain))
    content = ReportContent("t", schedules=schedules, noised=example_image(128))
    reader = Reader(render_report(content))
    assert [section["id"] for section in reader.of("section")] == ["s0"]
    assert len(reader.of("img")) == 2
    assert any("N Fig. 1" in words for words in reader.visible)


def test_unequal_parts_are_refused():
    content = ReportContent("t", originals=[np.zeros((8, 8, 3), np.uint8)], reconstructions=[], psnr=[1.0])
    with pytest.raises(InputError, match="1 originals, 0 reconstructions and 1 PSNR values"):
        render_report(content)


def test_the_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "report.html"
    assert write_report(path, ReportContent("first")) == path
    before = path.read_bytes()
    with pytest.raises(InputError):
        write_report(path, ReportContent("second", weights={"none": torch.zeros(1000)}))
    assert path.read_bytes() == before
    write_report(str(path), ReportContent("third"))
    assert b"third" in path.read_bytes()
    assert [entry.name for entry in path.parent.iterdir()] == ["report.html"]


def test_a_failed_rename_leaves_nothing_behind(tmp_path):
    (tmp_path / "report.html").mkdir()
    with pytest.raises(InputError, match=r"could not write .*report\.html: Is a directory"):
        write_report(tmp_path / "report.html", ReportContent("t"))
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]


def test_file_names_that_are_not_utf8_can_be_written(tmp_path):
    path = write_report(tmp_path / "r.html", ReportContent("t", environment={"path": "a\udcffb"}))
    assert "a\\udcffb" in path.read_text(encoding="utf-8")


@settings(max_examples=60)
@given(st.text(st.characters(exclude_characters="\r\0", exclude_categories=("Cs",))))
def test_text_comes_back_from_cells_and_attributes_with_what_is_not_printable_spelled_out(words):
    reader = Reader(table([words], [[words]]) + image(b"", words, "caption"))
    assert reader.of("img")[0]["alt"] == printable(words)
    assert "".join(reader.visible).count(printable(words)) >= 2
    assert [tag for tag, _ in reader.elements] == [
        "div", "table", "thead", "tr", "th", "tbody", "tr", "td", "figure", "figcaption", "img",
    ]  # fmt: skip


def test_only_markup_passes_unescaped():
    assert text("<b>") == "&lt;b&gt;"
    assert text(Markup("<b>")) == "<b>"
    assert text(text("<b>")) == "&lt;b&gt;"
    assert "FAIL" in verdict(False)
    assert "pass" in verdict(True)
    assert "<h2>&lt;i&gt;</h2>" in page("t", [("<i>", ["<i>"])])


def test_licences_of_the_demo_photographs_have_a_row_each():
    licences = [photograph.licence for photograph in PHOTOGRAPHS]
    shown = Reader(render_report(ReportContent("t", licences=licences))).visible
    for licence in licences:
        assert {licence.name, licence.author, licence.licence, licence.source} <= set(shown)


def test_what_is_not_printable_is_spelled_out() -> None:
    assert text("a\x1b[2J\u202e\n<b>") == "a\\x1b[2J\\u202e\n&lt;b&gt;"
    assert text(Markup("<b>\u202e</b>")) == "<b>\u202e</b>"
