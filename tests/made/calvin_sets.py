"""A small split of CALVIN: its steps and its annotations."""

from pathlib import Path

import numpy as np

from roboalign.episodes.formats.calvin import ANNOTATIONS

SPANS = [(3, 6), (5, 9), (12, 12)]
SENTENCES = ["lift the red block", "push the button", "open the drawer"]
TASKS = ["lift_red_block_table", "push_into_drawer", "open_drawer"]


def step_arrays(step: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(step)
    return {
        "actions": rng.normal(size=7),
        "rel_actions": rng.normal(size=7),
        "robot_obs": rng.normal(size=15),
        "scene_obs": rng.normal(size=24),
        "depth_static": rng.random((4, 6), dtype=np.float32),
        "rgb_static": rng.integers(0, 256, (4, 6, 3), dtype=np.uint8),
        "rgb_gripper": rng.integers(0, 256, (2, 3, 3), dtype=np.uint8),
        "rgb_tactile": rng.integers(0, 256, (4, 2, 6), dtype=np.uint8),
    }


def step_path(split: Path, step: int) -> Path:
    return split / f"episode_{step:07d}.npz"


def annotate(split: Path, record) -> None:
    path = split / ANNOTATIONS
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, record, allow_pickle=True)


def record(spans=SPANS, sentences=SENTENCES, tasks=TASKS) -> dict:
    embeddings = np.zeros((len(sentences), 1, 8), dtype=np.float32)
    return {
        "language": {"ann": sentences, "task": tasks, "emb": embeddings},
        "info": {"episodes": [], "indx": spans},
    }
