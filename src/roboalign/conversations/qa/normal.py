"""Represent question-answering samples in one normal form.

Points, boxes and choices are read from text and written as text. Coordinates are fractions of the
image's width and height, with the origin at the top left. The coordinate style of a source is
always stated, never guessed: `[500, 250]` is one point in per-mille and another in pixels.
"""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from roboalign.conversations.qa.images import LazyImage
from roboalign.core.errors import RoboAlignError
from roboalign.core.outcomes import Refused

Style = Literal["fraction", "percent", "per-mille", "pixels"]
Form = Literal["tuple", "list", "tag", "json"]
Size = tuple[int, int]
SCALES = {"fraction": 1, "percent": 100, "per-mille": 1000}
DECIMALS = {"fraction": 3, "percent": 1, "per-mille": 0, "pixels": 0}
QA_KINDS = ("general", "embodied", "reasoning")
FORMAT_REQUEST = "Your answer should be formatted"
"""How RoboPoint and RefSpatial begin their sentences about the format of a point."""
NUMBER = r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?"
KEYS = {2: "point_2d", 4: "bbox_2d"}
WRITTEN = re.compile(rf"\s*(?:```\w*\s*)?(?:[\[(][\[(\s]*{NUMBER}|\[?\s*{{\s*\"|<point\b|<box\b)")
OPTION_PATTERNS = (
    r"^[ \t]*([A-Z])\.[ \t]+(.+)$",
    r"^[ \t]*\(([A-Z])\)[ \t]+(.+)$",
    r"^[ \t]*([A-Z])\)[ \t]+(.+)$",
)
MARKERS = ("{}. ", "({}) ", "{}) ")


@dataclass(frozen=True)
class Points:
    """Image points (x, y)."""

    xy: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Boxes:
    """Boxes (left, top, right, bottom)."""

    corners: tuple[tuple[float, float, float, float], ...]


@dataclass(frozen=True)
class Choice:
    """Multiple choice: the options, and which one is right."""

    options: tuple[str, ...]
    index: int


Target = Points | Boxes | Choice


@dataclass(frozen=True)
class QaSample:
    """One record of question-answering data from any source."""

    id: str
    source: str
    images: tuple[LazyImage, ...]
    turns: tuple[tuple[str, str], ...]
    """(question, answer). Together the questions contain one `<image>` per image, in order."""
    kind: str
    """general, embodied or reasoning."""
    targets: tuple[Target | Refused | None, ...]
    """One per turn: the answer in normal form; None for free text."""
    system: str = ""
    """The system text, if the record has one."""


def parse_points(text: str, style: Style, size: Size | None = None) -> Points | Refused:
    """Parse points: `(x, y)`, `[x, y]`, a list of these, `<point x= y=>`, or JSON with `point_2d`.

    The whole text must have this form. `size` (width, height) is needed for the style pixels.
    Raises RoboAlignError on an unknown style and on pixels without a size.
    """
    found = _fractions(text, 2, style, size)
    return found if isinstance(found, Refused) else Points(tuple((x, y) for x, y in found))


def parse_boxes(text: str, style: Style, size: Size | None = None) -> Boxes | Refused:
    """Parse boxes: `[x1, y1, x2, y2]` or `(x1, y1, x2, y2)`, `<box>..</box>`, or JSON `bbox_2d`.

    A list of the first two is accepted too.
    """
    found = _fractions(text, 4, style, size)
    if isinstance(found, Refused):
        return found
    for left, top, right, bottom in found:
        if left > right or top > bottom:
            return Refused(
                f"the corners ({left:g}, {top:g}) and ({right:g}, {bottom:g}) are in the wrong order"
            )
    return Boxes(tuple((a, b, c, d) for a, b, c, d in found))


