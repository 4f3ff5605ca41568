"""The stages of a recipe in order: what each needs and which settings change its result."""

from pathlib import Path
from typing import Any

from roboalign.core.config import Config
from roboalign.core.files import hash_file, hash_tree
from roboalign.run.folder import BACKBONE_OF
from roboalign.run.recipe import Recipe
from roboalign.run.stage import Stage
from roboalign.run.stages.align import extra_sft, random_backbone, rl, sft
from roboalign.run.stages.base import base
from roboalign.run.stages.baselines import (
    action_mix,
    action_sft,
    ecot,
    language_mix,
    language_rl,
    language_sft,
    trajectory_rl,
)
from roboalign.run.stages.collect import collect
from roboalign.run.stages.distill import distill_rl, sample, traces
from roboalign.run.stages.evaluate import rollouts, tokens
from roboalign.run.stages.head import head
from roboalign.run.stages.mix import given_manifest, mix
from roboalign.run.stages.report import report
from roboalign.run.stages.tokenizer import tokenizer


def plan_stages(recipe: Recipe) -> list[Stage]:
    """All stages of `roboalign run`, each after those it needs."""
    stages = _first_stages(recipe)
    own = {**_settings(recipe.mix), **_settings(recipe.baselines)}
    if "language-sft" in recipe.arms:
        stages.append(Stage("mix-language", ("mix",), own, language_mix))
    if "action-sft" in recipe.arms:
        stages.append(Stage("mix-action", ("mix",), own, action_mix))
    for seed in recipe.seeds:
        stages += _seed_stages(recipe, f"seed-{seed}")
    measured = [stage.name for stage in stages if "/eval/" in stage.name]
    stages.append(
        Stage(
            "report",
            tuple(measured),
            {"arms": list(recipe.arms), "seeds": list(recipe.seeds)},
            report,
        )
    )
    return stages


def distill_stages(recipe: Recipe) -> list[Stage]:
    """All stages of `roboalign distill`, each after those it needs."""
    config = _settings(recipe.distill)

    def settings(*names: str) -> dict[str, Any]:
        return {name: config[name] for name in names}

    asked = settings("groups", "rl_questions", "seed")
    training = {**asked, "rl": _settings(recipe.distill.rl)}
    sampling = {**asked, **settings("questions", "samples", "temperature", "max_new_tokens")}
    filters = {
        **settings("max_per_question", "min_words", "max_words"),
        "shard_size": recipe.mix.shard_size,
    }
    return [
        *_first_stages(recipe),
        Stage("distill/rl", ("mix", "base"), training, distill_rl, exclusive=True, together=True),
        Stage("distill/sample", ("distill/rl",), sampling, sample, exclusive=True),
        Stage("distill/traces", ("distill/sample",), filters, traces),
    ]


def _first_stages(recipe: Recipe) -> list[Stage]:
    """What every training starts from."""
    demonstrations = {
        **_settings(recipe.collect),
        **({"part": "downstream"} if recipe.mixture else {}),
    }
    tokens: dict[str, Any] = {**_settings(recipe.tokenizer), "split": _settings(recipe.mix)}
    mixed = _settings(recipe.mix)
    if recipe.mixture:
        # What it holds counts, not where it lies.
        tokens = mixed = {"mixture": hash_file(given_manifest(recipe.mixture))}
    return [
        Stage("collect", (), demonstrations, collect, exclusive=True),
        Stage("tokenizer", ("collect",), tokens, tokenizer),
        Stage("mix", ("tokenizer",), mixed, mix),
        Stage(
            "base",
            ("mix",),
            _backbone_settings(recipe),
            base,
            exclusive=True,
            together=recipe.backbone.source == "train" or recipe.backbone.connector is not None,
        ),
    ]


