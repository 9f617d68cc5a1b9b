"""The answers about a data set: its totals, its images by filters, one image's crop and weight, and the pictures."""

import os
from collections.abc import Callable
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from refimpl.data.crop import cover_size, drawn_crop
from refimpl.data.index.columns import strings
from refimpl.errors import InputError
from refimpl.run.visit_draws import VisitDraws
from refimpl.studio.answers import Refusal, answer, answered, whole_number
from refimpl.studio.browsed import ENLARGED, FLAGS, NEAR_EXTREME, TOO_FAR, Browsed
from refimpl.studio.image_row import Row
from refimpl.studio.thumbnails import Thumbnails, name_of, small_jpeg

MOST_ROWS = 500  # of one answer
CAPTION = 300  # characters of a caption in a list
SIDES = {"128": 128, "256": 256, "": 256}  # px of thumbnails
LARGE_SIDE = 1280
LISTED = 50  # files of each kind of problem
LAST_VISIT = 2**32 - 1
KEPT = {"Cache-Control": "private, max-age=600"}


def data_routes(browsed: Browsed | None) -> list[Route]:
    """The routes of everything about the data set."""
    thumbnails = Thumbnails()

    def data() -> Browsed:
        if browsed is None:
            raise Refusal("no data set was named; start with: refimpl studio --data INDEX", 404)
        return browsed

    def row_of(request: Request) -> Row:
        text = request.path_params["row"]
        if not (text.isascii() and text.isdecimal() and len(text) <= 12):
            raise Refusal("an image is named by its number", 404)
        return Row(data(), int(text))

    def totals(request: Request) -> Response:
        found = data()
        problem = found.problem
        try:
            if not problem:
                return answer(_totals(found))
        except InputError as error:
            problem = str(error)
        return answer({"source": str(found.source), "images": 0, "problem": problem})

    def rows(request: Request) -> Response:
        chosen = data().select(**_filters(request, len(data().buckets)))
        first = whole_number(request, "from", 0, 0, 2**40)
        count = whole_number(request, "count", 200, 1, MOST_ROWS)
        listed = [_line(Row(data(), int(row))) for row in chosen[first : first + count]]
        return answer({"total": len(chosen), "from": first, "rows": listed})

    def one(request: Request) -> Response:
        return answer(_details(row_of(request), whole_number(request, "visit", 0, 0, LAST_VISIT)))

    def thumbnail(request: Request) -> Response:
        row, side = row_of(request), SIDES.get(request.query_params.get("size", ""))
        if side is None:
            raise Refusal("size: 128 or 256")
        return Response(thumbnails.get(row.row, row.place, side), media_type="image/jpeg", headers=KEPT)

    def image(request: Request) -> Response:
        return Response(small_jpeg(row_of(request).place, LARGE_SIDE), media_type="image/jpeg", headers=KEPT)

    get: dict[str, Callable[[Request], Response]] = {
        "/api/data": totals,
        "/api/data/rows": rows,
        "/api/data/rows/{row}": one,
        "/data/thumbnails/{row}": thumbnail,
        "/data/images/{row}": image,
    }
    return [Route(path, answered(what)) for path, what in get.items()]


def _filters(request: Request, buckets: int) -> dict[str, Any]:
    """The conditions that a request names. Raises Refusal for unknown ones."""
    query = request.query_params
    problem, enlarged = query.get("problem", ""), query.get("enlarged", "")
    if problem and problem not in FLAGS:
        raise Refusal(f"problem: one of {', '.join(FLAGS)}")
    if enlarged not in ("", "yes", "no"):
        raise Refusal("enlarged: yes or no")
    bucket = whole_number(request, "bucket", -1, 0, max(0, buckets - 1))
    return {
        "flag": FLAGS[problem] if problem else 0,
        "bucket": None if bucket < 0 else bucket,
        "tag": query.get("tag", ""),
        "tag_class": query.get("tag_class", ""),
        "enlarged": {"yes": True, "no": False}.get(enlarged),
    }


