"""Episodes that several tests read, and none changes."""

import pytest
from data_episodes import TASKS, make_episode

from roboalign.episodes.episode import Episode


@pytest.fixture(scope="session")
def episodes() -> list[Episode]:
    return [make_episode(task, seed) for task in TASKS for seed in range(6)]


@pytest.fixture(scope="session")
def one_episode() -> Episode:
    return make_episode()
