"""What the page is told of a data set: totals, images by filters, where a visit crops and how much it weighs."""

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from refimpl.data.crop import cover_and_crop, cover_size
from refimpl.data.images.decode import BadImage
from refimpl.data.index.data_set import read_index
from refimpl.data.index.index_file import VERSION
from refimpl.data.tags import TagCounts, count_tags, dataset_weights
from refimpl.run.visit_draws import VisitDraws
from refimpl.studio.browsed import Browsed, browse
from refimpl.studio.thumbnails import Thumbnails, small_jpeg
from tests.data.files import encoded, exif_bytes
from tests.data.index.test_data_set import add
from tests.data.index.test_parallel_read import build_here
from tests.studio.asking import MARKUP, asking, data_settings
from tests.tolerances import FLOAT32_ROUNDING

SIZES = {"a": (64, 64), "b": (200, 100), "c": (100, 200), "d": (16, 16), "e": (2000, 20), "f": (90, 61)}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    for number, (name, size) in enumerate(SIZES.items()):
        artist = "artist:alice, " if number % 2 else ""
        caption = f"{artist}tag {number}, {MARKUP.replace(',', '')}" if name != "f" else ""
        add(root, f"{name}.png", caption, size)
    (root / "bad.png").write_bytes(b"no image")
    (root / "bad.txt").write_text("x")
    return root


