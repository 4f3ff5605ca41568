"""The simulated user: numbers, names, order and pictures survive the foreign layout, and the robot names them back."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from own_sets import NAMES, poses

from benchmarks import simulated_user
from benchmarks.plain_lerobot import write_plain
from benchmarks.simulated_user import WORLDS, Robot, outcomes, table
from roboalign.core.files import append_jsonl
from roboalign.episodes.episode import Camera, Episode, encode_png
from roboalign.episodes.formats.lerobot import read_lerobot


def recorded(number: int, steps: int) -> Episode:
    """An episode whose picture is brighter at each step, and redder in each episode."""
    state, actions = poses(number, steps)
    picture = np.zeros((steps, 64, 64, 3), np.uint8)
    picture[..., 0] = 60 * number
    picture[..., 1] = np.linspace(0, 200, steps)[:, None, None]
    files = [encode_png(one) for one in picture]
    cameras = {"workspace": Camera("workspace", 64, 64)}
    text = f"Do number {number % 2}."
    images = {"workspace": files}
    return Episode(f"e-{number}", "t", text, 10.0, actions, state, images, cameras)


def test_what_the_user_records_is_what_happened(tmp_path: Path) -> None:
    world, episodes = WORLDS["metaworld"], [recorded(n, 8 + n) for n in range(3)]
    write_plain(
        tmp_path / "set",
        episodes,
        cameras=world.cameras,
        state_names=world.state_names,
        state_order=world.state_order,
        action_names=NAMES,
    )
    read = read_lerobot(tmp_path / "set")
    assert [len(one) for one in read] == [8, 9, 10] and read[0].fps == 10
    for ours, theirs in zip(episodes, read, strict=True):
        assert theirs.instruction == ours.instruction
        np.testing.assert_array_equal(theirs.actions, ours.actions)
        np.testing.assert_array_equal(theirs.state, ours.state[:, [3, 0, 1, 2]])
        for t in range(len(ours)):
            difference = ours.frame("workspace", t).astype(int) - theirs.frame("top", t)
            assert np.abs(difference).mean(axis=(0, 1)).max() < 6  # steps are 20 apart


def test_the_robot_names_what_the_server_wants(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["tool_y", "jaw", "tool_x", "tool_z"]
    remote = SimpleNamespace(metadata={"observation": {"observation/state": {"names": names}}})
    monkeypatch.setattr(simulated_user, "RemotePolicy", lambda port: remote)
    image = np.zeros((2, 2, 3), np.uint8)
    state = np.array([1, 2, 3, 0.5], np.float32)
    seen = SimpleNamespace(images={"workspace": image}, state=state, instruction="Go.")
    shown = Robot(1, WORLDS["metaworld"]).renamed(seen)
    assert shown.images == {"top": image} and shown.instruction == "Go."
    np.testing.assert_array_equal(shown.state, [2, 0.5, 1, 3])


def test_the_table_counts_pairs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    world = WORLDS["metaworld"]
    tasks = world.collect["downstream_tasks"]
    for seed in world.seeds:
        for arm in world.arms:
            inside = tmp_path / f"builtin/seed-{seed}/eval/rollouts/{arm}/episodes.jsonl"
            outside = tmp_path / f"driven/{arm}-{seed}.jsonl"
            for path in (inside, outside):
                path.parent.mkdir(parents=True, exist_ok=True)
                for task in tasks:
                    won = task == tasks[0] or (path == outside and task == tasks[1])
                    append_jsonl(path, {"task": task, "seed": 7, "success": won, "crash": None})
    assert sum(outcomes(tmp_path, "driven/base-{}.jsonl", (0, 1)).values()) == 4
    table(tmp_path, world)
    said = capsys.readouterr().out
    assert "| built-in, in process | base | 2/2 (34 to 100) | 0/2 (0 to 66) |" in said
    assert "base: 0 solved by the built-in policy alone, 2 by the user's alone" in said
    assert "base: of 6 pairs, exact McNemar p = 0.50" in said
