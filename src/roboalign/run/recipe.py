"""The recipe: every setting of a run in one validated, immutable object.

Each package owns the settings of what it does; this module composes them. `run/load.py` reads the
file.
"""

from typing import Literal

from pydantic import Field, model_validator

from roboalign.actions.normalize import Method
from roboalign.align.backbone import BackboneConfig
from roboalign.align.distill import DistillConfig
from roboalign.align.grpo.config import RlConfig
from roboalign.align.rewards.answers import ANSWER_REWARDS as IN_WORDS
from roboalign.align.sft import SftConfig
from roboalign.conversations.styles.base import DEFAULT_STYLE, StyleName
from roboalign.core.config import Config, Seed
from roboalign.core.errors import RoboAlignError
from roboalign.core.trackers import TrackerName
from roboalign.episodes.own_data import DataSetConfig
from roboalign.evaluate.tokens import TokenEvalConfig
from roboalign.mixture.packed import MixConfig
from roboalign.online.config import OnlineConfig
from roboalign.questions.registry import QUESTION_TYPES
from roboalign.run.arms import ARMS, VISITED, ArmName, backbones
from roboalign.run.demonstrations import DemonstrationsConfig, require_distinct
from roboalign.run.demos import DemosConfig
from roboalign.run.visited_config import VisitedConfig
from roboalign.sim.ray import ClusterConfig
from roboalign.sim.rollout import RolloutConfig
from roboalign.vla.head import HeadConfig
from roboalign.vla.token_writer import TokenPolicyConfig
from roboalign.vla.train import HeadTrainConfig


class TokenizerConfig(Config):
    """The FAST action tokenizer."""

    path: str | None = None
    """A published FAST tokenizer (FAST+), as its folder or its Hub id `physical-intelligence/fast`.
    Default: one is fitted on the alignment chunks."""
    horizon: int = Field(8, ge=1, le=10_000)
    """Action steps per chunk."""
    scale: float = Field(2.0, ge=1e-6, le=1e6)
    """Factor before rounding a DCT coefficient: larger is more precise and gives more tokens."""
    vocab_size: int = Field(128, ge=8, le=1_000_000)
    """Entries of the fitted byte-pair vocabulary."""
    statistics: Method = "quantiles"
    """Which values normalize to -1 and 1: quantiles (1% and 99%), min_max, or mean_std (mean minus and plus std)."""
    clip: bool = True
    """Clip normalized actions to [-1, 1], as OpenVLA does; openpi does not. No effect on
    mean_std."""


class EvaluationConfig(RolloutConfig):
    """Settings for measuring a policy."""

    episodes: int = Field(10, ge=1)
    """Episodes per downstream task; every arm gets the same initial states."""


class BaselinesConfig(Config):
    """The paper's baselines, for the recipes that name them among their arms."""

    counts: Literal["matched", "paper"] = "matched"
    """Samples (turns) of `language-sft` and `action-sft`: as many as the whole mixture has, or the
    paper's share of that (1.88M of 2.28M)."""


class HardwareConfig(Config):
    """Where models are trained and used. Only `dtype` counts toward whether a stage is done."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto`: a GPU if there is one. Each process that torchrun starts on a machine takes its own
    GPU."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the MLLM's weights in memory, from SFT on. AdamW updates them in this precision;
    in bfloat16 small steps round to zero. `sft.bf16` and `rl.bf16` compute in bfloat16 on float32
    weights."""
    timeout: float = Field(1800.0, gt=0, le=1e7)
    """Seconds for which the processes of one training wait for each other before they consider one
    dead. Rollouts of unequal length cause such waits too."""
    ray: ClusterConfig | None = None
    """A Ray cluster on whose machines policies are measured. Default: processes of this machine
    measure them."""


