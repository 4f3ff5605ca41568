"""`roboalign init`: look at recorded demonstrations and write a recipe for them."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from roboalign.core.errors import RoboAlignError
from roboalign.plan.data_choices import (
    backbone_size,
    chosen_cameras,
    parse_space,
)

if TYPE_CHECKING:
    from roboalign.actions.spaces import ActionSpace
    from roboalign.episodes.episode import Episode
    from roboalign.episodes.robot_data import RobotData
    from roboalign.episodes.survey.meaning import Meaning
    from roboalign.episodes.survey.statistics import Survey

MOST_EPISODES_READ = 200
"""Episodes whose actions are compared with their states; all are counted."""
FORMAT_SPACES = {"calvin": "calvin_relative"}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the data, the backbone, and what cannot be seen."""
    add = parser.add_argument
    add("data", help="recorded demonstrations: LeRobot, RLDS, HDF5 or CALVIN; a folder or a Hub id")
    add(
        "--backbone",
        required=True,
        metavar="FOLDER_OR_HUB_ID",
        help="the MLLM: its folder, its Hub id, or `builtin`, the tiny model for a trial on a CPU",
    )
    add("--out", metavar="NAME.yaml", help="the recipe to write; without it named like the data")
    add(
        "--action-space",
        metavar="SPACE",
        help="what the actions mean: a known name such as bridge, or fields such as "
        "control=joint,mode=absolute,joints=7,gripper=open_one",
    )
    add(
        "--camera",
        action="append",
        default=[],
        metavar="NAME=CAMERA",
        help="use this camera of the data under this name; may be repeated; without it all that show "
        "something",
    )
    add("--instruction", default="", metavar="TEXT", help="instruction of episodes without one")
    add("--format", help="lerobot, rlds, robomimic or calvin, where the files do not tell")
    add(
        "--read",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="an option of the format's reader, for example fps=5; may be repeated",
    )


def main(options: argparse.Namespace) -> int:
    """Look at the data, say what was seen, and write the recipe."""
    from roboalign.core.files import write_text
    from roboalign.report.console import fold
    from roboalign.run.load import load_recipe
    from roboalign.run.starter import starter_name, starter_recipe

    out = Path(options.out or f"{starter_name(options.data)}.yaml")
    if out.exists() or out.suffix not in (".yaml", ".yml"):
        problem = "it exists already" if out.exists() else "a recipe is a .yaml file"
        raise RoboAlignError(problem, where=f"--out {out}", fix="give another --out NAME.yaml")
    seen = look_at_data(options)
    print(fold("\n".join(seen.sentences())), flush=True)
    space, space_name = chosen_space(options.action_space, seen)
    text = starter_recipe(_facts(options, seen, space, space_name, out))
    write_text(out, text)
    load_recipe(out)  # what was written is valid, or the fault is named now
    said = f"written: {out}\nnext:    roboalign plan {out}, then roboalign run {out}"
    print(said)
    return 0


@dataclass(frozen=True)
class Look:
    """What a first pass over the data shows."""

    data: "RobotData"
    survey: "Survey"
    meaning: "Meaning"
    recorded: "ActionSpace | None"
    """The space that the data set itself records."""
    episode: "Episode"

    def sentences(self) -> list[str]:
        """Return what was seen, one sentence each."""
        survey = self.survey
        rates = ", ".join(survey.fps)
        cameras = ", ".join(f"{c.name} ({', '.join(c.sizes)})" for c in survey.cameras)
        said = [
            f"{self.data.name}: {self.data.format}, {survey.episodes} episodes, {survey.steps:,} "
            f"frames, {rates} a second",
            f"  action: {len(survey.action)} numbers: {_few([d.name for d in survey.action])}",
            f"  state: {len(survey.state)} numbers: {_few([d.name for d in survey.state])}",
            f"  cameras: {cameras or 'none'}",
            f"  instructions: {survey.instructions} different, {survey.without_instruction} missing",
        ]
        return [*said, *(f"  {sentence}" for sentence in self.meaning.sentences())]


