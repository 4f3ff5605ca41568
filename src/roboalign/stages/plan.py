"""The stages of a recipe in order: what each needs and which settings change its result."""

from pathlib import Path
from typing import Any

from roboalign.config import Config
from roboalign.files import hash_tree
from roboalign.recipe import Recipe
from roboalign.stages.align import extra_sft, random_backbone, rl, sft
from roboalign.stages.base import base
from roboalign.stages.collect import collect
from roboalign.stages.data import BACKBONE_OF
from roboalign.stages.evaluate import rollouts, tokens
from roboalign.stages.head import head
from roboalign.stages.mix import mix
from roboalign.stages.report import report
from roboalign.stages.stage import Stage
from roboalign.stages.tokenizer import tokenizer


def plan_stages(recipe: Recipe) -> list[Stage]:
    """All stages of the recipe, each after those it needs."""
    stages = [
        Stage("collect", (), _settings(recipe.collect), collect, exclusive=True),
        Stage("tokenizer", ("collect",), {**_settings(recipe.tokenizer), "split": _settings(recipe.mix)}, tokenizer),
        Stage("mix", ("tokenizer",), _settings(recipe.mix), mix),
        Stage("base", ("mix",), _backbone_settings(recipe), base, exclusive=True),
    ]
    for seed in recipe.seeds:
        stages += _seed_stages(recipe, f"seed-{seed}")
    measured = [stage.name for stage in stages if "/eval/" in stage.name]
    stages.append(Stage("report", tuple(measured), {"arms": list(recipe.arms), "seeds": list(recipe.seeds)}, report))
    return stages


def _seed_stages(recipe: Recipe, prefix: str) -> list[Stage]:
    wanted = {BACKBONE_OF[arm] for arm in recipe.arms}
    stages = []
    if wanted & {"sft", "rl", "extra-sft"}:
        # With one seed nothing could run beside SFT: it may as well have every core.
        stages.append(Stage(f"{prefix}/sft", ("base",), _settings(recipe.sft), sft, exclusive=len(recipe.seeds) == 1))
    if "rl" in wanted:
        stages.append(Stage(f"{prefix}/rl", (f"{prefix}/sft",), _settings(recipe.rl), rl))
    if "extra-sft" in wanted:
        settings = {"sft": _settings(recipe.sft), "rl": _settings(recipe.rl)}
        stages.append(Stage(f"{prefix}/extra-sft", (f"{prefix}/sft",), settings, extra_sft))
    if "random" in wanted:
        stages.append(Stage(f"{prefix}/random", ("base",), {}, random_backbone))
    for arm in recipe.arms:
        source = BACKBONE_OF[arm] if arm == "base" else f"{prefix}/{BACKBONE_OF[arm]}"
        if arm != "blind":  # the blind arm's backbone is measured as roboalign
            stages.append(Stage(f"{prefix}/eval/tokens/{arm}", (source,), _settings(recipe.tokens), tokens))
        training = {"head": _settings(recipe.head), "training": _settings(recipe.head_training),
                    "layer": recipe.backbone.layer}
        stages.append(Stage(f"{prefix}/head/{arm}", (source,), training, head))
    # All heads before all rollouts: else the last head and then its rollouts run alone at the end.
    stages += [Stage(f"{prefix}/eval/rollouts/{arm}", (f"{prefix}/head/{arm}",), _settings(recipe.rollout), rollouts)
               for arm in recipe.arms]
    return stages


def _settings(config: Config) -> dict[str, Any]:
    """What changes the result; how often progress is written does not."""
    return config.model_dump(mode="json", exclude={"log_every", "save_every", "checkpoint_every", "threads"})


def _backbone_settings(recipe: Recipe) -> dict[str, Any]:
    """A folder given from outside counts by its content: other weights are another base."""
    backbone = recipe.backbone
    start = {"action_start": backbone.action_start}
    if backbone.source == "train":
        return {**start, **{name: _settings(getattr(backbone, name)) for name in ("tiny", "vision", "pretrain")}}
    from roboalign.stages.base import source_folder

    return {**start, "weights": hash_tree(Path(source_folder(backbone.source)))}
