"""A writer of LeRobot v3.0 for an episode, and an episode as its arguments."""

from pathlib import Path

import numpy as np

from roboalign.episodes.episode import Episode
from roboalign.episodes.formats.lerobot import (
    LeRobotWriter,
)


def open_writer(folder: Path, episode: Episode, **changes) -> LeRobotWriter:
    sizes = {name: (camera.width, camera.height) for name, camera in episode.cameras.items()}
    arguments = {
        "fps": episode.fps,
        "cameras": sizes,
        "action_names": ("x", "y", "z", "gripper"),
        "state_names": ("x", "y", "z", "opening"),
        "episodes_per_file": 2,
        "privileged_names": (*episode.privileged_names, "object2.x"),
    }
    return LeRobotWriter(folder, **arguments | changes)


def as_arguments(episode: Episode, **changes) -> dict:
    frames = {
        name: np.stack([episode.frame(name, t) for t in range(len(episode))])
        for name in episode.cameras
    }
    names = (
        "episode_id",
        "task",
        "instruction",
        "actions",
        "state",
        "cameras",
        "privileged",
        "privileged_names",
        "nouns",
        "success_step",
    )
    return {name: getattr(episode, name) for name in names} | {"frames": frames} | changes
