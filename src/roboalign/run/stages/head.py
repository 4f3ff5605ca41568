"""Stage `head`: a flow-matching head on one arm's frozen backbone, trained on the downstream demonstrations."""

from typing import Any

import numpy as np

from roboalign.actions.normalize import ActionStats
from roboalign.core.progress import say
from roboalign.run.arms import ARMS
from roboalign.run.benchmark import head_view
from roboalign.run.folder import backbone_folder, split_demonstrations
from roboalign.run.stage import Context
from roboalign.vla.train import train_head


def head(context: Context) -> dict[str, Any]:
    """Train the head; write policy/ and metrics.jsonl."""
    recipe = context.recipe
    training, heldout = split_demonstrations(context.run_dir, recipe, "downstream")
    stats = ActionStats.fit(
        np.concatenate([episode.actions for episode in training]),
        method=recipe.head_training.statistics,
        clip=recipe.head_training.clip,
    )
    if (context.seed, context.arm) == (recipe.seeds[0], recipe.arms[0]):
        # the same for all arms, because their demonstrations are the same
        for note in stats.notes():
            say(note, "head")
    view = head_view(recipe, blind=ARMS[context.arm].blind)
    mllm = context.load(backbone_folder(context.run_dir, context.seed, context.arm))
    return train_head(
        mllm,
        training,
        heldout,
        recipe.head,
        recipe.head_training,
        view,
        stats,
        context.folder,
        horizon=recipe.tokenizer.horizon,
        seed=context.seed,
    )
