"""LeRobot's own code opens what we write, and we read what it writes. Skipped where lerobot is not installed."""

import numpy as np
import pytest
from data_episodes import make_episode

from roboalign.data.lerobot import LeRobotWriter, read_lerobot

peer = pytest.importorskip("lerobot.datasets.lerobot_dataset", reason="lerobot 0.4 is not installed")


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))


def test_lerobot_opens_what_we_write(tmp_path):
    episodes = [make_episode(task, seed) for task in ("puck-push", "plate-slide") for seed in range(2)]
    writer = LeRobotWriter(tmp_path / "set", fps=10, cameras={"workspace": (32, 32)}, action_names="xyzg",
                           state_names="xyzg", privileged_names=episodes[0].privileged_names, episodes_per_file=3)
    for e in episodes:
        frames = {"workspace": np.stack([e.frame("workspace", t) for t in range(len(e))])}
        writer.add(episode_id=e.episode_id, task=e.task, instruction=e.instruction, actions=e.actions, state=e.state,
                   frames=frames, cameras=e.cameras, privileged=e.privileged, privileged_names=e.privileged_names)
    writer.finalize()
    found = peer.LeRobotDataset("local/set", root=tmp_path / "set", delta_timestamps={"action": [0.0, 0.1, 0.2]})
    assert (found.num_episodes, len(found), found.fps) == (4, 120, 10)
    for index in (0, 45, 119):
        episode, t = episodes[index // 30], index % 30
        item = found[index]
        assert item["task"] == episode.instruction and item["episode_index"] == index // 30
        np.testing.assert_array_equal(item["action"].numpy(), episode.chunk(t, 3))
        np.testing.assert_array_equal(item["observation.state"].numpy(), episode.state[t])
        pixels = (item["observation.images.workspace"].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
        np.testing.assert_array_equal(pixels, episode.frame("workspace", t))


def test_we_read_what_lerobot_writes(tmp_path):
    rng = np.random.default_rng(0)
    features = {
        "observation.images.front": {"dtype": "image", "shape": (8, 6, 3), "names": ["height", "width", "channels"]},
        "observation.state": {"dtype": "float32", "shape": (3,), "names": ["a", "b", "c"]},
        "action": {"dtype": "float32", "shape": (2,), "names": ["x", "y"]},
    }
    written = peer.LeRobotDataset.create("local/own", fps=5, features=features, root=tmp_path / "own", use_videos=False)
    rows = [[{"observation.images.front": rng.integers(0, 255, (8, 6, 3), dtype=np.uint8),
              "observation.state": rng.normal(size=3).astype(np.float32),
              "action": rng.normal(size=2).astype(np.float32), "task": f"do {number}"} for _ in range(4 + number)]
            for number in range(3)]
    for episode in rows:
        for row in episode:
            written.add_frame(dict(row))
        written.save_episode()
    written.finalize()
    found = read_lerobot(tmp_path / "own")
    assert [(e.instruction, len(e), e.fps) for e in found] == [("do 0", 4, 5.0), ("do 1", 5, 5.0), ("do 2", 6, 5.0)]
    for episode, expected in zip(found, rows):
        np.testing.assert_array_equal(episode.actions, [row["action"] for row in expected])
        np.testing.assert_array_equal(episode.state, [row["observation.state"] for row in expected])
        for t, row in enumerate(expected):
            np.testing.assert_array_equal(episode.frame("front", t), row["observation.images.front"])
