"""A headless Chromium for the tests of pages, and what they ask a page about its looks."""

import shutil
from collections.abc import Iterator
from typing import Any

import pytest

INSTALL = "CONTRIBUTING.md says how to install it"
WIDTHS = (360, 768, 1280)
SCHEMES = ("light", "dark")
SETTLES = 60  # ms that charts take to follow a new width
LEAST_CONTRAST = 4.5  # WCAG 2.1, 1.4.3, for text of ordinary size

# Every visible piece of text with its contrast to what is behind it; relative luminance as WCAG 2.1 defines it.
CONTRASTS = """() => {
  const parse = (colour) => {
    const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
    canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  };
  const over = (top, below) => [0, 1, 2].map((at) => top[at] * top[3] + below[at] * (1 - top[3])).concat(1);
  const light = (colour) => {
    const [r, g, b] = colour.slice(0, 3).map((value) => {
      const share = value / 255;
      return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const known = new Map(), colourOf = (words) => known.get(words) ?? known.set(words, parse(words)).get(words);
  const behind = (element) => {
    const layers = [];
    for (let at = element; at; at = at.parentElement) layers.push(colourOf(getComputedStyle(at).backgroundColor));
    return layers.reverse().reduce((below, layer) => over(layer, below), [255, 255, 255, 1]);
  };
  const found = [], walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const words = walk.currentNode.textContent.trim(), element = walk.currentNode.parentElement;
    if (!words || ["SCRIPT", "STYLE", "NOSCRIPT", "OPTION"].includes(element.tagName)) continue;
    if (!element.checkVisibility()) continue;
    const ground = behind(element), ink = over(colourOf(getComputedStyle(element).color), ground);
    const [more, less] = [light(ink), light(ground)].sort((a, b) => b - a);
    found.push([words.slice(0, 40), (more + 0.05) / (less + 0.05)]);
  }
  return found;
}"""

# Numbers that a line break or a clipping edge cuts.
BROKEN = """() => [...document.querySelectorAll(".facts dd, td.number, .u-value, .detail")].filter((each) =>
  each.checkVisibility() && each.scrollWidth > each.clientWidth + 1).map((each) => each.textContent)"""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A browser; tests that use it are skipped, saying what is missing, where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason=f"playwright is not installed; {INSTALL}")
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        pytest.skip(f"chromium is not installed; {INSTALL}")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


def looked_at(page: Any) -> None:
    """Asserts that a page, at each width and in both colour schemes, scrolls only downwards and can be read."""
    for scheme in SCHEMES:
        page.emulate_media(color_scheme=scheme)
        for width in WIDTHS:
            page.set_viewport_size({"width": width, "height": 900})
            page.wait_for_timeout(SETTLES)
            assert page.evaluate("document.documentElement.scrollWidth") <= width, (scheme, width)
            assert page.evaluate(BROKEN) == [], (scheme, width)
        contrasts = page.evaluate(CONTRASTS)
        assert len(contrasts) > 5
        assert [each for each in contrasts if each[1] < LEAST_CONTRAST] == [], scheme
