"""Episodes in which nothing moves, and their scenes."""

import numpy as np
from data_episodes import make_episode

from roboalign.episodes.episode import Episode
from roboalign.questions.facts.scene import EpisodeScenes

GRID, HORIZON = 16, 6


def still_episode(
    gripper, thing, goal, *, opening=1.0, action=(0.0, 0.0, 0.0, 0.0), steps=30, **changes
) -> Episode:
    episode = make_episode(steps=steps)
    row = np.array([*gripper, opening, *thing, *goal], np.float32)
    episode.privileged = np.tile(row, (steps, 1))
    episode.actions = np.tile(np.array(action, np.float32), (steps, 1))
    episode.success_step = None
    for name, value in changes.items():
        setattr(episode, name, value)
    return episode


def scene(*args, t=0, **changes):
    return EpisodeScenes(still_episode(*args, **changes), "workspace", GRID, HORIZON).at(t)