def _fractions(
    text: str, width: int, style: Style, size: Size | None
) -> list[tuple[float, ...]] | Refused:
    scales = _scales(style, size) * (width // 2)
    groups = _groups(text, width)
    if isinstance(groups, Refused):
        return groups
    for value, scale in ((v, s) for group in groups for v, s in zip(group, scales)):
        if not (math.isfinite(value) and 0 <= value <= scale):
            return Refused(f"the coordinate {value:g} is outside 0 to {scale:g}")
    return [tuple(v / s for v, s in zip(group, scales)) for group in groups]


def _scales(style: Style, size: Size | None) -> tuple[float, float]:
    if style == "pixels":
        if size is None or min(size) < 1:
            raise RoboAlignError(
                f"pixels need the image's size, which is {size}", fix="give size=(width, height)"
            )
        return size
    if style not in SCALES:
        fix = f"use one of {', '.join(DECIMALS)}"
        raise RoboAlignError(f"unknown coordinate style {style!r}", fix=fix)
    return SCALES[style], SCALES[style]


def _groups(text: str, width: int) -> list[tuple[float, ...]] | Refused:
    """Return the groups of `width` numbers that make up a text."""
    fence = re.fullmatch(r"```(?:json)?\s*(.*?)\s*```", text.strip(), re.DOTALL)
    text = fence[1] if fence else text.strip()
    if re.match(r"\[?\s*\{", text):
        return _json_groups(text, width)
    if text.startswith("<"):
        groups, rest = _tag_groups(text, width)
    else:
        groups, rest = _bracket_groups(text, width)
    if rest not in ("", "[]", "()"):
        return Refused(f"{text[:60]!r} is not made of groups of {width} numbers")
    return groups or Refused(f"{text[:60]!r} holds no coordinates")


def _bracket_groups(text: str, width: int) -> tuple[list[tuple[float, ...]], str]:
    """Return the groups, and the text that remains without them."""
    inner = r"\s*" + r"\s*,\s*".join([NUMBER] * width) + r"\s*"
    pattern = re.compile(rf"\({inner}\)|\[{inner}\]")
    groups = [tuple(map(float, re.findall(NUMBER, group))) for group in pattern.findall(text)]
    return groups, re.sub(r"[\s,;]", "", pattern.sub("", text))


def _tag_groups(text: str, width: int) -> tuple[list[tuple[float, ...]], str]:
    if width == 2:
        pattern = re.compile(r"<point\s([^<>]*)>(?:[^<]*</point>)?")
        named = [
            dict(re.findall(rf"\b([xy])\s*=\s*[\"']?({NUMBER})(?=[\"'\s/]|$)", tag))
            for tag in pattern.findall(text)
        ]
        found = [tuple(float(tag[axis]) for axis in "xy" if axis in tag) for tag in named]
    else:
        pattern = re.compile(r"<box>([^<]*)</box>")
        inner = [
            tag for tag in pattern.findall(text) if not re.sub(rf"{NUMBER}|[\[\](),\s]", "", tag)
        ]
        found = [tuple(map(float, re.findall(NUMBER, tag))) for tag in inner]
    rest = re.sub(r"[\s,;]", "", pattern.sub("", text))
    complete = len(found) == len(pattern.findall(text)) and all(
        len(group) == width for group in found
    )
    return (found, rest) if complete else ([], "incomplete")


def _json_groups(text: str, width: int) -> list[tuple[float, ...]] | Refused:
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError) as error:
        return Refused(f"not valid JSON ({error})")
    groups: list[tuple[float, ...]] = []
    for entry in entries if isinstance(entries, list) else [entries]:
        values = entry.get(KEYS[width]) if isinstance(entry, dict) else None
        if (
            not isinstance(values, list)
            or [type(v) in (int, float) for v in values] != [True] * width
        ):
            return Refused(f"an entry without {width} numbers under {KEYS[width]}")
        if any(abs(v) > 1e9 for v in values):  # also rejects what does not fit a float
            return Refused("a coordinate beyond every image")
        groups.append(tuple(map(float, values)))
    return groups or Refused("the JSON list is empty")


def write_points(
    points: Points, style: Style, form: Form = "tuple", size: Size | None = None
) -> str:
    """Invert `parse_points`, with rounding.

    Fractions get 3 decimals, percents 1; per-mille and pixels are whole.
    """
    groups = _written(points.xy, style, size)
    if form == "tag":
        return "".join(f'<point x="{x}" y="{y}"></point>' for x, y in groups)
    return _write_groups(groups, form)


def write_boxes(boxes: Boxes, style: Style, form: Form = "list", size: Size | None = None) -> str:
    """Invert `parse_boxes`, rounding as for points."""
    groups = _written(boxes.corners, style, size)
    if form == "tag":
        return "".join(f"<box>{', '.join(group)}</box>" for group in groups)
    return _write_groups(groups, form)


