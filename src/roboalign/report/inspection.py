"""Write the inspection of a robot data set as one HTML page that opens offline."""

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from roboalign.core.errors import RoboAlignError
from roboalign.core.files import write_text
from roboalign.episodes.episode import Episode
from roboalign.episodes.survey.measures import FRAMES_PER_CAMERA as LOOKED_AT
from roboalign.episodes.survey.measures import Dimension
from roboalign.episodes.survey.statistics import Survey
from roboalign.report.attention import attention
from roboalign.report.drawing import STEPS, Drawn, draw_action, drawn_frame, histogram_plot, jpeg
from roboalign.report.tables import Cell, Table
from roboalign.report.text import MINUS, count_text, percent

__all__ = ["draw_action", "write_inspection"]

# of each camera, at least, if that many can be read: one per episode if there are enough episodes
_FRAMES = 6
ARROW_CAPTION = (
    "The action of this step, in its own axes and not projected into the image. Orange arrow: x to the right, y up. "
    "Blue bar: z from the middle. Pink square: the gripper, filled when it is to close. Full length is the 99th (or "
    "1st) percentile."
)
PATH_CAPTION = f"Green: the gripper's true path over the next {STEPS} steps, projected into the image; a ring at now."


@dataclass(frozen=True)
class Figure:
    """A drawn frame with its image as a data URI."""

    frame: Drawn
    uri: str


