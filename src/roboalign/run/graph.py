"""List the stages of a recipe in order, with what each needs and which settings change its
result."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from roboalign.align.grpo.config import RlConfig
from roboalign.align.rewards.registry import reward_content
from roboalign.core.config import Config
from roboalign.core.files import hash_file, hash_tree
from roboalign.core.hub import content_key, hub_id, pinned
from roboalign.online.token_learner import TUNED
from roboalign.run.answered import answering_arm
from roboalign.run.arms import (
    ARMS,
    BASE,
    MIX,
    SFT,
    VISITED,
    Backbone,
    backbones,
    policy_stage,
)
from roboalign.run.benchmark import rollout_config
from roboalign.run.recipe import Recipe, TokenizerConfig
from roboalign.run.stage import Context, Stage
from roboalign.run.stages.base import base, source_folder
from roboalign.run.stages.collect import collect_stage, own_parts
from roboalign.run.stages.distill import distill_rl, sample, traces
from roboalign.run.stages.evaluate import rollouts, tokens
from roboalign.run.stages.head import head
from roboalign.run.stages.mix import given_manifest, mix
from roboalign.run.stages.online import online
from roboalign.run.stages.replay import replay
from roboalign.run.stages.report import report
from roboalign.run.stages.token_policy import token_policy
from roboalign.run.stages.tokenizer import tokenizer
from roboalign.run.stages.visited import visited_tokens
from roboalign.sim.rollout import RolloutConfig

StageWork = Callable[[Context], dict[str, Any]]


def plan_stages(recipe: Recipe) -> list[Stage]:
    """Return all stages of `roboalign run`, each after those it needs."""
    made = [one for one in backbones(recipe.arms) if one not in (MIX, BASE)]
    stages = _first_stages(recipe)
    stages += [_backbone_stage(recipe, one, None) for one in made if one.shared]
    for seed in recipe.seeds:
        stages += [_backbone_stage(recipe, one, seed) for one in made if not one.shared]
        stages += _measuring_stages(recipe, seed)
    return [*stages, _report_stage(recipe, stages)]


def _report_stage(recipe: Recipe, stages: list[Stage]) -> Stage:
    """Return the report stage, which reads what earlier stages wrote and runs again when the
    measurements change."""
    return Stage(
        "report",
        partial(report, stages=tuple(stage.name for stage in stages)),
        needs=tuple(stage.name for stage in stages if stage.kind.startswith("eval/")),
        settings={"arms": list(recipe.arms), "seeds": list(recipe.seeds)},
    )


def pin_recipe(recipe: Recipe) -> Recipe:
    """Replace Hub ids in the recipe by the commits that they now name, so that all of a run's
    processes read the same files.

    Raises RoboAlignError if one cannot be fetched.
    """
    source, path = recipe.backbone.source, recipe.tokenizer.path
    if source not in ("builtin", "train"):
        source = pinned(source, "model", where="backbone.source")
    path = path and pinned(path, "tokenizer", where="tokenizer.path")
    parts = {
        "demos": recipe.demos.pinned(),
        "backbone": recipe.backbone.model_copy(update={"source": source}),
        "tokenizer": recipe.tokenizer.model_copy(update={"path": path}),
    }
    return recipe.model_copy(update=parts)


def distill_stages(recipe: Recipe) -> list[Stage]:
    """Return all stages of `roboalign distill`, each after those it needs."""
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
    trained = Stage(
        "distill/rl", distill_rl, ("mix", "base"), training, exclusive=True, together=True
    )
    return [
        *_first_stages(recipe),
        trained,
        Stage("distill/sample", sample, ("distill/rl",), sampling, exclusive=True),
        Stage("distill/traces", traces, ("distill/sample",), filters),
    ]


def _first_stages(recipe: Recipe) -> list[Stage]:
    """Return the stages that every training starts from."""
    demonstrations = _demonstration_settings(recipe)
    tokens: dict[str, Any] = {
        **_tokenizer_settings(recipe.tokenizer),
        "split": _settings(recipe.mix),
    }
    mixed = {**_settings(recipe.mix), "prompts": recipe.prompts}
    if recipe.mixture:
        # Its content matters, not its location.
        tokens = mixed = {"mixture": hash_file(given_manifest(recipe.mixture, recipe.prompts))}
    trains = recipe.backbone.source == "train" or recipe.backbone.connector is not None
    start = _backbone_settings(recipe)
    return [
        Stage("collect", collect_stage, (), demonstrations, exclusive=True),
        Stage("tokenizer", tokenizer, ("collect",), tokens),
        Stage("mix", mix, ("tokenizer",), mixed),
        Stage("base", base, ("mix",), start, exclusive=True, together=trains),
    ]


def _demonstration_settings(recipe: Recipe) -> dict[str, Any]:
    """Return the settings of the demonstrations: of experts, of recorded data sets, or of both."""
    own = {part: recipe.demos.identity(part) for part in own_parts(recipe)}
    experts = _settings(recipe.collect)
    if recipe.mixture:
        experts["part"] = "downstream"
    if not own:
        return experts
    split = {name: getattr(recipe.mix, name) for name in ("heldout_episode_share", "seed")}
    return {"own": own, "split": split, **({} if len(own) == 2 or recipe.mixture else experts)}


def _backbone_stage(recipe: Recipe, backbone: Backbone, seed: int | None) -> Stage:
    """Return the stage of a row of the arms' table, under one seed unless the seeds share it."""
    settings = {name: _settings(getattr(recipe, name)) for name in backbone.settings}
    return Stage(
        _stage_of(backbone, seed),
        backbone.work(),
        needs=tuple(_stage_of(need, seed) for need in backbone.needs),
        settings=settings,
        seed=seed,
        exclusive=backbone is SFT and _nothing_else_to_do(recipe),
        together=backbone.together,
    )


