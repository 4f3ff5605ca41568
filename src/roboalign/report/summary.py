"""What a report shows: the facts of one run, gathered by the pipeline from the files of its stages.

Everything but the name may be missing; the page then says so (`RunSummary.absent`) and invents nothing.
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
    """What a better success of the arm after RL against this one would show, after "that"."""


@dataclass(frozen=True)
class Curve:
    """The metrics log of one training stage."""

    stage: str
    """base, sft and the other kinds of SFT, rl (of any reward) or head; logs of one stage share their axes."""
    label: str
    """What tells it from the others of its stage, e.g. "seed 0" or "roboalign, seed 0"."""
    records: list[dict[str, Any]]
    """One dict a logged step, with "step" and whatever the stage measured; values that are None are left out."""


@dataclass(frozen=True)
class FrameSample:
    """One held-out frame and what each arm said about it."""

    question: str
    target: str
    answers: dict[str, str]
    """Arm name -> its text as generated."""
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
    """Names of the arms (before, after) RL: the difference that the page answers first."""
    environment: dict[str, str] = field(default_factory=dict)
    """Shown as given: date, commit, machine, versions, duration, parameters of the model."""
    arms: list[ArmSummary] = field(default_factory=list)
    success: Mapping[str, Any] | None = None
    """`evaluate.success.success_table` over all arms."""
    mllm_pairs: list[Mapping[str, Any]] = field(default_factory=list)
    """`evaluate.token_metrics.compare_metrics` results, each with "before" and "after" arm names added."""
    curves: list[Curve] = field(default_factory=list)
    manifest: Mapping[str, Any] | None = None
    """The mixture's manifest.json; of it "counts" is shown."""
    samples: list[FrameSample] = field(default_factory=list)
    videos: list[Video] = field(default_factory=list)
    ledger: list[Mapping[str, Any]] = field(default_factory=list)
    """One row a stage: "stage", "seconds" and what it counted (samples, rollouts, tokens, ...)."""
    recipe: str = ""
    """The resolved recipe, YAML."""
    notes: list[str] = field(default_factory=list)
    """Limits that numbers cannot tell, e.g. "simulated robot"; shown under "What this does not show"."""
    absent: str = "Not run."
    """Shown in a section without data."""

    def arm(self, name: str) -> ArmSummary | None:
        """The arm of that name, or None."""
        return next((arm for arm in self.arms if arm.name == name), None)

    def title(self, name: str) -> str:
        """How the arm of that name is shown; its name where it is not listed."""
        arm = self.arm(name)
        return arm.title if arm else name
