"""Locate a run's episodes, action tokenizer and mixture, and read them for the stages."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from roboalign.actions.fast import FastTokenizer
from roboalign.actions.normalize import ActionStats
from roboalign.core.files import read_json
from roboalign.episodes.episode import Episode
from roboalign.episodes.formats.lerobot import read_lerobot
from roboalign.mixture.demonstrations import split_episodes
from roboalign.run.arms import ARMS, policy_stage
from roboalign.run.demos import DemosPart, OwnDemonstrations, check_unchanged
from roboalign.run.load import load_recipe
from roboalign.run.recipe import Recipe

HELD_OUT_SHARE = 0.1
"""Share of each task's expert demonstrations that the head does not train on."""


def read_demonstrations(run_dir: Path, part: DemosPart) -> list[Episode]:
    """Read the episodes of `align` or `downstream`: those of experts, or the user's own."""
    own = own_demonstrations(run_dir, part)
    return own.episodes if own else read_lerobot(run_dir / "collect" / part)


def own_demonstrations(run_dir: Path, part: DemosPart) -> OwnDemonstrations | None:
    """Return the recorded demonstrations of a part, read from where they are; None if experts made
    them.

    Raises RoboAlignError if they have changed since the run began.
    """
    path = run_dir / "collect" / f"{part}.json"
    if not path.is_file():
        return None
    recipe = load_recipe(run_dir / "recipe.yaml")
    own = OwnDemonstrations(recipe.demos, part, recipe.mix.heldout_episode_share, recipe.mix.seed)
    places = ", ".join(one.robot for one in recipe.demos.of(part))
    check_unchanged(own.episodes, read_json(path), path, places)
    return own


def split_demonstrations(
    run_dir: Path, recipe: Recipe, part: DemosPart
) -> tuple[list[Episode], list[Episode]]:
    """Return the (training, held-out) episodes of a part."""
    own = own_demonstrations(run_dir, part)
    if own is not None:
        return own.split()
    episodes = read_lerobot(run_dir / "collect" / part)
    return split_episodes(episodes, recipe.mix) if part == "align" else _last_of_each(episodes)


def _last_of_each(episodes: list[Episode]) -> tuple[list[Episode], list[Episode]]:
    """Return (training, held out): the last tenth of each task is held out, at least one if there
    are two."""
    by_task: dict[str, list[Episode]] = {}
    for episode in episodes:
        by_task.setdefault(episode.task, []).append(episode)
    training, heldout = [], []
    for members in by_task.values():
        last = (
            len(members) - max(1, round(HELD_OUT_SHARE * len(members))) if len(members) > 1 else 1
        )
        training += members[:last]
        heldout += members[last:]
    return training, heldout


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
    """Return the Hugging Face folder of an arm's backbone; that of tokens after online RL is their
    own."""
    row, backbone = ARMS[arm], ARMS[arm].backbone
    if row.tokens and row.online:
        return run_dir / f"seed-{seed}" / policy_stage(arm) / "model"
    folder = run_dir if backbone.shared else run_dir / f"seed-{seed}"
    return folder / backbone.stage / "model"


def policy_folder(run_dir: Path, seed: int, arm: str) -> Path:
    """Return the folder of an arm's policy."""
    return run_dir / f"seed-{seed}" / policy_stage(arm) / "policy"
