"""The recipe: every setting of a run in one validated, immutable object, read from YAML.

Each room owns the settings of what it does; this module composes them, reads the file, applies `--set` overrides and
turns a validation failure into one message that names the key and the fix.
"""

import difflib
import os
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import torch
import yaml
from pydantic import Field, ValidationError, model_validator

from roboalign.actions.normalize import Method
from roboalign.align.backbone import BackboneConfig
from roboalign.align.distill import DistillConfig
from roboalign.align.grpo.config import RlConfig
from roboalign.align.rewards.answers import PRESETS as IN_WORDS
from roboalign.align.sft import SftConfig
from roboalign.core.config import Config
from roboalign.core.errors import RoboAlignError
from roboalign.core.trackers import TrackerName
from roboalign.evaluate.tokens import TokenEvalConfig
from roboalign.mixture.packed import MixConfig
from roboalign.questions.ask import TYPES
from roboalign.run.arms import ARMS, ArmName
from roboalign.run.demonstrations import DemonstrationsConfig, require_distinct
from roboalign.sim.ray import ClusterConfig
from roboalign.sim.rollout import RolloutConfig
from roboalign.vla.head import HeadConfig
from roboalign.vla.train import HeadTrainConfig


class TokenizerConfig(Config):
    """The FAST action tokenizer."""

    path: str | None = None
    """A published FAST tokenizer (FAST+): its folder, or its Hub id, `physical-intelligence/fast`; without it, one is
    fitted on the alignment chunks."""
    horizon: int = Field(8, ge=1)
    """Action steps a chunk."""
    scale: float = Field(2.0, gt=0)
    """Factor before rounding a DCT coefficient: larger is finer and gives more tokens."""
    vocab_size: int = Field(128, ge=8)
    """Entries of the fitted byte-pair vocabulary."""
    statistics: Method = "quantiles"
    """Which values normalize to -1 and 1: quantiles (1% and 99%), min_max, or mean_std (mean minus and plus std)."""
    clip: bool = True
    """Cut normalized actions at -1 and 1, as OpenVLA does; openpi does not. Without effect on mean_std."""

    ADDED: ClassVar[frozenset[str]] = frozenset({"statistics", "clip"})


class EvaluationConfig(RolloutConfig):
    """How a policy is measured."""

    episodes: int = Field(10, ge=1)
    """Episodes a downstream task; every arm meets the same initial states."""


class BaselinesConfig(Config):
    """The paper's baselines, for the recipes that name them among their arms."""

    counts: Literal["matched", "paper"] = "matched"
    """Samples (turns) of `language-sft` and `action-sft`: as many as the whole mixture has, or the paper's share of
    that (1.88M of 2.28M)."""


class HardwareConfig(Config):
    """Where models are trained and used. Only `dtype` changes what a stage is held to have done."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto`: a GPU where there is one. Each process that torchrun starts on a machine takes a GPU of its own."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the MLLM's weights in memory from SFT on. AdamW changes them in it: in bfloat16 small steps round to
    nothing; `sft.bf16` and `rl.bf16` compute in bfloat16 on float32 weights."""
    timeout: float = Field(1800.0, gt=0)
    """Seconds for which the processes of one training wait for one another before they hold one to be dead. Rollouts
    of unequal length are such waits too."""
    ray: ClusterConfig | None = None
    """A Ray cluster on whose machines policies are measured; without it, processes of this machine do it."""


