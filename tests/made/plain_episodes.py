"""Episodes in memory without files or cameras, and a data set of them."""

from dataclasses import replace

import numpy as np

from roboalign.core.outcomes import Fault
from roboalign.episodes.episode import Episode
from roboalign.episodes.robot_data import RobotData


def plain(number: int, actions: np.ndarray, state: np.ndarray | None = None, **changes) -> Episode:
    """An episode without cameras."""
    actions = np.asarray(actions, dtype=np.float32)
    state = np.zeros((len(actions), 1), dtype=np.float32) if state is None else state
    episode = Episode(
        f"made/{number}", "task", "Do it.", 10.0, actions, state, images={}, cameras={}
    )
    return replace(episode, **changes)


def data_of(*items: Episode | Fault, strict: bool = False) -> RobotData:
    return RobotData("made", "memory", lambda: iter(items), strict=strict)
