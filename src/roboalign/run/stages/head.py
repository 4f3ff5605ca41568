"""Stage `head`: a flow-matching head on one arm's frozen backbone, trained on the downstream demonstrations."""

from typing import Any

from roboalign.core.progress import say
from roboalign.run.arms import ARMS
from roboalign.run.benchmark import head_view
from roboalign.run.folder import backbone_folder, own_demonstrations, split_demonstrations
from roboalign.run.stage import Context
from roboalign.vla.frames import learned_stats
from roboalign.vla.train import train_head


def head(context: Context) -> dict[str, Any]:
    """Train the head; write policy/ and metrics.jsonl."""
    recipe = context.recipe
    own = own_demonstrations(context.run_dir, "downstream")
    training, heldout = (
        own.split() if own else split_demonstrations(context.run_dir, recipe, "downstream")
    )
    relative = own.relative if own else None
    horizon, how = recipe.tokenizer.horizon, recipe.head_training
    stats = learned_stats(training, horizon, relative, how.statistics, how.clip)
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
        horizon=horizon,
        seed=context.seed,
        relative=relative,
    )