def _seed_stages(recipe: Recipe, prefix: str) -> list[Stage]:
    wanted = {BACKBONE_OF[arm] for arm in recipe.arms}
    stages = []
    if "language-sft" in wanted:
        needs = ("base", "mix-language")
        stages.append(
            Stage(
                f"{prefix}/language-sft", needs, _settings(recipe.sft), language_sft, together=True
            )
        )
    if "action-sft" in wanted:
        needs = ("base", "mix-action")
        stages.append(
            Stage(f"{prefix}/action-sft", needs, _settings(recipe.sft), action_sft, together=True)
        )
    if wanted & {"sft", "rl", "extra-sft", "ecot", "language-rl", "trajectory-rl"}:
        # Where nothing could run beside it, it may as well have every core. A second one makes it a quarter faster:
        # whatever can run beside it (another seed, another SFT, a head that does not wait for it) uses that better.
        alone = len(recipe.seeds) == 1 and not wanted & {
            "language-sft",
            "action-sft",
            "base",
            "random",
        }
        stages.append(
            Stage(
                f"{prefix}/sft",
                ("base",),
                _settings(recipe.sft),
                sft,
                exclusive=alone,
                together=True,
            )
        )
    if "rl" in wanted:
        stages.append(
            Stage(f"{prefix}/rl", (f"{prefix}/sft",), _settings(recipe.rl), rl, together=True)
        )
    for name, work in (
        ("ecot", ecot),
        ("language-rl", language_rl),
        ("trajectory-rl", trajectory_rl),
    ):
        if name in wanted:
            stages.append(
                Stage(
                    f"{prefix}/{name}",
                    (f"{prefix}/sft",),
                    _settings(recipe.rl),
                    work,
                    together=True,
                )
            )
    if "extra-sft" in wanted:
        settings = {"sft": _settings(recipe.sft), "rl": _settings(recipe.rl)}
        stages.append(
            Stage(f"{prefix}/extra-sft", (f"{prefix}/sft",), settings, extra_sft, together=True)
        )
    if "random" in wanted:
        stages.append(Stage(f"{prefix}/random", ("base",), {}, random_backbone))
    for arm in recipe.arms:
        source = BACKBONE_OF[arm] if arm == "base" else f"{prefix}/{BACKBONE_OF[arm]}"
        if arm != "blind":  # the blind arm's backbone is measured as roboalign
            stages.append(
                Stage(f"{prefix}/eval/tokens/{arm}", (source,), _settings(recipe.tokens), tokens)
            )
        stages.append(
            Stage(f"{prefix}/head/{arm}", (source,), _head_settings(recipe), head, together=True)
        )
    # All heads before all rollouts: else the last head and then its rollouts run alone at the end.
    stages += [
        Stage(
            f"{prefix}/eval/rollouts/{arm}",
            (f"{prefix}/head/{arm}",),
            _settings(recipe.rollout),
            rollouts,
        )
        for arm in recipe.arms
    ]
    return stages


def _settings(config: Config) -> dict[str, Any]:
    """What changes the result; how often progress is written does not, and of a server only that there is one."""
    unsaid = {
        "log_every",
        "save_every",
        "checkpoint_every",
        "threads",
        "workers",
        "compile",
        "liger",
        "vllm",
    }
    sampler = {"sampler": "vllm"} if getattr(config, "vllm", None) else {}
    return {
        **{name: value for name, value in config.identity().items() if name not in unsaid},
        **sampler,
    }


def _head_settings(recipe: Recipe) -> dict[str, Any]:
    dtype = recipe.backbone.layer_dtype
    return {
        "head": _settings(recipe.head),
        "training": _settings(recipe.head_training),
        "layer": recipe.backbone.layer,
        **({"layer_dtype": dtype} if dtype != "float16" else {}),
    }


def _backbone_settings(recipe: Recipe) -> dict[str, Any]:
    """A folder given from outside counts by its content: other weights are another base."""
    backbone = recipe.backbone
    dtype = recipe.hardware.dtype
    start = {
        "action_start": backbone.action_start,
        **({"dtype": dtype} if dtype != "float32" else {}),
    }
    if backbone.source == "train":
        return {
            **start,
            **{name: _settings(getattr(backbone, name)) for name in ("tiny", "vision", "pretrain")},
        }
    from roboalign.run.stages.base import source_folder

    connector = {"connector": _settings(backbone.connector)} if backbone.connector else {}
    return {**start, **connector, "weights": hash_tree(Path(source_folder(backbone.source)))}
