"""Draw an action on the frame that it follows, and histograms as inline SVG."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup, escape
from PIL import Image, ImageDraw

from roboalign.actions.normalize import ActionStats
from roboalign.actions.spaces import ActionSpace, recoded
from roboalign.episodes.episode import Episode
from roboalign.episodes.survey.measures import Histogram

ARROW, BAR, SQUARE, PATH = (255, 120, 0), (0, 190, 255), (255, 0, 200), (60, 255, 60)
_WIDTH = 320  # width of a frame on the page, in pixels
STEPS = 16  # steps of the path that is drawn
_LONGEST = 0.4  # longest arrow, as a share of the image's shorter side


@dataclass(frozen=True)
class Drawn:
    """A frame of an episode as it is shown. `how` is arrow, path, or none if the action has no
    direction."""

    episode_id: str
    step: int
    instruction: str
    image: np.ndarray
    """uint8 [H, W, 3], _WIDTH wide."""
    how: str


def drawn_frame(episode: Episode, camera: str, t: int, stats: ActionStats) -> Drawn:
    """Draw frame `t` with its action.

    Draw the gripper's true path if it is known and the camera has a projection; otherwise draw an
    arrow if the action is a change or a rate of the end effector. Raises RoboAlignError if the
    frame is broken.
    """
    frame = episode.frame(camera, t)
    height, width = frame.shape[:2]
    method = Image.Resampling.NEAREST if width < _WIDTH else Image.Resampling.LANCZOS
    image = np.array(
        Image.fromarray(frame).resize((_WIDTH, max(1, round(height * _WIDTH / width))), method)
    )
    view, gripper, space = (
        episode.cameras.get(camera),
        episode.position("gripper"),
        episode.action_space,
    )
    if view is not None and view.projection is not None and gripper is not None:
        pixels = view.pixels(gripper[t : t + STEPS + 1].astype(np.float64)) * (_WIDTH / view.width)
        return Drawn(episode.episode_id, t, episode.instruction, draw_path(image, pixels), "path")
    if (
        space is not None
        and has_direction(space)
        and space.dim == stats.dim == episode.actions.shape[1]
    ):
        image = draw_action(image, episode.actions[t], stats, space)
        return Drawn(episode.episode_id, t, episode.instruction, image, "arrow")
    return Drawn(episode.episode_id, t, episode.instruction, image, "none")


def has_direction(space: ActionSpace) -> bool:
    """Return whether x, y, z of an action say where the end effector moves."""
    return space.control == "end-effector" and space.mode in ("delta", "velocity")


def draw_action(
    frame: np.ndarray, action: np.ndarray, stats: ActionStats, space: ActionSpace
) -> np.ndarray:
    """Return a copy of `frame` (uint8 [H, W, 3]) with `action` ([D], raw) drawn in its own axes,
    not projected.

    An arrow from the center shows x to the right and y up. A bar at the right edge shows z, up from
    the middle. A square at the lower left is filled if the gripper is to be more closed than open.
    Full length, 0.4 of the shorter side, is the largest |q01| or |q99| (of x and y together);
    larger actions are cut there. Only for spaces for which `has_direction` is true.
    """
    image = Image.fromarray(frame)
    pen = ImageDraw.Draw(image)
    unit = min(image.size)
    reach = np.maximum(np.abs(stats.q01), np.abs(stats.q99))
    x, y = action[:2] / max(float(reach[:2].max()), 1e-12)
    size = max(1.0, float(np.hypot(x, y)))
    _arrow(pen, image.size, _LONGEST * unit * x / size, _LONGEST * unit * y / size)
    z = float(np.clip(action[2] / max(float(reach[2]), 1e-12), -1, 1))
    _bar(pen, image.size, round(_LONGEST * unit * z))
    if space.gripper != "none":
        openness = recoded(
            np.asarray(action, dtype=np.float64)[None, space.gripper_part],
            space.gripper,
            "open_one",
        )
        side, edge = max(4, unit // 12), max(1, unit // 40)
        box = (edge, image.size[1] - 1 - edge - side, edge + side, image.size[1] - 1 - edge)
        pen.rectangle(
            box,
            outline=SQUARE,
            width=max(1, unit // 120),
            fill=SQUARE if openness.item() < 0.5 else None,
        )
    return np.array(image)


def _arrow(pen: ImageDraw.ImageDraw, size: tuple[int, int], right: float, up: float) -> None:
    """Draw a line from the center with a head; draw nothing if it is shorter than a pixel."""
    length = float(np.hypot(right, up))
    if length < 1:
        return
    centre = np.array([size[0] // 2, size[1] // 2], dtype=float)
    along = np.array([right, -up]) / length
    across = np.array([-along[1], along[0]])
    tip, head = centre + along * length, min(0.35 * length, min(size) / 16)
    thick = max(1, min(size) // 80)
    pen.line([tuple(centre), tuple(tip)], fill=ARROW, width=thick)
    for sign in (1, -1):
        pen.line(
            [tuple(tip), tuple(tip - head * along + sign * 0.6 * head * across)],
            fill=ARROW,
            width=thick,
        )


def _bar(pen: ImageDraw.ImageDraw, size: tuple[int, int], up: int) -> None:
    """Draw a bar from the middle of the right edge, with a mark at zero."""
    right, middle, unit = size[0] - 1, size[1] // 2, min(size)
    left = right - max(2, unit // 24)
    if up:
        pen.rectangle((left, min(middle, middle - up), right, max(middle, middle - up)), fill=BAR)
    pen.line([(left - max(1, unit // 60), middle), (right, middle)], fill=BAR, width=1)


def draw_path(frame: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """Return `frame` with a line through `pixels` [N, 2] (u, v) and a dot at its start; NaN points
    are left out."""
    image = Image.fromarray(frame)
    pen = ImageDraw.Draw(image)
    points = [(float(u), float(v)) for u, v in pixels[np.isfinite(pixels).all(axis=1)]]
    thick = max(1, min(image.size) // 80)
    if points:
        pen.line(points, fill=PATH, width=thick)
        u, v = points[0]
        pen.ellipse(
            (u - 2 * thick, v - 2 * thick, u + 2 * thick, v + 2 * thick), outline=PATH, width=thick
        )
    return np.array(image)


def jpeg(frame: np.ndarray) -> bytes:
    """Encode uint8 [H, W, 3] as a JPEG file: photographs as PNG would make the page many times
    larger."""
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, format="JPEG", quality=88, subsampling=0)
    return buffer.getvalue()


def histogram_plot(title: str, histogram: Histogram, marks: Sequence[float] = ()) -> Markup:
    """Plot bars in the page's colors, with dashed lines at `marks`, with a description for screen
    readers."""
    low, high = histogram.edges[0], histogram.edges[-1]
    total, most = sum(histogram.counts), max(histogram.counts)

    def x(value: float) -> float:
        return 8 + 284 * (value - low) / (high - low)

    bars = "".join(
        f"M{x(left):.1f} 92V{92 - 68 * count / most:.1f}H{x(right) - 0.6:.1f}V92Z"
        for left, right, count in zip(histogram.edges, histogram.edges[1:], histogram.counts)
        if count
    )
    lines = "".join(f"M{x(mark):.1f} 22V92" for mark in marks if low <= mark <= high)
    described = f"{title}: {total} values from {low:.3g} to {high:.3g}"
    return Markup(
        f'<svg role="img" aria-label="{escape(described)}" viewBox="0 0 300 110" font-size="10">'
        f'<text x="8" y="12" fill="var(--ink)" font-size="11">{escape(title)}</text>'
        f'<path d="M8 92H292" stroke="var(--rule)"/><path d="{bars}" fill="var(--line-1)"/>'
        f'<path d="{lines}" stroke="var(--line-2)" stroke-dasharray="3 2"/>'
        f'<text x="8" y="105" fill="var(--muted)">{low:.3g}</text>'
        f'<text x="292" y="105" fill="var(--muted)" text-anchor="end">{high:.3g}</text></svg>'
    )
