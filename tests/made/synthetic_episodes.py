"""Random episodes and a tiny untrained MLLM for them."""

from pathlib import Path

import numpy as np
import torch

from roboalign.conversations.styles.registry import STYLES
from roboalign.episodes.episode import Camera, Episode, encode_png
from roboalign.mllm.load import save_mllm
from roboalign.mllm.tiny import TinyConfig, build_tiny

LABELLED = STYLES["labelled"]


def make_episode(number: int, length: int = 7, instruction: str = "open the drawer") -> Episode:
    """Random frames, actions and states; two cameras."""
    rng = np.random.default_rng(number)
    cameras = ("front", "wrist")
    images = {
        c: [encode_png(rng.integers(0, 256, (32, 32, 3), np.uint8)) for _ in range(length)]
        for c in cameras
    }
    return Episode(
        episode_id=f"test/task/seed-{number}",
        task="task",
        instruction=instruction,
        fps=10.0,
        actions=rng.normal(size=(length, 4)).astype(np.float32),
        state=rng.normal(size=(length, 3)).astype(np.float32),
        images=images,
        cameras={c: Camera(c, 32, 32) for c in cameras},
    )


def make_episodes() -> list[Episode]:
    """Five episodes of different lengths and instructions (prompts of different lengths)."""
    instructions = ["open the drawer", "close it", "push the red button on the wall of the box"]
    return [make_episode(number, 5 + number, instructions[number % 3]) for number in range(5)]


def save_backbone(folder: Path, episodes: list[Episode]) -> None:
    """Write the tiny MLLM, of width 48 and three text layers."""
    torch.manual_seed(0)
    vision = {"image_size": 32, "vision_width": 32, "vision_depth": 2, "vision_heads": 2}
    config = TinyConfig(**vision, width=48, depth=3, heads=2, kv_heads=2)
    texts = [LABELLED.action_question(episode.instruction, "direct") for episode in episodes]
    save_mllm(build_tiny(config, texts * 20), folder)
