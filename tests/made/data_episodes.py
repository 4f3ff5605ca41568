"""Synthetic episodes: a gripper that goes to an object, grasps it and carries it to a goal, seen from above."""

import numpy as np

from roboalign.episodes.episode import Camera, Episode, encode_png

NAMES = (
    *(f"gripper.{axis}" for axis in "xyz"),
    "gripper.opening",
    *(f"object.{axis}" for axis in "xyz"),
    *(f"goal.{axis}" for axis in "xyz"),
)
TASKS = {
    "drawer-open": ("Pull the drawer open.", {"object": "drawer handle", "goal": "open position"}),
    "puck-push": ("Push the puck to the target.", {"object": "puck", "goal": "target"}),
    "button-press": ("Press the button.", {"object": "button", "goal": "pressed position"}),
    "plate-slide": ("Slide the plate into the net.", {"object": "plate", "goal": "net"}),
}


def overhead(size: int = 32) -> Camera:
    """Looks straight down on x, y in [-0.5, 0.5] x [0, 1]: u grows with x, v falls with y; depth 1 everywhere."""
    matrix = np.array([[size, 0, 0, size / 2], [0, -size, 0, size], [0, 0, 0, 1.0]])
    return Camera("workspace", size, size, matrix)


def make_episode(
    task: str = "puck-push", seed: int = 0, steps: int = 30, size: int = 32
) -> Episode:
    rng = np.random.default_rng([seed, sorted(TASKS).index(task)])
    start, thing, goal = (
        np.array([rng.uniform(-0.4, 0.4), rng.uniform(0.1, 0.9), z]) for z in (0.25, 0.02, 0.05)
    )
    part = np.linspace(0, 1, steps)[:, None]
    hand = np.where(
        part < 0.5, start + (thing - start) * part * 2, thing + (goal - thing) * (part - 0.5) * 2
    )
    opening = np.where(part < 0.5, 1.0, 0.4)
    carried = np.where(part < 0.5, thing, hand)
    privileged = np.concatenate([hand, opening, carried, np.tile(goal, (steps, 1))], axis=1).astype(
        np.float32
    )
    move = np.clip(np.diff(hand, axis=0, append=hand[-1:]) * 20, -1, 1)
    actions = np.concatenate([move, np.where(part < 0.45, -1.0, 1.0)], axis=1).astype(np.float32)
    frames = rng.integers(0, 255, (steps, size, size, 3), dtype=np.uint8)
    instruction, nouns = TASKS[task]
    return Episode(
        episode_id=f"synthetic/{task}/seed-{seed}",
        task=task,
        instruction=instruction,
        fps=10.0,
        actions=actions,
        state=privileged[:, :4],
        images={"workspace": [encode_png(frame) for frame in frames]},
        cameras={"workspace": overhead(size)},
        privileged=privileged,
        privileged_names=NAMES,
        nouns=dict(nouns),
        success_step=steps - 4,
    )
