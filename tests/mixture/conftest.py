"""Sources that several tests read, and none changes."""

from pathlib import Path

import pytest
from data_episodes import TASKS, make_episode
from mixing_sources import encoded, picture, write_qa, write_robot, write_talks

from roboalign.episodes.episode import Episode


@pytest.fixture(scope="session")
def episodes() -> list[Episode]:
    return [make_episode(task, seed) for task in TASKS for seed in range(6)]


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """qa.json (60 records), robot (4 episodes of 20 steps), talks (30 conversations)."""
    folder = tmp_path_factory.mktemp("made")
    write_qa(folder / "qa", 60)
    write_robot(folder / "robot")
    write_talks(folder / "talks", [encoded(picture(1000 + n)) for n in range(30)])
    return folder


@pytest.fixture
def three(made: Path) -> list[dict]:
    """A source of each kind."""
    return [
        {"name": "qa", "qa": str(made / "qa/qa.json"), "kind": "embodied", "count": 40},
        {"name": "acts", "robot": str(made / "robot"), "count": 50},
        {"name": "talks", "conversations": str(made / "talks"), "count": 20},
    ]