class Recipe(Config):
    """All settings of a run."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_.-]*$")
    """The run's name; results go to runs/<name> unless --out says otherwise."""
    seeds: tuple[int, ...] = Field((0,), min_length=1)
    """SFT, RL, head training and flow noise are repeated under each seed; data and base model are shared."""
    parallel: int = Field(0, ge=0)
    """Independent stages run side by side in this many processes; 0: one a core, or one where there is a GPU."""
    arms: tuple[ArmName, ...] = ("base", "sft", "roboalign", "extra-sft", "random", "blind")
    """Backbones that get a head and are measured."""
    mixture: str | None = None
    """Folder made by `roboalign data mix`: SFT and RL learn from it, with its action tokens, and no alignment
    demonstrations are collected; `tokenizer` and most of `mix` then say nothing."""
    trackers: tuple[TrackerName, ...] = ()
    """Experiment trackers that also get what metrics.jsonl gets: `tensorboard`, `wandb`, `trackio` (each an extra to
    install). A tracker that fails never stops a training."""
    hardware: HardwareConfig = HardwareConfig()
    collect: DemonstrationsConfig = DemonstrationsConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    mix: MixConfig = MixConfig()
    backbone: BackboneConfig = BackboneConfig()
    sft: SftConfig = SftConfig()
    rl: RlConfig = RlConfig()
    distill: DistillConfig = DistillConfig()
    baselines: BaselinesConfig = BaselinesConfig()
    tokens: TokenEvalConfig = TokenEvalConfig()
    head: HeadConfig = HeadConfig()
    head_training: HeadTrainConfig = HeadTrainConfig()
    rollout: EvaluationConfig = EvaluationConfig()

    @model_validator(mode="after")
    def _consistent(self) -> "Recipe":
        require_distinct("seeds", self.seeds)
        require_distinct("arms", self.arms)
        if min(self.seeds) < 0:
            raise ValueError(f"seeds are 0 or more, not {min(self.seeds)}")
        self.collect.check_run(
            self.mix.camera, self.rollout, self.rollout.episodes, self.tokenizer.horizon
        )
        if self.backbone.source == "train" and self.backbone.layer > self.backbone.tiny.depth:
            raise ValueError(
                f"backbone.layer {self.backbone.layer} is above backbone.tiny.depth "
                f"{self.backbone.tiny.depth}"
            )
        if self.backbone.pretrain.lora is not None:
            raise ValueError(
                "backbone.pretrain trains a new model, all of it; remove backbone.pretrain.lora"
            )
        if self.mixture is not None:
            self._require_what_a_mixture_has()
        if self.rl.reward in IN_WORDS:
            raise ValueError(
                f"rl.reward `{self.rl.reward}` is of questions in words, and RL asks for actions; give "
                "`paper` or `decoded`"
            )
        for arm in self.arms:
            self._require_its_question(arm)
        return self

    def _require_its_question(self, arm: str) -> None:
        """SFT must have shown the type of question that the arm's RL asks, or there is nothing to reward."""
        kind = ARMS[arm].question
        group = TYPES[kind].group if kind else None
        if group and not self.mix.weights.get(group):
            raise ValueError(
                f"arm {arm} asks `{kind}` questions, but mix.weights gives `{group}` nothing: SFT never "
                "shows the type"
            )

    def _require_what_a_mixture_has(self) -> None:
        if self.backbone.source == "train":
            raise ValueError(
                "backbone.source `train` learns to see from demonstrations in the simulator; with "
                "`mixture` give `builtin` or a model's folder"
            )
        asked = sorted(arm for arm in self.arms if ARMS[arm].simulated)
        if asked:
            raise ValueError(
                f"arms {asked} make their data from demonstrations in the simulator; leave them out where "
                "`mixture` is given"
            )


def load_recipe(path: str | Path, overrides: tuple[str, ...] = ()) -> Recipe:
    """Read and validate a recipe; `overrides` are `dotted.key=value` with YAML values.

    Raises RoboAlignError that names the key and the fix.
    """
    path = Path(path)
    if not path.is_file():
        raise RoboAlignError(
            "no such recipe", where=str(path), fix=f"choose one of {_known_recipes(path)}"
        )
    try:
        values = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RoboAlignError(
            f"not valid YAML: {' '.join(str(error).split())}", where=str(path)
        ) from None
    if not isinstance(values, dict):
        raise RoboAlignError(
            "a recipe is a mapping of keys to values",
            where=str(path),
            fix="start from recipes/quickstart.yaml",
        )
    for override in overrides:
        _apply(values, override)
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise _explain(error, path) from None


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe as YAML, every default written out."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)


