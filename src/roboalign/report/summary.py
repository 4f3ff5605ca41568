"""Hold what a report shows: the facts of one run, which the pipeline collects from the files of its
stages.

Everything but the name may be missing; the page then says so (`RunSummary.absent`) and invents
nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Metrics = Mapping[str, Any]


@dataclass(frozen=True)
class ArmSummary:
    """One backbone of the comparison."""

    name: str
    """As in the episode records, e.g. "sft"."""
    title: str
    """As shown, e.g. "SFT"."""
    description: str = ""
    """One sentence: what this arm was trained on."""
    mllm: Metrics | None = None
    """Its token and VQA metrics, as `evaluate.token_metrics.summarize` gives them."""
    claim: str = ""
    """What a higher success of the arm after RL than of this one would show, as a clause after
    "that"."""


@dataclass(frozen=True)
class Curve:
    """The metrics log of one training stage."""

    stage: str
    """base, sft and the other kinds of SFT, rl (of any reward) or head; logs of one stage share their axes."""
    label: str
    """What distinguishes it from the others of its stage, e.g. "seed 0" or "roboalign, seed 0"."""
    records: list[dict[str, Any]]
    """One dict per logged step, with "step" and whatever the stage measured; None values are left
    out."""


@dataclass(frozen=True)
class FrameSample:
    """One held-out frame and what each arm said about it."""

    question: str
    target: str
    answers: dict[str, str]
    """Arm name -> its generated text."""
    scores: dict[str, float]
    """Arm name -> prefix accuracy, or the score of its answer."""
    image: bytes | None = None
    """PNG."""
    caption: str = ""
    """E.g. task and frame."""


@dataclass(frozen=True)
class Video:
    """One recorded rollout."""

    arm: str
    task: str
    seed: int
    outcome: str
    """"success" or "failure"."""
    path: Path
    """An mp4 (h264) file; it is embedded."""


@dataclass(frozen=True)
class RunSummary:
    """All that `write_report` needs."""

    name: str
    question: tuple[str, str] = ("sft", "roboalign")
    """Names of the arms (before, after) RL; the page first answers what their difference is."""
    environment: dict[str, str] = field(default_factory=dict)
    """Shown as given: date, commit, machine, versions, duration, parameters of the model."""
    arms: list[ArmSummary] = field(default_factory=list)
    success: Mapping[str, Any] | None = None
    """`evaluate.success.success_table` over all arms."""
    mllm_pairs: list[Mapping[str, Any]] = field(default_factory=list)
    """`evaluate.token_metrics.compare_metrics` results, each with "before" and "after" arm names added."""
    curves: list[Curve] = field(default_factory=list)
    manifest: Mapping[str, Any] | None = None
    """The mixture's manifest.json; only its "counts" are shown."""
    samples: list[FrameSample] = field(default_factory=list)
    videos: list[Video] = field(default_factory=list)
    replays: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    """Arm name -> `evaluate.open_loop.measure_open_loop`, of the first training seed."""
    visited: list[ArmSummary] = field(default_factory=list)
    """The arms' actions on held-out states that the SFT policy visits; [] if none were measured."""
    visited_pairs: list[Mapping[str, Any]] = field(default_factory=list)
    """As `mllm_pairs`, on these states."""
    ledger: list[Mapping[str, Any]] = field(default_factory=list)
    """One row per stage: "stage", "seconds" and what it counted (samples, rollouts, tokens,
    ...)."""
    recipe: str = ""
    """The resolved recipe, YAML."""
    notes: list[str] = field(default_factory=list)
    """Limits that do not follow from the numbers, e.g. "simulated robot"; shown under "What this
    does not show"."""
    absent: str = "Not run."
    """Text of a section without data."""

    def arm(self, name: str) -> ArmSummary | None:
        """Return the arm of that name, or None."""
        return next((arm for arm in self.arms if arm.name == name), None)

    def title(self, name: str) -> str:
        """Return the title of the arm of that name; the name itself if it is not listed."""
        arm = self.arm(name)
        return arm.title if arm else name
