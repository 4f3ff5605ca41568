"""The verb `data`: inspect a robot data set of any format, or write it as LeRobot v3.0."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from roboalign.actions.fast import FastTokenizer
from roboalign.actions.known_spaces import known_space
from roboalign.core.errors import RoboAlignError
from roboalign.core.hub import resolve
from roboalign.episodes.episode import Episode
from roboalign.episodes.open import open_robot_data
from roboalign.episodes.rewrite import rewrite
from roboalign.episodes.robot_data import RobotData
from roboalign.episodes.survey.statistics import keep_episodes, survey_episodes
from roboalign.report.console import fold
from roboalign.report.inspection import write_inspection
from roboalign.report.inspection_text import inspection_text


def open_data(
    path: str, format: str | None, settings: Sequence[str], space: str | None, strict: bool
) -> RobotData:
    """Open the data set that the command line names. Raises RoboAlignError if that fails."""
    return open_robot_data(
        path,
        format,
        options=reader_options(settings),
        space=known_space(space) if space else None,
        strict=strict,
    )


def reader_options(settings: Sequence[str]) -> dict[str, Any]:
    """Return `KEY=VALUE` texts as options of a reader. Raises RoboAlignError on another form."""
    options: dict[str, Any] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not key or not equals:
            raise RoboAlignError(
                "a reader option is key=value",
                where=f"--read {setting}",
                fix="for example --read fps=5",
            )
        options[key] = yaml.safe_load(value)
    return options


def inspect_data(
    data: RobotData,
    out: str,
    *,
    camera: str | None = None,
    horizon: int = 16,
    fast: str | None = None,
) -> str:
    """Write the page to `out`; return its tables as text and the page's path."""
    tokenizer = FastTokenizer.load(resolve(fast, "tokenizer", where="--fast")) if fast else None
    kept: list[Episode] = []
    found = survey_episodes(
        keep_episodes(data, kept), camera=camera, horizon=horizon, fast=tokenizer
    )
    write_inspection(found, kept, out)
    return "\n".join(
        [*map(fold, _notes_of(data)), inspection_text(found), f"page: {Path(out).resolve()}"]
    )


def _notes_of(data: RobotData) -> list[str]:
    """Return what a user must know about how the data set is read, one item per line."""
    return [f"note: {note}" for note in data.notes]


def convert_data(data: RobotData, out: str, target: str | None, *, pictures: bool = False) -> str:
    """Write the data set to the folder `out`; return what was written and what was left out."""
    space = known_space(target) if target else None
    written = rewrite(data, out, target=space, pictures=pictures)
    lines = [f"left out: {fault.where}: {fault.problem}" for fault in written.faults]
    if written.videos:
        size = f"{written.video_bytes / 1e6:,.1f} MB"
        lines.append(f"videos of {', '.join(written.videos)} copied as they are: {size}")
    earlier = written.already_there
    before = f", {earlier} of them by an earlier call" if earlier else ""
    where = f"{Path(out).resolve()}{before}, {len(written.faults)} left out"
    return "\n".join([*_notes_of(data), *lines, f"{written.episodes} episodes in {where}"])