def look_at_data(options: argparse.Namespace) -> Look:
    """Read the data set once. Raises RoboAlignError if it cannot be read or has several rates."""
    from roboalign.cli.robot_data import open_data
    from roboalign.episodes.episode import Episode
    from roboalign.episodes.survey.meaning import read_meaning
    from roboalign.episodes.survey.statistics import survey_episodes

    data = open_data(options.data, options.format, options.read, None, False)
    kept: list[Episode] = []

    def read() -> Any:
        for item in data.read():
            if isinstance(item, Episode) and len(kept) < MOST_EPISODES_READ:
                kept.append(item)
            yield item

    survey = survey_episodes(data.through(read))
    if len(survey.fps) > 1 or "unknown" in survey.fps:
        raise RoboAlignError(
            f"its episodes have {' and '.join(survey.fps)} steps a second",
            where=options.data,
            fix="split the data set, or give its rate: --read fps=N (where the format takes it)",
        )
    meaning = read_meaning(
        [episode.actions for episode in kept],
        [episode.state for episode in kept],
        data.action_names,
        data.state_names,
        known=FORMAT_SPACES.get(data.format, ""),
        data_set=data.name,
    )
    return Look(data, survey, meaning, kept[0].action_space, kept[0])


def chosen_space(given: str | None, seen: Look) -> "tuple[ActionSpace, str]":
    """Return the action space and its known name.

    Raises RoboAlignError that lists what the data suggest if it was not said, and if it has another
    number of dimensions than the data.
    """
    if given is None and seen.recorded is not None:
        return seen.recorded, ""
    if given is None:
        raise _unsaid(seen)
    space, name = parse_space(given)
    width = len(seen.survey.action)
    if space.dim != width:
        raise RoboAlignError(
            f"this space has {space.dim} dimensions ({', '.join(space.names)}), the data has {width}",
            where=f"--action-space {given}",
            fix=f"one that has {width}: {_options(seen)}",
        )
    return space, name


def _unsaid(seen: Look) -> RoboAlignError:
    double = (
        " They look like a double delta: nothing that a policy can execute as it is."
        if seen.meaning.double
        else ""
    )
    suggested = "; ".join(f"{text} ({why})" for text, why in seen.meaning.suggestions)
    return RoboAlignError(
        f"what its {len(seen.survey.action)} action numbers mean is not recorded, and is never guessed."
        f"{double} Suggested by names and ranges: {suggested or 'nothing'}",
        where=str(seen.data.path),
        fix=f"say which: {_options(seen)}",
    )


def _options(seen: Look) -> str:
    texts = [f"--action-space {text}" for text, _ in seen.meaning.suggestions]
    return (
        ", or ".join(texts)
        or "--action-space control=...,mode=..., as in docs/reference/data-formats.md"
    )


def _facts(
    options: argparse.Namespace, seen: Look, space: "ActionSpace", space_name: str, out: Path
) -> Any:
    from roboalign.report.attention import attention
    from roboalign.report.console import fold
    from roboalign.run.starter import StarterFacts, starter_horizon, starter_name

    cameras, left_out = chosen_cameras(options.camera, seen.survey)
    if seen.survey.without_instruction and not options.instruction:
        raise RoboAlignError(
            f"{seen.survey.without_instruction} episodes record no instruction",
            where=options.data,
            fix='give one: --instruction "Pick up the cube.", or its column: --read instruction=NAME',
        )
    fps = float(next(iter(seen.survey.fps)))
    survey = replace(seen.survey, horizon=starter_horizon(fps))
    doubt = seen.meaning.fault(space.mode)
    sentences = attention(replace(survey, doubt=""))
    found = [s for s in sentences if not s.startswith("What the numbers of an action")]
    if doubt:
        print(fold(f"note: {doubt}."), flush=True)
        found.append(f"{doubt}.")
    parameters, layer, layers = backbone_size(options.backbone)
    return StarterFacts(
        name=starter_name(out.stem),
        out=str(out),
        data=options.data,
        format=seen.data.format,
        space=space,
        space_name=space_name,
        cameras=cameras,
        left_out=left_out,
        read=seen.data.options,
        instruction=options.instruction,
        episodes=seen.survey.episodes,
        frames=seen.survey.steps,
        fps=fps,
        state_dim=len(seen.survey.state),
        evidence=seen.meaning.sentences(),
        attention=found,
        backbone=options.backbone,
        parameters=parameters,
        layer=layer,
        layers=layers,
    )


def _few(names: Sequence[str]) -> str:
    rest = len(names) - 12
    return ", ".join(names[:12]) + (f" and {rest} more" if rest > 0 else "")