def _write_groups(groups: list[list[str]], form: Form) -> str:
    if form == "json":
        return json.dumps([{KEYS[len(group)]: [json.loads(v) for v in group]} for group in groups])
    if form not in ("tuple", "list"):
        raise RoboAlignError(f"unknown written form {form!r}", fix="use tuple, list, tag or json")
    opening, closing = "()" if form == "tuple" else "[]"
    return "[" + ", ".join(opening + ", ".join(group) + closing for group in groups) + "]"


def _written(
    groups: Sequence[tuple[float, ...]], style: Style, size: Size | None
) -> list[list[str]]:
    scales = _scales(style, size)
    if not groups or not all(0 <= v <= 1 for group in groups for v in group):
        raise RoboAlignError(
            f"{groups} are not fractions of an image", fix="give one or more, each from 0 to 1"
        )
    return [
        [f"{v * scales[i % 2]:.{DECIMALS[style]}f}" for i, v in enumerate(group)]
        for group in groups
    ]


def parse_choice(question: str, answer: str) -> Choice | Refused:
    """Parse a choice whose options are lines `A. text`, `(A) text` or `A) text`, lettered from A.

    The answer is a letter, a letter with the text, or the text. Case and a final period are ignored
    in texts.
    """
    options = _options(question)
    if isinstance(options, Refused):
        return options
    answer = answer.strip()
    marked = re.fullmatch(r"\(?([A-Z])(?:[.)]+|(?=\s|$))\s*(.*)", answer, re.DOTALL)
    right = {index for index, text in enumerate(options) if _plain(text) == _plain(answer)}
    if (
        marked
        and (index := ord(marked[1]) - ord("A")) < len(options)
        and (not marked[2] or _plain(marked[2]) == _plain(options[index]))
    ):
        right.add(index)
    if len(right) != 1:
        return Refused(
            f"the answer {answer[:60]!r} fits {len(right)} of the {len(options)} options"
        )
    return Choice(options, right.pop())


def _options(question: str) -> tuple[str, ...] | Refused:
    for pattern in OPTION_PATTERNS:
        found = re.findall(pattern, question, re.MULTILINE)
        letters = "".join(letter for letter, _ in found)
        if len(letters) < 2:
            continue
        if letters != "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[: len(letters)]:
            return Refused(f"the options are lettered {letters}")
        return tuple(text.strip() for _, text in found)
    return Refused("the question has no lettered options")


def _plain(text: str) -> str:
    return " ".join(text.split()).removesuffix(".").casefold()


def write_choice(choice: Choice, marker: str = "{}. ", *, text: bool = False) -> tuple[str, str]:
    """Return (the option lines, the answer).

    The answer is the letter or, with `text`, the letter with its text after the marker.
    """
    if marker not in MARKERS:
        raise RoboAlignError(f"unknown option marker {marker!r}", fix=f"use one of {MARKERS}")
    if not 2 <= len(choice.options) <= 26 or not 0 <= choice.index < len(choice.options):
        fix = "give 2 to 26 options, and the index of one"
        raise RoboAlignError(f"option {choice.index} of {len(choice.options)}", fix=fix)
    letters = [marker.format(chr(ord("A") + i)) for i in range(len(choice.options))]
    lines = "\n".join(letter + option for letter, option in zip(letters, choice.options))
    if _options(lines) != choice.options:
        raise RoboAlignError(
            "an option is empty or longer than a line", fix="give each as one line of text"
        )
    letter = chr(ord("A") + choice.index)
    return lines, letters[choice.index] + choice.options[choice.index] if text else letter


def parse_target(
    question: str, answer: str, kinds: Sequence[str], style: Style | None, size: Size | None = None
) -> Target | Refused | None:
    """Return the answer in the first matching form of `kinds`; None for free text.

    `kinds` may contain points, boxes and choice. Malformed coordinates are Refused. A form that the
    source was not declared to use is text.
    """
    reasons = []
    for kind, parse in (("points", parse_points), ("boxes", parse_boxes)):
        if kind in kinds:
            if style is None:
                raise RoboAlignError(
                    f"{kind} without a coordinate style", fix=f"use one of {', '.join(DECIMALS)}"
                )
            target: Target | Refused = parse(answer, style, size)  # type: ignore[operator]
            if not isinstance(target, Refused):
                return target
            reasons.append(target)
        elif not isinstance(_groups(answer, 2 if kind == "points" else 4), Refused):
            return None
    if "choice" in kinds and not isinstance(choice := parse_choice(question, answer), Refused):
        return choice
    return reasons[0] if reasons and WRITTEN.match(answer) else None