class Recipe(Config):
    """All settings of a run."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_.-]*$")
    """The run's name; results go to runs/<name> unless --out says otherwise."""
    seeds: tuple[Seed, ...] = Field((0,), min_length=1)
    """SFT, RL, head training and flow noise are repeated under each seed; data and base model are shared."""
    parallel: int = Field(0, ge=0, le=1024)
    """Number of processes in which independent stages run side by side; 0: one per core, or one if
    there is a GPU. They share the cores, and the last bits of weights depend on the threads that a
    stage has. As many decode the videos of the mixture; 0: one per core."""
    arms: tuple[ArmName, ...] = ("base", "sft", "roboalign", "extra-sft", "random", "blind")
    """Backbones that become policies and are measured: with a head, or as `-tokens-` arms by their own action
    tokens."""
    prompts: StyleName = DEFAULT_STYLE
    """How questions are asked and answered (docs/explanation/prompts.md): `labelled` for models of a few million
    parameters, `paper` for pretrained ones. A mixture or model of the other style is refused."""
    mixture: str | None = None
    """Folder made by `roboalign data mix`. SFT and RL learn from it, with its action tokens, and no
    alignment demonstrations are collected; `tokenizer` and most of `mix` then have no effect."""
    measure: Literal["benchmark", "offline"] = "benchmark"
    """How policies are measured: by rollouts in the simulator of `collect.benchmark`, or offline, on
    held-out recorded episodes (open loop), where no simulator of the robot exists."""
    trackers: tuple[TrackerName, ...] = ()
    """Experiment trackers that also receive what metrics.jsonl receives: `tensorboard`, `wandb`,
    `trackio` (each an extra to install). A tracker that fails never stops a training."""
    hardware: HardwareConfig = HardwareConfig()
    collect: DemonstrationsConfig = DemonstrationsConfig()
    demos: DemosConfig = DemosConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    mix: MixConfig = MixConfig()
    backbone: BackboneConfig = BackboneConfig()
    sft: SftConfig = SftConfig()
    rl: RlConfig = RlConfig()
    distill: DistillConfig = DistillConfig()
    baselines: BaselinesConfig = BaselinesConfig()
    tokens: TokenEvalConfig = TokenEvalConfig()
    token_policy: TokenPolicyConfig = TokenPolicyConfig()
    visited: VisitedConfig = VisitedConfig()
    head: HeadConfig = HeadConfig()
    head_training: HeadTrainConfig = HeadTrainConfig()
    online: OnlineConfig = OnlineConfig()
    rollout: EvaluationConfig = EvaluationConfig()

    @model_validator(mode="after")
    def _consistent(self) -> "Recipe":
        require_distinct("seeds", self.seeds)
        require_distinct("arms", self.arms)
        self._require_demonstrations()
        if self.backbone.source == "train" and self.backbone.layer > self.backbone.tiny.depth:
            raise ValueError(
                f"backbone.layer {self.backbone.layer} is above backbone.tiny.depth "
                f"{self.backbone.tiny.depth}"
            )
        if self.backbone.pretrain.lora is not None:
            raise ValueError(
                "backbone.pretrain trains a new model, all of it; remove backbone.pretrain.lora"
            )
        if self.backbone.action_start == "labels" and self.prompts != "labelled":
            raise ValueError(
                f"backbone.action_start `labels` is of the labels that open answers, and prompts "
                f"`{self.prompts}` have none; set backbone.action_start to mean"
            )
        if self.mixture is not None:
            self._require_no_simulator("mixture")
        if self.rl.reward in IN_WORDS:
            raise ValueError(
                f"rl.reward `{self.rl.reward}` is of questions in words, and RL asks for actions; give "
                "`paper` or `decoded`"
            )
        for arm in self.arms:
            self._require_its_question(arm)
            self._require_its_head(arm)
        if VISITED in backbones(self.arms):
            self._require_new_seeds()
        self._require_whole_micro_batches()
        return self

    def _require_whole_micro_batches(self) -> None:
        """Require, where GRPO runs, that a micro-batch divides an update: it would be noticed after
        SFT."""
        runs = any(made.like == "rl" for made in backbones(self.arms))
        if runs and self.rl.prompts_per_update % self.rl.micro_batch_size:
            raise ValueError(
                f"rl.prompts_per_update {self.rl.prompts_per_update} is no multiple of "
                f"rl.micro_batch_size {self.rl.micro_batch_size}"
            )

    @property
    def measures_visited(self) -> bool:
        """Return whether every arm is also measured on states that the SFT policy visits."""
        return VISITED in backbones(self.arms) and self.visited.heldout_per_task > 0

    def _require_new_seeds(self) -> None:
        """Require that no episode that the SFT policy drives may be a demonstration, or measures."""
        config, align = self.visited, self.collect.align
        driven = self.rollout.model_copy(update={"max_steps": config.max_steps})
        try:
            self.collect.align_spec.rollout(self.collect.align_settings, driven)
        except RoboAlignError as error:
            raise ValueError(f"visited.max_steps: {error.problem}") from None
        first, count = config.first_seed, config.episodes_per_task + config.heldout_per_task
        tried = range(align.first_seed, align.first_seed + align.episodes_per_task * align.attempts)
        for known, what in (
            (tried, "demonstrations"),
            (self.collect.align_spec.evaluation_seeds, "episodes that measure policies"),
        ):
            if first < known.stop and first + count > known.start:
                raise ValueError(
                    f"visited.first_seed {first} gives {count} seeds of each task, and {what} have "
                    f"{known.start} to {known.stop - 1}"
                )

    def _require_demonstrations(self) -> None:
        """Require that what is learned from and what is measured on fit together."""
        aligning, driving = self.demos.of("align"), self.demos.of("downstream")
        if self.measure == "offline" and not driving:
            raise ValueError(
                "measure `offline` compares with recorded episodes; name the head's data in demos.sets"
            )
        if not aligning or self.measure == "benchmark":
            camera = None if aligning else self.mix.camera
            self.collect.check_run(
                camera, self.rollout, self.rollout.episodes, self.tokenizer.horizon
            )
        if driving and self.measure == "benchmark":
            known = self.collect.spec.cameras(self.collect.settings)
            if other := sorted({*self.demos.shown_cameras()} - {*known}):
                raise ValueError(
                    f"the head's data has a camera `{other[0]}`, and {self.collect.benchmark} has "
                    f"{list(known)}; give its cameras these names, or measure `offline`"
                )
        if aligning and self.mixture is not None and self.demos.align is not None:
            raise ValueError("mixture and demos.align both say what aligns; remove one")
        if aligning and self.mixture is None:
            self._require_alignment_from(aligning)

    def _require_alignment_from(self, sets: tuple[DataSetConfig, ...]) -> None:
        for one in sets:
            if self.mix.camera not in one.cameras:
                raise ValueError(
                    f"mix.camera `{self.mix.camera}` is no camera of set {one.name}, which has "
                    f"{list(one.cameras)}"
                )
        self._require_no_simulator("demos.sets")

    def _require_its_head(self, arm: str) -> None:
        """Require of an arm of online RL the policy that it starts from, a simulator, and initial
        states that measure no policy."""
        start = ARMS[arm].online
        if not start:
            return
        if start not in self.arms:
            raise ValueError(f"arm {arm} starts from the policy of {start}; add {start} to arms")
        if self.measure == "offline":
            raise ValueError(f"arm {arm} learns in the simulator, and measure is `offline`")
        if ARMS[arm].tokens and self.online.algorithm == "ppo":
            raise ValueError(f"arm {arm} has no critic; set online.algorithm: rloo")
        asked = self.online.seeds(len(self.collect.downstream_names()))
        measuring, allowed = (
            self.collect.spec.evaluation_seeds,
            self.collect.spec.demonstration_seeds,
        )
        if max(asked.start, measuring.start) < min(asked.stop, measuring.stop):
            raise ValueError(
                f"online.first_seed {asked.start}: online RL may use the seeds to {asked.stop - 1}, and "
                f"seed {max(asked.start, measuring.start)} measures policies; choose other seeds"
            )
        if not allowed.start <= asked.start <= asked.stop <= allowed.stop:
            raise ValueError(
                f"online.first_seed {asked.start}: {self.collect.benchmark} has initial states for "
                f"training of the seeds {allowed.start} to {allowed.stop - 1}"
            )

    def _require_its_question(self, arm: str) -> None:
        """Require that SFT trains on the type of question that the arm's RL asks; otherwise there
        is nothing to reward."""
        kind = ARMS[arm].question
        group = QUESTION_TYPES[kind].group if kind else None
        if group and not self.mix.weights.get(group):
            raise ValueError(
                f"arm {arm} asks `{kind}` questions, but mix.weights gives `{group}` nothing: SFT never "
                "shows the type"
            )

    def _require_no_simulator(self, given: str) -> None:
        """Require that nothing is made from the simulator's state, which `given` does not have."""
        if self.backbone.source == "train":
            raise ValueError(
                "backbone.source `train` learns to see from demonstrations in the simulator; with "
                f"`{given}` give `builtin` or a model's folder"
            )
        asked = sorted(arm for arm in self.arms if ARMS[arm].simulated)
        if asked:
            raise ValueError(
                f"arms {asked} make their data from demonstrations in the simulator; leave them out where "
                f"`{given}` is given"
            )