def _stage_of(backbone: Backbone, seed: int | None) -> str:
    return backbone.stage if backbone.shared else f"seed-{seed}/{backbone.stage}"


def _nothing_else_to_do(recipe: Recipe) -> bool:
    """Return whether every other stage waits for SFT, which may then have every core.

    A second core makes SFT a quarter faster; another seed, another SFT or a head that does not wait
    makes better use of it.
    """
    waiting = all(ARMS[arm].backbone.comes_from(SFT) for arm in recipe.arms)
    return waiting and len(recipe.seeds) == 1


def _measuring_stages(recipe: Recipe, seed: int) -> list[Stage]:
    """Return the stages for token metrics, head and rollouts of each arm, under one seed."""
    prefix = f"seed-{seed}"
    stages = []

    def stage(name: str, work: StageWork, arm: str, source: str, settings: dict[str, Any]) -> Stage:
        return Stage(f"{prefix}/{name}", work, (source,), settings, seed=seed, arm=arm)

    for arm in recipe.arms:
        source, row = _stage_of(ARMS[arm].backbone, seed), ARMS[arm]
        if row.online:
            before, settings = f"{prefix}/{policy_stage(row.online)}", _online_settings(recipe, arm)
            stages.append(stage(policy_stage(arm), online, arm, before, settings))
            source = f"{prefix}/{policy_stage(arm)}"
        if answering_arm(arm, recipe.arms) == arm:  # else its MLLM is asked as another arm's
            made = stage(f"eval/tokens/{arm}", tokens, arm, source, _settings(recipe.tokens))
            stages.append(made)
            if recipe.measures_visited:
                name = f"{prefix}/eval/visited/{arm}"
                needs = tuple(dict.fromkeys((source, _stage_of(VISITED, seed))))
                stages.append(replace(made, name=name, work=visited_tokens, needs=needs))
        if row.tokens and not row.online:
            settings = _token_policy_settings(recipe)
            stages.append(stage(policy_stage(arm), token_policy, arm, source, settings))
        elif not row.online:
            training = stage(policy_stage(arm), head, arm, source, _head_settings(recipe))
            stages.append(replace(training, together=True))
    # Put all heads before all rollouts. Otherwise the last head and then its rollouts run alone at
    # the end.
    for arm in recipe.arms:
        source = f"{prefix}/{policy_stage(arm)}"
        if recipe.measure == "offline":
            stages.append(stage(f"eval/replay/{arm}", replay, arm, source, {}))
        else:
            settings = _settings(recipe.rollout)
            stages.append(stage(f"eval/rollouts/{arm}", rollouts, arm, source, settings))
    return stages


def _settings(config: Config) -> dict[str, Any]:
    """Return the settings that change the result: not how often progress is written, and of a
    server only that there is one."""
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
    values = config.model_dump(mode="json")
    settings = {name: value for name, value in values.items() if name not in unsaid}
    if values.get("vllm"):
        settings["sampler"] = "vllm"
    if isinstance(config, RlConfig):
        settings |= reward_content(config.reward)
    return settings


def _head_settings(recipe: Recipe) -> dict[str, Any]:
    """Return the settings of a head. A reading counts where there is one, so that heads trained
    before there was a choice stay done."""
    backbone = recipe.backbone
    reading: dict[str, Any] = {}
    if backbone.reading != "direct":
        reading["reading"] = backbone.reading
    if backbone.reading == "reasoned":
        reading["max_reasoning_tokens"] = backbone.max_reasoning_tokens
    return {
        **reading,
        "head": _settings(recipe.head),
        "training": _settings(recipe.head_training),
        "layer": recipe.backbone.layer,
        "final_norm": recipe.backbone.final_norm,
        "layer_dtype": recipe.backbone.layer_dtype,
        "cameras_as": recipe.backbone.cameras_as,
    }


def _online_settings(recipe: Recipe, arm: str) -> dict[str, Any]:
    """Return the settings of online RL: how a rollout runs is part of them, and of a token policy
    what of `rl` trains it."""
    rollout = rollout_config(recipe)
    run = {name: getattr(rollout, name) for name in RolloutConfig.model_fields}
    tuned = {"rl": recipe.rl.model_dump(mode="json", include=set(TUNED))}
    return {
        "online": _settings(recipe.online),
        "rollout": run,
        **(tuned if ARMS[arm].tokens else {}),
    }


def _token_policy_settings(recipe: Recipe) -> dict[str, Any]:
    return {
        "token_policy": _settings(recipe.token_policy),
        "camera": recipe.mix.camera,
        "prompts": recipe.prompts,
    }


def _backbone_settings(recipe: Recipe) -> dict[str, Any]:
    """Return the settings of the backbone. A model from outside counts by its content or commit:
    other weights are another base."""
    backbone = recipe.backbone
    settings: dict[str, Any] = {
        "action_start": backbone.action_start,
        "dtype": recipe.hardware.dtype,
    }
    if bounds := backbone.images.model_dump(exclude_none=True):
        settings["images"] = bounds
    if backbone.source == "train":
        for name in ("tiny", "vision", "pretrain"):
            settings[name] = _settings(getattr(backbone, name))
        return settings
    if backbone.connector:
        settings["connector"] = _settings(backbone.connector)
    folder = source_folder(backbone.source)
    settings["weights"] = folder.name if hub_id(backbone.source) else hash_tree(folder)
    return settings


def _tokenizer_settings(config: TokenizerConfig) -> dict[str, Any]:
    """Return the settings of the tokenizer. A tokenizer from outside counts by its content or
    commit."""
    given = config.path and content_key(config.path, "tokenizer", where="tokenizer.path")
    return {**_settings(config), "path": given}
