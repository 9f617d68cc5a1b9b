"""Every relative link of README, CONTRIBUTING and docs leads to a file, and to a heading where it names one."""

import re
from fnmatch import fnmatch
from pathlib import Path

import pytest

from tests.docs.shell_blocks import GENERATED, ROOT, pages

LINK = re.compile(r"\]\(([^()\s]+)\)")
TOCTREE = re.compile(r"```\{toctree\}\n(.*?)```", re.DOTALL)
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


def without_code(text: str) -> str:
    """The page without its blocks of code, where brackets and # mean something else."""
    return re.sub(r"^(`{3,}).*?^\1$", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(text: str) -> set[str]:
    """The anchors that GitHub and MyST give to a page's headings."""
    names = set()
    for heading in HEADING.findall(without_code(text)):
        kept = re.sub(r"[^\w\- ]", "", re.sub(r"\[(.*?)\]\(.*?\)", r"\1", heading).lower())
        names.add(kept.strip().replace(" ", "-"))
    return names


def broken(page: Path, text: str) -> list[str]:
    """Links of a page that lead nowhere. What a build of the site generates counts as there."""
    wrong = []
    for link in LINK.findall(without_code(text)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if target.relative_to(ROOT).as_posix().startswith(GENERATED):
            continue
        if not target.exists() or (anchor and anchor not in anchors(target.read_text(encoding="utf-8"))):
            wrong.append(link)
    return wrong


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    assert broken(page, page.read_text(encoding="utf-8")) == []


def test_a_broken_link_is_found() -> None:
    page = ROOT / "docs" / "index.md"
    links = "[a](start.md) [b](start.md#wrong-settings) [c](gone.md) [d](start.md#gone) [e](#symbols) [f](https://x.y)"
    assert broken(page, page.read_text(encoding="utf-8") + links) == ["gone.md", "start.md#gone"]


def test_every_page_is_in_the_navigation_once() -> None:
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    entries = [
        line for block in TOCTREE.findall(index) for line in block.splitlines() if line and line[0] != ":"
    ]
    written = {
        path.relative_to(ROOT / "docs").with_suffix("").as_posix() for path in pages() if "docs" in path.parts
    }
    listed = [entry for entry in entries if "*" not in entry]
    matched = [name for entry in entries if "*" in entry for name in written if fnmatch(name, entry)]
    assert sorted(listed + matched) == sorted(written - {"index"} | {"settings", "api/refimpl"})


def test_pages_are_linked_where_they_are_named() -> None:
    for page in pages():
        text = without_code(page.read_text(encoding="utf-8"))
        assert not re.findall(r"(?<!\[)`docs/\w+\.md`", text), page