def write_inspection(survey: Survey, samples: Sequence[Episode], path: str | Path) -> None:
    """Write the page of `survey`; show frames of each camera of each of `samples` with their
    actions.

    A frame that cannot be read is left out: the survey has counted it. Raises RoboAlignError if
    `path` cannot be written.
    """
    environment = Environment(
        loader=PackageLoader("roboalign", "report"),
        autoescape=select_autoescape(["html", "html.j2"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    tokens = survey.tokens
    page = environment.get_template("inspection.html.j2").render(
        survey=survey,
        css=Markup(environment.get_template("report.css").render()),
        facts=_facts(survey),
        attention=attention(survey),
        frames=_frames(survey, samples),
        method=_method(survey),
        vectors=[
            {
                "id": "action",
                "title": "Action",
                "table": dimension_table(survey.action, survey, "action"),
                "plots": _histograms(survey.action),
            },
            {
                "id": "state",
                "title": "State",
                "table": dimension_table(survey.state, survey, "state"),
                "plots": _histograms(survey.state),
            },
        ],
        tokens=token_table(survey),
        token_plots=[histogram_plot("Tokens a chunk", tokens.lengths)] if tokens else [],
        listings=[
            {"id": "cameras", "title": "Cameras", "table": camera_table(survey)},
            {"id": "instructions", "title": "Instructions", "table": instruction_table(survey)},
            {"id": "repeats", "title": "Repeats across episodes", "table": repeat_table(survey)},
            {"id": "faults", "title": "Faults", "table": fault_table(survey)},
        ],
    )
    try:
        write_text(path, page)
    except OSError as error:
        raise RoboAlignError(
            f"the page cannot be written ({error.strerror})",
            where=str(path),
            fix="give a path in a folder that can be written",
        ) from None


def _facts(survey: Survey) -> list[tuple[str, str]]:
    """Return the facts below the title: name and value."""
    lengths = f"{count_text(survey.length_min)} to {count_text(survey.length_max)}, median {survey.length_median:g}"
    return [
        ("format", survey.format),
        ("episodes", count_text(survey.episodes)),
        ("steps", count_text(survey.steps)),
        ("steps an episode", lengths),
        ("frames per second", ", ".join(survey.fps)),
        ("action", f"{len(survey.action)} dimensions: {', '.join(survey.action_spaces)}"),
        ("state", f"{len(survey.state)} dimensions"),
        ("instructions", f"{count_text(survey.instructions)} distinct"),
    ]


def dimension_table(found: list[Dimension], survey: Survey, what: str) -> Table | None:
    """Tabulate one dimension per row, with flagged values marked. None if there are no
    dimensions."""
    if not found:
        return None
    columns = ("minimum", "q01", "median", "q99", "maximum", "mean", "std")
    rows = [
        (
            d.name,
            [
                *(Cell(_short(getattr(d, column))) for column in columns),
                Cell(percent(d.at_extremes)),
                Cell(f"{100 * d.outliers:.2f}%", mark="worse" if d.worst else ""),
                _remark(d),
            ],
        )
        for d in found
    ]
    sample = "all" if survey.rows == survey.steps else f"a sample of {count_text(survey.rows)}"
    caption = (
        f"Raw units of the {what}. Minimum, maximum, mean and std are exact; quantiles and shares are from "
        f"{sample} of {count_text(survey.steps)} rows. Outliers are outside q01 to q99 by more than 3 times q99 − q01."
    )
    return Table(caption, ("Dimension", *columns, "at min or max", "outliers", "remark"), rows)


def _remark(dimension: Dimension) -> Cell:
    words = [
        word
        for word, holds in (
            ("near-constant", dimension.near_constant),
            ("discrete", dimension.discrete),
        )
        if holds
    ]
    return Cell(
        ", ".join(words), "\n".join(dimension.worst), "worse" if dimension.near_constant else ""
    )


def token_table(survey: Survey) -> Table | None:
    """Tabulate length and reconstruction of the held-out chunks, then the error of each
    dimension."""
    tokens = survey.tokens
    if tokens is None:
        return None
    rows = [
        (
            "Tokens a chunk",
            f"{tokens.length_mean:.1f} (5% to 95%: {tokens.length_q05:.0f} to {tokens.length_q95:.0f})",
        ),
        (
            "Numbers a chunk",
            f"{tokens.horizon} steps x {len(tokens.l1_dims)} dimensions = "
            f"{tokens.horizon * len(tokens.l1_dims)}",
        ),
        ("L1 of reconstruction", f"{tokens.l1:.4f}"),
        *((f"L1, {d.name}", f"{error:.4f}") for d, error in zip(survey.action, tokens.l1_dims)),
        ("Chunks that do not decode", count_text(tokens.undecodable)),
        ("Coefficients out of range", count_text(tokens.clipped)),
        ("Vocabulary", f"{count_text(tokens.vocab_size)}, scale {tokens.scale:g}"),
    ]
    origin = (
        f"Fitted here on {count_text(tokens.fitted_on)} chunks of one half of the episodes"
        if tokens.fitted_here
        else "The tokenizer was given and may have seen these chunks"
    )
    caption = (
        f"{origin}; measured on {count_text(tokens.chunks)} chunks of the other half, copies of one episode kept "
        "together. L1 in normalized units: q01 to q99 is −1 to 1, and what is beyond is clipped first."
    )
    return Table(caption, ("Measure", "value"), [(name, [Cell(value)]) for name, value in rows])


def camera_table(survey: Survey) -> Table | None:
    """Tabulate one camera per row."""
    if not survey.cameras:
        return None
    rows = [
        (
            c.name,
            [
                Cell(", ".join(c.sizes) or "–"),
                Cell(count_text(c.episodes)),
                Cell(count_text(c.looked_at)),
                Cell(count_text(c.frames)),
                *(
                    Cell(count_text(n), mark="worse" if n else "")
                    for n in (c.black, c.flat, c.frozen, c.unreadable)
                ),
            ],
        )
        for c in survey.cameras
    ]
    caption = (
        "Black and flat (one color) count frames; frozen counts episodes whose frames are all equal; broken "
        "counts unreadable frames, and episodes with another number of frames than of actions."
    )
    return Table(
        caption,
        (
            "Camera",
            "pixels",
            "episodes",
            "looked at",
            "frames",
            "black",
            "flat",
            "frozen",
            "broken",
        ),
        rows,
    )


def instruction_table(survey: Survey) -> Table | None:
    """Tabulate the most frequent instructions."""
    if not survey.frequent:
        return None
    caption = (
        f"The {len(survey.frequent)} most frequent of {count_text(survey.instructions)} instructions; "
        f"{count_text(survey.without_instruction)} episodes have none."
    )
    return Table(
        caption,
        ("Instruction", "episodes"),
        [(t, [Cell(count_text(n))]) for t, n in survey.frequent],
    )


def repeat_table(survey: Survey) -> Table | None:
    """Tabulate repeated episodes and frames with examples; None if nothing is repeated."""
    rows = [
        (
            name,
            [
                Cell(count_text(found.contents)),
                Cell(count_text(found.copies)),
                Cell("", "\n".join(", ".join(ids) for ids in found.examples)),
            ],
        )
        for name, found in (
            ("Actions of an episode", survey.same_actions),
            ("Frames", survey.same_frames),
        )
        if found.contents
    ]
    watched = min(survey.same_actions.watched, survey.same_frames.watched)
    caption = "Frames: of those looked at, black and flat ones aside."
    if watched < 1:
        caption += f" At least {percent(watched)} of all contents were compared."
    return Table(caption, ("Equal", "distinct", "copies", "examples"), rows) if rows else None


def fault_table(survey: Survey) -> Table | None:
    """Tabulate the first faults; None if there are none."""
    if not survey.faults:
        return None
    rows = [(fault.where, [Cell(fault.problem), Cell(fault.fix)]) for fault in survey.first_faults]
    caption = f"The first {len(rows)} of {count_text(survey.faults)}."
    return Table(caption, ("Where", "problem", "fix"), rows)


def _histograms(found: list[Dimension]) -> list[Markup]:
    return [
        histogram_plot(d.name, d.histogram, (d.q01, d.median, d.q99)) for d in found if d.histogram
    ]


def _frames(
    survey: Survey, samples: Sequence[Episode]
) -> list[tuple[str, list[Figure], list[str]]]:
    """Return (camera, its drawn frames, what the drawing means) for each camera of the survey that
    has any."""
    shown = []
    for camera in survey.cameras:
        those = [episode for episode in samples if camera.name in episode.images]
        each = math.ceil(_FRAMES / len(those)) if those else 0
        drawn = [frame for episode in those for frame in _drawn(survey, episode, camera.name, each)]
        how = {frame.how for frame in drawn}
        captions = {"arrow": ARROW_CAPTION, "path": PATH_CAPTION, "none": _undrawn(survey)}
        figures = [
            Figure(frame, "data:image/jpeg;base64," + base64.b64encode(jpeg(frame.image)).decode())
            for frame in drawn
        ]
        if figures:
            shown.append(
                (
                    camera.name,
                    figures,
                    [caption for kind, caption in captions.items() if kind in how],
                )
            )
    return shown


def _drawn(survey: Survey, episode: Episode, camera: str, frames: int) -> list[Drawn]:
    """Draw `frames` evenly spaced frames of the episode, without those that cannot be read."""
    found: list[Drawn] = []
    steps = np.linspace(0, len(episode) - 1, frames + 2)[1:-1].astype(int)
    for t in sorted(set(steps.tolist())):
        try:
            found.append(drawn_frame(episode, camera, t, survey.action_stats))
        except (
            RoboAlignError,
            IndexError,
        ):  # counted by the survey: unreadable, or fewer frames than actions
            continue
    return found


def _undrawn(survey: Survey) -> str:
    if survey.action_spaces == {"not stated": survey.episodes}:
        return "No action is drawn: what its numbers mean is not stated."
    return "No action is drawn where it is neither a change nor a rate of the end effector."


def _method(survey: Survey) -> list[str]:
    looked = max((camera.looked_at for camera in survey.cameras), default=0)
    halves = f"Action tokens: chunks of {survey.horizon} steps, at most 2,000 from each half of the episodes."
    if survey.tokens:
        halves = (
            f"Action tokens: chunks of {survey.horizon} steps, {count_text(survey.tokens.fitted_on)} from one half of "
            f"the episodes and {count_text(survey.tokens.chunks)} from the other."
        )
    return [
        f"Quantiles, shares and histograms: {count_text(survey.rows)} of {count_text(survey.steps)} rows, "
        "drawn at random.",
        halves,
        f"Cameras: {LOOKED_AT} frames (first, middle, last) of up to {count_text(looked)} episodes. Between these, "
        "nothing was looked at.",
        "Repeats: equal bytes alone; episodes or frames that differ by a bit are not found.",
        "Near-constant: q99 − q01 below a thousandth of the widest dimension’s, or std below 0.000001. Units differ "
        "between dimensions, so judge it yourself.",
    ]


def _short(value: float) -> str:
    return f"{value:.4g}".replace("-", MINUS)