@pytest.fixture(scope="module")
def index(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("index") / "index"
    build_here(images, path, max_bad_share=1.0)
    return path


@pytest.fixture
def browsed(index: Path) -> Browsed:
    return browse(index, data_settings())


@pytest.fixture
def client(browsed: Browsed, tmp_path: Path) -> TestClient:
    return asking(tmp_path, browsed)


def told(client: TestClient, path: str, status: int = 200, **query: Any) -> Any:
    answer = client.get(path, params=query)
    assert answer.headers["content-type"] == "application/json"
    assert answer.status_code == status, answer.text
    assert "<" not in answer.text
    return answer.json()


def ids(client: TestClient, **query: Any) -> str:
    found = told(client, "/api/data/rows", **query)
    assert found["total"] == len(found["rows"])
    return "".join(row["id"] for row in found["rows"])


def test_totals(client: TestClient, browsed: Browsed) -> None:
    """Of buckets whose sides are multiples of 32 px: 16×16, 2000×20 and 90×61 are enlarged."""
    totals = told(client, "/api/data")
    assert (totals["images"], totals["problem"], totals["weights"], totals["tags"]) == (
        6,
        "",
        "counting",
        None,
    )
    assert sum(bucket["images"] for bucket in totals["buckets"]) == 6
    aspects = [bucket["width"] / bucket["height"] for bucket in totals["buckets"]]
    assert aspects == sorted(aspects)
    assert totals["extreme_aspect"] == {"least": aspects[0], "most": aspects[-1]}
    assert totals["counts"] == {"enlarged": 3, "near_extreme": 1, "too_far": 0, "uncaptioned": 1}
    (problem,) = totals["problems"]
    assert (problem["kind"], problem["files"]) == ("not an image", 1)
    assert problem["shown"][0]["path"].endswith("bad.png")
    assert [(line["severity"], line["text"], line["filter"]) for line in totals["headlines"]] == [
        ("problem", "1 files were left out: not an image", None),
        ("warning", "3 of 6 images are smaller than their bucket and are enlarged", {"problem": "enlarged"}),
        ("warning", "1 of 6 images have no caption", {"problem": "uncaptioned"}),
        (
            "note",
            "1 of 6 images are nearest to the narrowest or the widest bucket",
            {"problem": "near_extreme"},
        ),
    ]
    browsed.count()
    totals = told(client, "/api/data")
    assert totals["weights"] == "ready"
    assert totals["tags"][0] == {"class": "general", "name": MARKUP, "images": 5}


def test_filters(client: TestClient, browsed: Browsed) -> None:
    assert ids(client) == "abcdef"
    assert ids(client, problem="enlarged") == ids(client, enlarged="yes") == "def"
    assert ids(client, enlarged="no") == "abc"
    assert ids(client, problem="uncaptioned") == "f"
    assert ids(client, problem="near_extreme") == "e"
    assert ids(client, tag="alice") == ids(client, tag="alice", tag_class="artist") == "bd"
    assert ids(client, tag=MARKUP) == "abcde"
    assert ids(client, tag="alice", enlarged="yes") == "d"
    assert (
        ids(client, tag="alice", tag_class="general") == ids(client, tag="alic") == ids(client, tag="é") == ""
    )
    square = next(b["index"] for b in told(client, "/api/data")["buckets"] if b["width"] == b["height"])
    assert ids(client, bucket=square) == "adf"
    page = told(client, "/api/data/rows", **{"from": 2, "count": 3})
    assert (page["total"], page["from"], [row["row"] for row in page["rows"]]) == (6, 2, [2, 3, 4])
    assert told(client, "/api/data/rows", **{"from": 99})["rows"] == []


def test_images_too_far_from_every_bucket_are_those_that_training_prunes(index: Path, tmp_path: Path) -> None:
    config = data_settings()
    limited = browse(index, replace(config, data=replace(config.data, max_aspect_error=1.0)))
    assert ids(asking(tmp_path, limited), problem="too_far") == "e"


@pytest.mark.parametrize(
    ("query", "message"),
    [({"problem": "x"}, "problem: one of enlarged, near_extreme, too_far, uncaptioned"),
     ({"enlarged": 1}, "enlarged: yes or no"),
     ({"bucket": 99}, "bucket: a whole number from 0 to"), ({"count": 501}, "count: a whole number from 1 to 500"),
     ({"count": 0}, "count: a whole number"), ({"from": "x"}, "from: a whole number"),
     ({"bucket": "-1"}, "bucket: a whole")],
)  # fmt: skip
def test_unknown_filters_are_refused(query: dict[str, Any], message: str, client: TestClient) -> None:
    assert told(client, "/api/data/rows", 400, **query)["error"].startswith(message)


@pytest.mark.parametrize("row", range(len(SIZES)))
@pytest.mark.parametrize("visit", [0, 1, 7])
def test_the_crop_is_the_one_that_training_takes(row: int, visit: int, index: Path, tmp_path: Path) -> None:
    config = data_settings()
    flipping = replace(
        config, data=replace(config.data, horizontal_flip=True), train=replace(config.train, seed=5)
    )
    found = told(asking(tmp_path, browse(index, flipping)), f"/api/data/rows/{row}", visit=visit)
    name, size = list(SIZES.items())[row]
    bucket = found["bucket"]["width"], found["bucket"]["height"]
    draws = VisitDraws(5, True)
    _, cropped = cover_and_crop(Image.new("RGB", size), bucket, draws.crop_source(name, visit))
    width, height = cover_size(*size, bucket)
    assert found["crop"] == {
        "left": cropped.crop_left / width, "top": cropped.crop_top / height,
        "width": bucket[0] / width, "height": bucket[1] / height,
    }  # fmt: skip
    assert found["flipped"] == draws.is_flipped(name, visit)
    assert (found["id"], found["width"], found["height"], found["seed"]) == (name, *size, 5)
    assert found["enlarged"] == (found["scale"] > 1)


def test_the_weight_is_the_one_that_training_has(client: TestClient, browsed: Browsed, index: Path) -> None:
    assert told(client, "/api/data/rows/0")["loss_weight"] is None
    browsed.count()
    tags = read_index(index).tags
    weights = dataset_weights(tags, count_tags(tags, TagCounts()))
    shown = [told(client, f"/api/data/rows/{row}")["loss_weight"] for row in range(len(SIZES))]
    assert shown == pytest.approx(weights.tolist(), rel=FLOAT32_ROUNDING)
    off = replace(browsed.config, tag_weights=replace(browsed.config.tag_weights, enabled=False))
    unweighted = browse(index, off)
    unweighted.count()
    assert unweighted.counted is not None
    assert unweighted.counted.weights is None


def test_text_is_data(client: TestClient) -> None:
    found = told(client, "/api/data/rows/1")
    assert found["tags"] == {"artist": ["alice"], "general": ["tag 1", MARKUP]}
    assert MARKUP in found["caption"]
    assert MARKUP in told(client, "/api/data/rows")["rows"][1]["caption"]


@pytest.mark.parametrize("path", ["/api/data/rows", "/data/thumbnails", "/data/images"])
@pytest.mark.parametrize(
    "row", ["6", "-1", "x", "1.0", "٣", "9" * 30, "..%2f..%2fetc%2fpasswd", "%2e%2e", "0%00", "<script>"]
)
def test_images_are_named_by_their_number_alone(path: str, row: str, client: TestClient) -> None:
    answer = client.get(f"{path}/{row}")
    assert answer.status_code == 404
    assert "root:" not in answer.text
    assert answer.headers["content-type"] == "application/json"


def shown(client: TestClient, path: str) -> Image.Image:
    answer = client.get(path)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/jpeg"), answer.text
    image = Image.open(io.BytesIO(answer.content))
    image.load()
    return image


def test_thumbnails_are_small_and_upright(tmp_path: Path) -> None:
    wide = np.zeros((600, 900, 3), np.uint8)
    wide[:, :450, 0] = 255
    for name, exif in (("a", 1), ("b", 6)):
        Image.fromarray(wide).save(
            tmp_path / f"{name}.jpg", exif=b"Exif\0\0" + exif_bytes(exif), comment=MARKUP
        )
        (tmp_path / f"{name}.txt").write_text("x")
    build_here(tmp_path, tmp_path / "index")
    client = asking(tmp_path, browse(tmp_path / "index", data_settings()))
    assert shown(client, "/data/thumbnails/0").size == (256, 171)
    turned = shown(client, "/data/thumbnails/1?size=128")
    assert turned.size == (85, 128)
    left, right = (np.asarray(turned)[row, 40, 0] for row in (10, 120))
    assert (left > 200, right < 50) == (True, True)
    assert shown(client, "/data/images/0").size == (900, 600)
    assert client.get("/data/thumbnails/0?size=9999").status_code == 400
    answer = client.get("/data/thumbnails/0")
    assert answer.headers["cache-control"] == "private, max-age=600"
    assert MARKUP.encode() not in answer.content


def test_thumbnails_are_kept_up_to_a_size(images: Path) -> None:
    one = small_jpeg(images / "a.png", 128)
    kept = Thumbnails(most_bytes=2 * len(one))
    for row in range(5):
        assert kept.get(row, images / "a.png", 128) == one
    gone = images / "gone.png"
    assert [kept.get(row, gone, 128) for row in (3, 4)] == [one, one]
    for row in (0, 2):
        with pytest.raises(BadImage, match="there is no such file"):
            kept.get(row, gone, 128)


def test_an_image_of_too_many_pixels_is_not_decoded(tmp_path: Path) -> None:
    """A PNG of 17 megapixels; a JPEG as large is scaled down while it is decoded."""
    large = Image.new("1", (4200, 4200))
    large.save(tmp_path / "a.png")
    with pytest.raises(BadImage, match="4200×4200 pixels are too many to show here"):
        small_jpeg(tmp_path / "a.png", 256)
    large.convert("RGB").save(tmp_path / "a.jpg")
    assert Image.open(io.BytesIO(small_jpeg(tmp_path / "a.jpg", 256))).size == (256, 256)


def test_images_that_are_deleted_damaged_or_replaced_while_they_are_browsed(tmp_path: Path) -> None:
    for name in "abcde":
        add(tmp_path, f"{name}.png", "x", (40, 40))
    build_here(tmp_path, tmp_path / "index")
    (tmp_path / "secret").write_text("SECRET")
    client = asking(tmp_path, browse(tmp_path / "index", data_settings()))
    (tmp_path / "a.png").unlink()
    (tmp_path / "b.png").write_bytes(b"<script>")
    (tmp_path / "c.png").unlink()
    (tmp_path / "c.png").symlink_to(tmp_path / "secret")
    (tmp_path / "d.png").write_bytes(encoded(Image.new("RGB", (40, 40)), "PNG")[:60])
    for row, reason in enumerate(
        ["there is no such file", "not an image of an accepted format", "not an image", "can't be decoded"]
    ):
        for path in ("/data/thumbnails", "/data/images"):
            error = told(client, f"{path}/{row}", 404)["error"]
            assert reason in error
            assert "SECRET" not in error
            assert "\n" not in error
    assert shown(client, "/data/thumbnails/4").size == (40, 40)
    assert told(client, "/api/data/rows")["total"] == 5


def of_version(path: Path, version: int) -> None:
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"]["version"] = str(version)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


@pytest.mark.parametrize(
    ("kind", "line"),
    [("newer", f"is an index of version {VERSION + 1}, from a newer refimpl"), ("half", "index"),
     ("folder", "is no index; make one: refimpl"),
     ("gone", "is not there; make one: refimpl data index FOLDER -o"), ("text", "is no index")],
)  # fmt: skip
def test_an_index_that_cannot_be_read_is_said_and_the_page_stays_up(
    kind: str, line: str, index: Path, tmp_path: Path
) -> None:
    path = tmp_path / "index"
    if kind in ("newer", "half"):
        path.write_bytes(index.read_bytes() if kind == "newer" else index.read_bytes()[:-9])
    if kind == "newer":
        of_version(path, VERSION + 1)
    if kind == "folder":
        path.mkdir()
    if kind == "text":
        path.write_text("hello")
    client = asking(tmp_path, browse(path, data_settings()))
    found = told(client, "/api/data")
    assert (found["images"], line in found["problem"], "\n" in found["problem"]) == (0, True, False)
    assert told(client, "/api/studio")["problems"] == [found["problem"]]
    for where in ("/api/data/rows", "/api/data/rows/0", "/data/thumbnails/0"):
        assert told(client, where, 404)["error"] == found["problem"]


def test_without_a_data_set_there_is_none(tmp_path: Path) -> None:
    client = asking(tmp_path)
    assert told(client, "/api/studio")["has_data"] is False
    for where in ("/api/data", "/api/data/rows", "/api/data/rows/0", "/data/thumbnails/0", "/data/images/0"):
        assert "refimpl studio --data INDEX" in told(client, where, 404)["error"]


def test_a_data_set_without_an_image_has_no_rows(tmp_path: Path, index: Path) -> None:
    empty = browse(index, data_settings())
    assert empty.select(tag="nothing") is empty.select(tag="nothing")  # kept
    assert len(empty.select(flag=4)) == 0


@pytest.mark.parametrize("how", ["shorter", "another"])
def test_an_index_that_was_written_over_is_named_and_not_read(how: str, index: Path, tmp_path: Path) -> None:
    """Reading a mapped file where it no longer has bytes ends the process."""
    path = tmp_path / "index"
    shutil.copy(index, path)
    client = asking(tmp_path, browse(path, data_settings()))
    assert told(client, "/api/data")["problem"] == ""
    if how == "shorter":
        path.write_bytes(b"")
    else:
        shutil.copy(index, tmp_path / "new")
        (tmp_path / "new").replace(path)
    line = f"{path} was written again since it was opened; start the studio again"
    assert told(client, "/api/data/rows/0", 404)["error"] == line
    assert told(client, "/api/data")["problem"] == line
    assert line in told(client, "/api/studio")["problems"]


def test_a_deleted_index_is_still_browsed(index: Path, tmp_path: Path) -> None:
    path = tmp_path / "index"
    shutil.copy(index, path)
    client = asking(tmp_path, browse(path, data_settings()))
    path.unlink()
    assert told(client, "/api/data/rows/0")["id"] == "a"
