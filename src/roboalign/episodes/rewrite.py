"""Write any robot data as a LeRobot v3.0 data set, its actions converted on purpose or as they are."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from roboalign.actions.spaces import ActionSpace, convert
from roboalign.core.errors import RoboAlignError
from roboalign.core.outcomes import Fault
from roboalign.core.progress import Progress
from roboalign.episodes.episode import Episode
from roboalign.episodes.formats.lerobot import LeRobotWriter
from roboalign.episodes.robot_data import RobotData


@dataclass(frozen=True)
class Rewritten:
    """What was written: the episodes now in the data set, those of them written before, and those left out."""

    episodes: int
    already_there: int
    faults: list[Fault]


def rewrite(data: RobotData, folder: str | Path, *, target: ActionSpace | None = None) -> Rewritten:
    """Write the episodes of `data` to `folder`; a call that was killed goes on after the last whole file.

    With `target` the actions are converted to that space first (`action_space.convert`, without poses: units, gripper
    code and form of rotation). The cameras and dimensions are those of the first episode; an episode of others, or
    with a broken frame, is a fault. Raises RoboAlignError where no episode can be read, where `data.strict` and there
    is a fault, or where `target` is given and the data's own space is not known or cannot be converted.
    """
    writer: LeRobotWriter | None = None
    there, faults = 0, []
    with Progress(f"rewrite {data.name}", total=None) as progress:
        for episode in data:
            actions = in_space(episode, target)
            writer = writer or start_writer(folder, data, episode, actions, target)
            there += episode.episode_id in writer.episode_ids
            if episode.episode_id not in writer.episode_ids:
                try:
                    write_episode(writer, episode, actions)
                except RoboAlignError as error:
                    if data.strict:
                        raise
                    faults.append(Fault(error.where, error.problem, error.fix))
            progress.advance(1)
    if writer is None:
        first = f": {data.faults[0].where}: {data.faults[0].problem}" if data.faults else ""
        raise RoboAlignError(
            f"no episode could be read{first}", where=data.name, fix="check that it is complete"
        )
    writer.finalize()
    return Rewritten(len(writer.episode_ids), there, [*data.faults, *faults])


def in_space(episode: Episode, target: ActionSpace | None) -> np.ndarray:
    """The episode's actions, converted where a target is given."""
    if target is None:
        return episode.actions
    if episode.action_space is None:
        raise RoboAlignError(
            "what its actions mean is not known, so they cannot be converted",
            where=f"episode {episode.episode_id}",
            fix="name the action space of the data set",
        )
    return convert(episode.actions, episode.action_space, target)


def start_writer(
    folder: str | Path,
    data: RobotData,
    first: Episode,
    actions: np.ndarray,
    target: ActionSpace | None,
) -> LeRobotWriter:
    """A writer for episodes like the first one; dimensions that nobody names are numbered."""
    space, width = target or first.action_space, first.state.shape[1]
    names = (
        space.names
        if space
        else data.action_names or tuple(f"action_{i}" for i in range(actions.shape[1]))
    )
    return LeRobotWriter(
        folder,
        fps=first.fps,
        cameras={name: (c.width, c.height) for name, c in first.cameras.items()},
        action_names=names,
        state_names=data.state_names or tuple(f"state_{i}" for i in range(width)),
        privileged_names=first.privileged_names,
        action_space=space,
        axes=first.axes,
    )


def write_episode(writer: LeRobotWriter, episode: Episode, actions: np.ndarray) -> None:
    """Add one episode, its frames decoded."""
    if episode.fps != writer.fps:
        raise RoboAlignError(
            f"{episode.fps} steps a second, the data set has {writer.fps}",
            where=f"episode {episode.episode_id}",
            fix="write it to a data set of its own",
        )
    frames = {
        name: np.stack([episode.frame(name, t) for t in range(len(episode))])
        for name in writer.cameras
        if name in episode.images
    }
    writer.add(
        episode_id=episode.episode_id,
        task=episode.task,
        instruction=episode.instruction,
        actions=actions,
        state=episode.state,
        frames=frames,
        cameras=episode.cameras,
        privileged=episode.privileged,
        privileged_names=episode.privileged_names,
        nouns=episode.nouns,
        success_step=episode.success_step,
    )
