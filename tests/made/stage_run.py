"""A small run on synthetic episodes: what the stages read, without a simulator."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from data_episodes import NAMES, TASKS, make_episode

from roboalign.core.files import write_json
from roboalign.episodes.formats.lerobot_writer import LeRobotWriter
from roboalign.run.recipe import Recipe
from roboalign.run.stage import Context, Stage

torch.set_num_threads(1)

SETTINGS: dict[str, Any] = {
    "name": "stages",
    "tokenizer": {"vocab_size": 64, "horizon": 4},
    "mix": {"conversations": 120, "rl_share": 0.0099, "heldout_questions": 1, "heldout_actions": 4},
    "backbone": {
        "source": "train",
        "layer": 1,
        "tiny": {
            "image_size": 32,
            "depth": 2,
            "width": 32,
            "heads": 2,
            "kv_heads": 1,
            "mlp_width": 64,
            "vision_width": 32,
            "vision_depth": 2,
            "vision_heads": 2,
            "vocab_size": 700,
        },
        "vision": {"updates": 2, "batch_size": 4},
        "pretrain": {"max_steps": 2, "batch_size": 4, "micro_batch_size": 4},
    },
    "rollout": {"replan_every": 4},
    "sft": {"max_steps": 2, "batch_size": 4, "micro_batch_size": 4},
    "rl": {
        "prompts_per_rollout": 4,
        "prompts_per_update": 2,
        "micro_batch_size": 2,
        "samples": 2,
        "updates": 2,
        "replay_weight": 0.1,
        "replay_batch": 2,
        "learning_rate": 3e-4,
        "max_grad_norm": 0.5,
    },
}


def recipe(**changes: Any) -> Recipe:
    return Recipe.model_validate({**SETTINGS, **changes})


def write_episodes(folder: Path, seeds: range, prefix: str = "synthetic") -> None:
    writer = LeRobotWriter(
        folder,
        fps=10,
        cameras={"workspace": (32, 32)},
        action_names=("x", "y", "z", "gripper"),
        state_names=("hand.x", "hand.y", "hand.z", "gripper.opening"),
        privileged_names=NAMES,
    )
    for task in TASKS:
        for seed in seeds:
            one = make_episode(task, seed, steps=12)
            frames = {"workspace": np.stack([one.frame("workspace", t) for t in range(len(one))])}
            writer.add(
                episode_id=f"{prefix}/{task}/seed-{seed}",
                task=task,
                instruction=one.instruction,
                actions=one.actions,
                state=one.state,
                frames=frames,
                cameras=one.cameras,
                privileged=one.privileged,
                privileged_names=NAMES,
                nouns=one.nouns,
                success_step=one.success_step,
            )
    writer.finalize()


def context(run_dir: Path, name: str, settings: Recipe) -> Context:
    """The context of a stage that is called by its function: `seed-3/head/sft` is of seed 3 and arm `sft`."""
    parts = name.split("/")
    seed = int(parts[0].removeprefix("seed-")) if parts[0].startswith("seed-") else None
    return _context(run_dir, Stage(name, _not_called, seed=seed, arm=parts[-1]), settings)


def _context(run_dir: Path, stage: Stage, settings: Recipe) -> Context:
    (run_dir / stage.name).mkdir(parents=True, exist_ok=True)
    return Context(settings, run_dir, stage)


def _not_called(context: Context) -> dict[str, Any]:
    raise AssertionError("the test calls the stage's function itself")


def do(stages: dict[str, Stage], run_dir: Path, name: str, settings: Recipe) -> dict[str, Any]:
    """One stage as the pipeline does it, without its choice of threads."""
    row = stages[name].work(_context(run_dir, stages[name], settings))
    write_json(run_dir / name / "stage.json", row)
    return row
