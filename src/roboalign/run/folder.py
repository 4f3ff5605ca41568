"""Where a run keeps its episodes, its action tokenizer and its mixture, and how the stages read them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from roboalign.actions.fast import FastTokenizer
from roboalign.actions.normalize import ActionStats
from roboalign.core.files import read_json
from roboalign.episodes.episode import Episode
from roboalign.episodes.formats.lerobot import read_lerobot
from roboalign.run.arms import ARMS


def read_demonstrations(run_dir: Path, part: str) -> list[Episode]:
    """The episodes of `align` or `downstream`."""
    return read_lerobot(run_dir / "collect" / part)


@dataclass(frozen=True)
class ActionTokens:
    """What turns alignment actions into tokens and back."""

    fast: FastTokenizer
    stats: ActionStats
    mean_chunk: np.ndarray
    """float32 [H, A], normalised: the mean chunk of the training frames, the baseline that sees nothing."""


def run_action_tokens(run_dir: Path) -> ActionTokens:
    """What the tokenizer stage left."""
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
    """Where the mix stage writes, or that of an arm which is trained on a mixture of its own."""
    return run_dir / stage / "mixture"


def backbone_folder(run_dir: Path, seed: int, arm: str) -> Path:
    """The Hugging Face folder of an arm's backbone."""
    backbone = ARMS[arm].backbone
    folder = run_dir if backbone.shared else run_dir / f"seed-{seed}"
    return folder / backbone.stage / "model"
