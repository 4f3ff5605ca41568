"""Tiny data sets of a made-up robot, as a user's own: plain LeRobot v3.0, without this package's file."""

from pathlib import Path

import numpy as np

from roboalign.episodes.episode import Camera
from roboalign.episodes.formats.lerobot_writer import LeRobotWriter

DELTA = {
    "control": "end-effector",
    "mode": "delta",
    "gripper": "closed_one",
    "position_scale": 0.05,
}
"""What the actions of `write_own` mean."""
STEPS = 20
NAMES = ("x", "y", "z", "gripper")


def poses(seed: int, steps: int = STEPS) -> tuple[np.ndarray, np.ndarray]:
    """(state [T, 4], action [T, 4]) of one episode: the action, scaled, is the step to the next state."""
    rng = np.random.default_rng(seed)
    start, goal = rng.uniform(-0.3, 0.3, (2, 3))
    part = np.linspace(0, 1, steps + 1)[:, None]
    position = start + (goal - start) * part + 0.01 * np.sin(6 * part + np.arange(3))
    closed = (np.arange(steps + 1) >= steps // 2).astype(float)
    action = np.column_stack([np.diff(position, axis=0) / 0.05, closed[1:]])
    return np.column_stack([position[:-1], closed[:-1]]).astype(np.float32), action.astype(
        np.float32
    )


def write_own(
    folder: Path,
    episodes: int = 6,
    *,
    steps: int = STEPS,
    fps: int = 10,
    instruction: str = "Put the cube into the bowl.",
    first: int = 0,
    idle: int = 0,
    scale: float = 1.0,
    cameras: tuple[str, ...] = ("top", "wrist"),
) -> Path:
    """Write a data set; each episode begins with `idle` steps in which nothing moves."""
    writer = LeRobotWriter(
        folder,
        fps=fps,
        cameras=dict.fromkeys(cameras, (32, 32)),
        action_names=NAMES,
        state_names=NAMES,
        privileged_names=(),
    )
    for number in range(first, first + episodes):
        state, action = poses(number, steps)
        rest = np.zeros((idle, 4), np.float32)
        state = np.concatenate([np.repeat(state[:1], idle, axis=0), state])
        action = np.concatenate([rest, action * [scale, scale, scale, 1]]).astype(np.float32)
        rng = np.random.default_rng(number)
        frames = {
            name: rng.integers(0, 256, (len(action), 32, 32, 3), np.uint8) for name in cameras
        }
        writer.add(
            episode_id=f"episode-{number}",
            task=instruction,
            instruction=instruction,
            actions=action,
            state=state,
            frames=frames,
            cameras={name: Camera(name, 32, 32) for name in cameras},
        )
    writer.finalize()
    (folder / "meta" / "roboalign.json").unlink(missing_ok=True)
    return folder


def own_set(folder: Path, name: str = "own", **changes: object) -> dict[str, object]:
    """The entry of a recipe for such a set."""
    cameras = {"front": "top", "hand": "wrist"}
    return {"name": name, "robot": str(folder), "space": DELTA, "cameras": cameras, **changes}
