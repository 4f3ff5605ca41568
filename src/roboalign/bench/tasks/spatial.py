"""RoboSpatial-Home (arXiv 2411.16537) and RefSpatial-Bench (arXiv 2506.04308): points in space, yes and no."""

from dataclasses import replace
from typing import Any

from roboalign.bench.items import BenchItem
from roboalign.bench.points import spots_in
from roboalign.bench.presets import Protocol, Wording, around, as_written
from roboalign.bench.rows import BenchRow
from roboalign.bench.tasks.base import LMMS, BenchTask
from roboalign.bench.tasks.pointing import FLAGEVAL, FLAGEVAL_POINTS, MODEL_POINTS, ONLY_TUPLES

ROBOSPATIAL_SPLITS = ("compatibility", "configuration", "context")
REFSPATIAL_SPLITS = ("location", "placement", "unseen")
_REQUESTS = (
    "Your answer should be formatted as a list of tuples, i.e. [(x1, y1), ...], where each tuple contains the x and y "
    "coordinates of a point satisfying the conditions above. The coordinates should be between 0 and 1, indicating "
    "the normalized pixel locations of the points.",
    "Answer yes or no.",
)
"""What the data set's own questions end with; other protocols put their own in its place."""
_LMMS_POINTS = """Your task is to identify specific points in the image based on the question. Respond with a brief explanation if needed, followed by a list of 2D point coordinates.

    The points should be in JSON format and normalized to the range [0, 1000].

    Do not include additional text after this line.
    """  # noqa: E501
_YES_NO = """Your task is to answer the question above. Respond with a brief explanation if needed, followed by a yes or no answer in the last line of your response.

Format your final answer strictly as follows on the last line of your response:
Answer: yes or no

Do not include additional text after this line.
"""  # noqa: E501
_LMMS_YES_NO = _YES_NO.replace("\n\n", "\n\n    ").replace("\nAnswer", "\n    Answer")


def _robospatial(row: BenchRow) -> BenchItem:
    said = row.text("answer").strip()
    where: dict[str, Any] = {"id": f"{row.split}_{row.number}", "group": row.text("category")}
    image, text = row.picture("img"), row.text("question").strip()
    if said.lower() in ("yes", "no"):
        return BenchItem(kind="yes-no", images=(image,), text=text, answer=said.lower(), **where)
    corners = tuple((spot.x, spot.y) for spot in spots_in(said, "pairs"))
    if len(corners) < 3:
        raise row.wrong("answer", "yes, no or a polygon of 3 or more corners")
    mask = row.picture("mask") if row.values.get("mask") is not None else None
    return BenchItem(kind="point", images=(image,), text=text, mask=mask, polygon=corners, **where)


def _by_kind(points: Wording, verdict: Wording) -> Wording:
    """Return the wording of points for a point, and the other one for yes and no."""
    return lambda item: (points if item.kind == "point" else verdict)(item)


def _after(request: str) -> Wording:
    return around(after=f"\n{request}", drop=_REQUESTS)


def _plain(item: BenchItem) -> str:
    return around(drop=_REQUESTS)(item)


def _instead(protocol: Protocol) -> Protocol:
    """Return a protocol that leaves the data set's own requests out."""

    def wording(item: BenchItem) -> str:
        return protocol.wording(replace(item, text=_plain(item)))

    verdict = protocol.wording if protocol.convention == "cells" else as_written
    return replace(protocol, wording=_by_kind(wording, verdict), yes_no="starts")


ROBOSPATIAL = BenchTask(
    name="robospatial",
    title="RoboSpatial-Home",
    repository="chanhee-luke/RoboSpatial-Home",
    files=tuple(f"{split}-*.parquet" for split in ROBOSPATIAL_SPLITS),
    columns=("img", "question", "answer", "category"),
    item=_robospatial,
    presets={
        "lmms-eval": Protocol(
            f"{LMMS}, robo_spatial",
            _by_kind(_after(_LMMS_POINTS), _after(_LMMS_YES_NO)),
            form="fenced-json",
            convention="thousand",
            points="any",
            threshold=0,
        ),
        "official": Protocol(
            "RoboSpatial-Eval 19f04a5, evaluation.py",
            as_written,
            yes_no="starts",
            form="tuples-first",
            polygon=True,
        ),
        "flageval": replace(
            FLAGEVAL, wording=_by_kind(_after(FLAGEVAL_POINTS), _after(_YES_NO)), threshold=127
        ),
        "qwen3-vl": Protocol(
            f"{LMMS}, robo_spatial, points without a fence too",
            _by_kind(_after(_LMMS_POINTS), _after(_LMMS_YES_NO)),
            convention="unit-or-thousand",
            points="first",
            threshold=0,
        ),
        **{name: _instead(protocol) for name, protocol in MODEL_POINTS.items()},
    },
)


def _refspatial(row: BenchRow) -> BenchItem:
    return BenchItem(
        id=f"{row.split}-{row.text('id')}",
        kind="point",
        images=(row.picture("image"),),
        text=row.text("prompt"),
        group=row.split,
        mask=row.picture("mask"),
        more={"suffix": row.text("suffix"), "object": row.text("object")},
    )


REFSPATIAL_BENCH = BenchTask(
    name="refspatial",
    title="RefSpatial-Bench",
    repository="BAAI/RefSpatial-Bench",
    files=tuple(f"{split}-*.parquet" for split in REFSPATIAL_SPLITS),
    columns=("id", "object", "prompt", "suffix", "image", "mask"),
    item=_refspatial,
    presets={
        "lmms-eval": Protocol(
            f"{LMMS}, refspatial",
            lambda item: f"{item.text} {item.more['suffix']} {ONLY_TUPLES}",
            form="tuples",
        ),
        "qwen3-vl": Protocol(
            f"{LMMS}, refspatial_json",
            lambda item: (
                f"Locate {item.more['object']} in this image and output the point "
                "coordinates in JSON format."
            ),
            convention="unit-or-thousand",
        ),
        **MODEL_POINTS,
    },
)
