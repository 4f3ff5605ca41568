"""Locate a run's episodes, action tokenizer and mixture, and read them for the stages."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from roboalign.actions.fast import FastTokenizer
from roboalign.actions.normalize import ActionStats
from roboalign.core.files import read_json
from roboalign.episodes.episode import Episode
from roboalign.episodes.formats.lerobot import read_lerobot
from roboalign.run.arms import ARMS, policy_stage


def read_demonstrations(run_dir: Path, part: str) -> list[Episode]:
    """Read the episodes of `align` or `downstream`."""
    return read_lerobot(run_dir / "collect" / part)


@dataclass(frozen=True)
class ActionTokens:
    """Convert alignment actions into tokens and back."""

    fast: FastTokenizer
    stats: ActionStats
    mean_chunk: np.ndarray
    """float32 [H, A], normalized: the mean chunk of the training frames, the baseline that uses no
    input."""


def run_action_tokens(run_dir: Path) -> ActionTokens:
    """Read what the tokenizer stage wrote."""
    folder = run_dir / "tokenizer"
    stats = ActionStats.from_dict(
        read_json(folder / "stats.json"), where=str(folder / "stats.json")
    )
    described = read_json(folder / "tokenizer.json")
    fast = FastTokenizer.load(
        folder / "fast", horizon=described["horizon"], action_dim=described["action_dim"]
    )
    return ActionTokens(fast, stats, np.array(described["mean_chunk"], dtype=np.float32))


def mixture_folder(run_dir: Path, stage: str = "mix") -> Path:
    """Return the folder of the mix stage, or of the mix stage of an arm with its own mixture."""
    return run_dir / stage / "mixture"


def backbone_folder(run_dir: Path, seed: int, arm: str) -> Path:
    """Return the Hugging Face folder of an arm's backbone."""
    backbone = ARMS[arm].backbone
    folder = run_dir if backbone.shared else run_dir / f"seed-{seed}"
    return folder / backbone.stage / "model"


def policy_folder(run_dir: Path, seed: int, arm: str) -> Path:
    """Return the folder of an arm's policy."""
    return run_dir / f"seed-{seed}" / policy_stage(arm) / "policy"