def cores() -> int:
    """Processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def device_of(hardware: HardwareConfig) -> torch.device:
    """The device of this process. Raises RoboAlignError where a GPU is asked for and there is none for it."""
    place = int(os.environ.get("LOCAL_RANK", 0))
    found = torch.cuda.device_count()
    if hardware.device == "cpu" or (hardware.device == "auto" and not found):
        return torch.device("cpu")
    if place >= found:
        raise RoboAlignError(
            f"process {place} of this machine has no GPU: {found} found",
            where="hardware.device",
            fix="start as many processes as there are GPUs, or set hardware.device: cpu",
        )
    return torch.device("cuda", place)


def processes(recipe: Recipe) -> int:
    """How many stages run side by side: as the recipe says, else one a core, or one where there is a GPU."""
    return recipe.parallel or (1 if torch.cuda.is_available() else cores())


def _apply(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise RoboAlignError(
            "an override is dotted.key=value",
            where=f"--set {override}",
            fix="for example --set sft.max_steps=100",
        )
    *parents, last = key.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise RoboAlignError(
                f"`{parent}` is a value, not a group of settings", where=f"--set {override}"
            )
    try:
        values[last] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RoboAlignError(
            f"not valid YAML: {' '.join(str(error).split())}",
            where=f"--set {override}",
            fix="put the value in quotes",
        ) from None


def _explain(error: ValidationError, path: Path) -> RoboAlignError:
    """The first fault of a validation as one message, with the nearest known key for an unknown one."""
    fault = error.errors()[0]
    # pydantic names the member of a union that it tried, as `tuple[str, ...]`: no key of the recipe.
    key = ".".join(str(part) for part in fault["loc"] if "[" not in str(part))
    more = (
        f" ({error.error_count() - 1} more faults after this one)"
        if error.error_count() > 1
        else ""
    )
    if fault["type"] == "extra_forbidden":
        known = _fields_at(fault["loc"][:-1])
        near = difflib.get_close_matches(str(fault["loc"][-1]), known, n=1)
        fix = f"did you mean `{near[0]}`?" if near else f"known keys here: {', '.join(known)}"
        return RoboAlignError(f"unknown key `{key}`{more}", where=str(path), fix=fix)
    message = fault["msg"].removeprefix("Value error, ")
    if not key:  # a fault between two groups of settings, both of which the message names
        return RoboAlignError(
            f"{message}{more}", where=str(path), fix="correct one of them in the recipe"
        )
    given = f", got {fault['input']!r}" if not isinstance(fault["input"], dict) else ""
    return RoboAlignError(
        f"`{key}`: {message}{given}{more}",
        where=str(path),
        fix=f"correct `{key}` in the recipe" + (f", or pass --set {key}=VALUE" if given else ""),
    )


def _fields_at(location: tuple[int | str, ...]) -> list[str]:
    model: Any = Recipe
    for part in location:
        if part in (sections := _sections(model)):  # of a benchmark
            model = sections[str(part)]
            continue
        field = getattr(model, "model_fields", {}).get(part)
        annotation = field.annotation if field is not None else None
        # Of a section that may be left out, the class.
        model = next(
            (one for one in get_args(annotation) if hasattr(one, "model_fields")), annotation
        )
    return [*getattr(model, "model_fields", {}), *_sections(model)]


def _sections(model: Any) -> dict[str, type[Config]]:
    """Keys of a group of settings that are no fields: sections of benchmarks."""
    return model.sections() if model is DemonstrationsConfig else {}


def _known_recipes(path: Path) -> str:
    folder = path.parent if path.parent.is_dir() else Path()
    return ", ".join(sorted(str(p) for p in folder.rglob("*.yaml"))) or "the files in recipes/"