def _totals(browsed: Browsed) -> dict[str, Any]:
    counted, buckets = browsed.counted, browsed.buckets
    images = np.bincount(browsed.bucket_of, minlength=len(buckets)).tolist()
    order = sorted(range(len(buckets)), key=lambda index: buckets[index][0] / buckets[index][1])
    aspects = [width / height for width, height in buckets]
    weights = "off" if not browsed.config.tag_weights.enabled else "ready" if counted else "counting"
    counts = {name: int(np.count_nonzero(browsed.flags & flag)) for name, flag in FLAGS.items()}
    problems = _problems(browsed)
    return {
        "source": name_of(browsed.source),
        "images": len(browsed.flags),
        "problem": "",
        "buckets": [
            {"index": index, "width": buckets[index][0], "height": buckets[index][1], "images": images[index]}
            for index in order
        ],
        "bucket_set": browsed.config.all_stages()[-1].buckets.preset,
        "counts": counts,
        "problems": problems,
        "tags": counted.tags if counted else None,
        "weights": weights,
        "extreme_aspect": {"least": min(aspects), "most": max(aspects)},
        "headlines": _headlines(len(browsed.flags), counts, problems),
    }


def _problems(browsed: Browsed) -> list[dict[str, Any]]:
    """The files left out of the index, by kind."""
    table, found = browsed.mapped, {}
    for path, reason, kind in zip(
        *(strings(table, name) for name in ("bad_path", "bad_reason", "bad_kind")), strict=True
    ):
        found.setdefault(kind, []).append({"path": path, "reason": reason})
    return [
        {"kind": kind, "files": len(files), "shown": files[:LISTED]} for kind, files in sorted(found.items())
    ]


def _headlines(images: int, counts: dict[str, int], problems: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What matters most, first: a severity, a sentence, and the filter that shows the images."""
    found = [
        {"severity": "problem", "text": f"{one['files']} files were left out: {one['kind']}", "filter": None}
        for one in problems
    ]
    of_all = f"of {images} images"
    sentences = {
        "enlarged": f"{counts['enlarged']} {of_all} are smaller than their bucket and are enlarged",
        "uncaptioned": f"{counts['uncaptioned']} {of_all} have no caption",
        "too_far": f"{counts['too_far']} {of_all} are too far from every bucket and are not trained on",
        "near_extreme": f"{counts['near_extreme']} {of_all} are nearest to the narrowest or the widest bucket",
    }
    for name, text in sentences.items():
        if counts[name]:
            severity = "note" if name == "near_extreme" or counts[name] * 100 < images else "warning"
            found.append({"severity": severity, "text": text, "filter": {"problem": name}})
    return sorted(found, key=lambda one: ("problem", "warning", "note").index(one["severity"]))


def _line(row: Row) -> dict[str, Any]:
    width, height = row.size
    return {
        "row": row.row,
        "id": row.id,
        "width": width,
        "height": height,
        "bucket": int(row.browsed.bucket_of[row.row]),
        "enlarged": row.has(ENLARGED),
        "thumbnail": f"/data/thumbnails/{row.row}",
        "caption": row.caption[:CAPTION],
    }


def _details(row: Row, visit: int) -> dict[str, Any]:
    (width, height), (across, down) = row.size, row.bucket
    config, name = row.browsed.config, row.id
    draws = VisitDraws(config.train.seed, config.data.horizontal_flip)
    crop = drawn_crop((width, height), (across, down), draws.crop_source(name, visit))
    covering_width, covering_height = cover_size(width, height, (across, down))
    counted = row.browsed.counted
    weights = counted.weights if counted else None
    aspects = (width / height, across / down)
    return {
        **_line(row),
        "path": name_of(os.fspath(row.place)),
        "caption": row.caption,
        "tags": row.tags,
        "bucket": {"index": int(row.browsed.bucket_of[row.row]), "width": across, "height": down},
        "aspect_error": abs(float(np.log(aspects[0] / aspects[1]))),
        "near_extreme": row.has(NEAR_EXTREME),
        "too_far": row.has(TOO_FAR),
        "scale": max(across / width, down / height),
        "crop": {
            "left": crop.crop_left / covering_width,
            "top": crop.crop_top / covering_height,
            "width": across / covering_width,
            "height": down / covering_height,
        },
        "flipped": draws.is_flipped(name, visit),
        "visit": visit,
        "seed": config.train.seed,
        "loss_weight": None if weights is None else float(weights[row.row]),
        "image": f"/data/images/{row.row}",
    }
