"""A headless Chromium for the tests of pages, and what they ask a page about its looks."""

import shutil
from collections.abc import Iterator
from typing import Any

import pytest

INSTALL = "CONTRIBUTING.md says how to install it"
WIDTHS = (360, 768, 1280)
SCHEMES = ("light", "dark")
SETTLES = 60  # ms that charts take to follow a new width
# What text of each kind stands in, and of how many texts of a kind a page has more.
WHERE = {"text": "body", "figures": "img[src^='data:image/svg+xml']", "charts": ".chart canvas"}
LEAST_TEXTS = 5
LEAST_CONTRAST = 4.5  # WCAG 2.1, 1.4.3, for text of ordinary size

# Colours as [red, green, blue, alpha], and the contrast of two; relative luminance as WCAG 2.1 defines it.
COLOURS = """
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
  const faded = (words, alpha) => colourOf(words).map((value, at) => at === 3 ? value * alpha : value);
  const behind = (element) => {
    const layers = [];
    for (let at = element; at; at = at.parentElement) layers.push(colourOf(getComputedStyle(at).backgroundColor));
    return layers.reverse().reduce((below, layer) => over(layer, below), [255, 255, 255, 1]);
  };
  const contrast = (ink, ground) => {
    const [more, less] = [light(over(ink, ground)), light(ground)].sort((a, b) => b - a);
    return (more + 0.05) / (less + 0.05);
  };
"""

# Every visible piece of text with its contrast to what is behind it.
CONTRASTS = f"""() => {{{COLOURS}
  const found = [], walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {{
    const words = walk.currentNode.textContent.trim(), element = walk.currentNode.parentElement;
    if (!words || ["SCRIPT", "STYLE", "NOSCRIPT", "OPTION"].includes(element.tagName)) continue;
    if (!element.checkVisibility()) continue;
    found.push([words.slice(0, 40), contrast(colourOf(getComputedStyle(element).color), behind(element))]);
  }}
  return found;
}}"""

# From here on, what is written on a canvas is kept with its colour; whoever asks draws anew first.
RECORD = """() => {
  globalThis.written = [];
  const fillText = globalThis.fillTextItself ??= CanvasRenderingContext2D.prototype.fillText;
  CanvasRenderingContext2D.prototype.fillText = function (words, ...place) {
    globalThis.written.push({ words, colour: this.fillStyle, alpha: this.globalAlpha, canvas: this.canvas });
    return fillText.call(this, words, ...place);
  };
}"""
# Labels of the ticks of every chart, with their contrast to what is behind the canvas.
CHART_CONTRASTS = f"""() => {{{COLOURS}
  return globalThis.written.filter((each) => each.canvas.isConnected && each.words.trim()).map((each) =>
    [each.words, contrast(faded(each.colour, each.alpha), behind(each.canvas))]);
}}"""

# Every text of every figure that is an SVG picture. matplotlib puts each into a group of its own, as outlines of its
# letters, and the words into a comment. Behind it is the page, or the last shape that is filled where its middle is.
FIGURE_CONTRASTS = f"""() => {{{COLOURS}
  const found = [], isDrawn = (shape) => !shape.closest("defs, clipPath, g[id^='text_']");
  for (const image of document.querySelectorAll("img[src^='data:image/svg+xml']")) {{
    const holder = document.createElement("div"), bytes = atob(image.src.split(",")[1]);
    holder.innerHTML = new TextDecoder().decode(Uint8Array.from(bytes, (letter) => letter.charCodeAt(0)));
    image.after(holder);
    const opacity = (shape) => {{
      let share = Number(getComputedStyle(shape).fillOpacity);
      for (let at = shape; at !== holder; at = at.parentElement) share *= Number(getComputedStyle(at).opacity);
      return share;
    }};
    const filled = [...holder.querySelectorAll("path")].filter((shape) => isDrawn(shape)
      && getComputedStyle(shape).fill !== "none" && opacity(shape) > 0);
    for (const group of holder.querySelectorAll("g[id^='text_']")) {{
      const letters = group.querySelector("use"), box = group.getBoundingClientRect();
      if (!letters) continue;
      const middle = new DOMPoint(box.x + box.width / 2, box.y + box.height / 2);
      const inside = (shape) => shape.isPointInFill(middle.matrixTransform(shape.getScreenCTM().inverse()));
      const ground = filled.filter(inside).reduce((below, shape) =>
        over(faded(getComputedStyle(shape).fill, opacity(shape)), below), behind(holder));
      const words = [...group.childNodes].find((node) => node.nodeType === Node.COMMENT_NODE)?.data.trim() ?? "";
      found.push([words, contrast(faded(getComputedStyle(letters).fill, opacity(letters)), ground)]);
    }}
    holder.remove();
  }}
  return found;
}}"""

# Numbers that a line break or a clipping edge cuts.
BROKEN = """() => [...document.querySelectorAll(".facts dd, td.number, .u-value, .detail")].filter((each) =>
  each.checkVisibility() && each.scrollWidth > each.clientWidth + 1).map((each) => each.textContent)"""

# Words right before or after a <bdi> on its line, and whether they stand on the side where they are read.
NEIGHBOURS = """() => {
  const boxes = (node) => {
    const range = document.createRange();
    range.selectNodeContents(node);
    return [...range.getClientRects()].filter((box) => box.width);
  };
  const isOnLine = (box, other) => Math.abs(box.top + box.bottom - other.top - other.bottom) < box.height;
  return [...document.querySelectorAll("bdi")].flatMap((data) =>
    [[data.previousSibling, 1], [data.nextSibling, -1]].flatMap(([node, side]) => {
      if (node?.nodeType !== Node.TEXT_NODE || !node.textContent.trim()) return [];
      return boxes(node).flatMap((box) => boxes(data).filter((other) => isOnLine(box, other)).map((other) =>
        [`${node.textContent} | ${data.textContent}`, side * (other.left - box.left) > 0]));
    }));
}"""


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


def read_in_order(page: Any, words: str) -> None:
    """Asserts that data with these words, right-to-left ones, move no word beside them."""
    found = [each for each in page.evaluate(NEIGHBOURS) if words in each[0]]
    assert found
    assert [each for each in found if not each[1]] == []


def looked_at(page: Any) -> None:
    """Asserts that a page, at each width and in both colour schemes, scrolls only downwards and can be read.

    The text inside figures and charts is text too: labels of axes, ticks and legends.
    """
    for scheme in SCHEMES:
        page.emulate_media(color_scheme=scheme)
        page.wait_for_timeout(SETTLES)
        page.evaluate(RECORD)
        for width in WIDTHS:
            page.set_viewport_size({"width": width, "height": 900})
            page.wait_for_timeout(SETTLES)
            assert page.evaluate("document.documentElement.scrollWidth") <= width, (scheme, width)
            assert page.evaluate(BROKEN) == [], (scheme, width)
        for kind, script in (("text", CONTRASTS), ("figures", FIGURE_CONTRASTS), ("charts", CHART_CONTRASTS)):
            contrasts = page.evaluate(script)
            assert len(contrasts) > LEAST_TEXTS or not page.locator(WHERE[kind]).count(), (scheme, kind)
            assert [each for each in contrasts if each[1] < LEAST_CONTRAST] == [], (scheme, kind)
