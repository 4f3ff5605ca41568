"""Define what a user writes to plan trials on a robot: arms, tasks, initial conditions, their number."""

from typing import Annotated

from pydantic import Field, field_validator, model_validator

from roboalign.core.config import Config, Seed

Label = Annotated[str, Field(min_length=1, max_length=100, pattern=r"^\S(.*\S)?$")]
"""One line of text without blanks around it."""
Paragraph = Annotated[str, Field(min_length=1, max_length=1000, pattern=r"\S")]
"""Text that people read; also the longest instruction that a server takes."""
Address = Annotated[str, Field(max_length=300, pattern=r"^wss?://[^\s/]+$")]

FAILURES = (
    "wrong object",
    "missed the grasp",
    "dropped it",
    "missed the goal",
    "collision or stop by the robot",
    "no motion or oscillation",
    "out of time",
    "other",
)
EXCLUSIONS = (
    "the policy did not answer",
    "robot or controller fault",
    "camera or sensor fault",
    "scene was not set up as planned",
    "somebody or something was in the way",
    "other",
)


class StudyTask(Config):
    """One task of the study."""

    instruction: Paragraph
    """What every policy is told. A request with another instruction is refused."""
    success: Paragraph
    """The criterion of success, shown to the operator at every trial."""
    conditions: tuple[Label, ...] = ("as set up",)
    """Names of the initial conditions. Both arms of a pair start from the same one."""
    pictures: dict[Label, str] = Field(default_factory=dict)
    """Initial condition -> photo of it, a file next to the study. Operators see it when they set up."""
    stages: tuple[Label, ...] = ()
    """Stages of partial success, in their order, without the last: success is the stage after them."""

    @field_validator("conditions", "stages")
    @classmethod
    def _named_once(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return _distinct(names)

    @field_validator("conditions")
    @classmethod
    def _not_empty(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if not names:
            raise ValueError("name at least one initial condition, or leave the key out")
        return names

    @model_validator(mode="after")
    def _pictures_of_conditions(self) -> "StudyTask":
        for name in self.pictures:
            if name not in self.conditions:
                raise ValueError(f"`pictures`: {name!r} is not one of `conditions`")
        return self


class TrialPower(Config):
    """Numbers of the power calculation: the exact paired test over all tasks together."""

    difference: float = Field(gt=0, lt=1)
    """The smallest difference of two success rates that the study is to detect, such as 0.2."""
    alpha: float = Field(default=0.05, gt=0, lt=0.5)
    """Two-sided error of the first kind. Divided by the number of comparisons."""
    power: float = Field(default=0.8, gt=0, lt=1)
    """Probability of detecting a difference of that size."""
    discordant: float | None = Field(default=None, gt=0, le=1)
    """Expected share of pairs in which exactly one arm succeeds. Without it: that of two arms which
    are independent and symmetric about one half, (1 + difference^2) / 2."""

    @model_validator(mode="after")
    def _possible(self) -> "TrialPower":
        if self.discordant is not None and self.discordant < self.difference:
            raise ValueError("`discordant` is at least `difference`: each such pair differs by one")
        return self


class Study(Config):
    """A study: which policies are compared, on what, and how often."""

    name: Label
    """Names the study to clients and operators; it says nothing of the arms."""
    arms: dict[Label, Address]
    """Name of each arm -> address of its `roboalign serve`, such as ws://127.0.0.1:8001."""
    tasks: dict[Label, StudyTask]
    """Name of each task -> the task. Tasks are done in this order."""
    trials: int | None = Field(default=None, ge=1, le=1000)
    """Trials of each task and arm. Give this or `power`."""
    power: TrialPower | None = None
    """Computes the number of trials."""
    comparisons: tuple[tuple[Label, Label], ...] | None = None
    """Pairs of arms that are tested, before and after. Without it: every pair, in the order of `arms`."""
    seed: Seed | None = None
    """Draws order and arms. Without it one is drawn, and kept in the key alone."""
    seconds: float | None = Field(default=None, gt=0, le=86400)
    """Time limit of a trial. Requests after it are refused."""
    answer_after: float = Field(default=0.0, ge=0, le=10)
    """Seconds that every answer takes at least, so that a fast arm is not known by its speed."""
    failures: tuple[Label, ...] = FAILURES
    """Kinds of failure that an operator can choose."""
    exclusions: tuple[Label, ...] = EXCLUSIONS
    """Reasons for which a trial is void and repeated: what is no doing of the policy."""

    @field_validator("failures", "exclusions")
    @classmethod
    def _named_once(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if not names:
            raise ValueError("name at least one")
        return _distinct(names)

    @model_validator(mode="after")
    def _complete(self) -> "Study":
        if len(self.arms) < 2:
            raise ValueError("`arms` needs two or more: trials compare policies")
        if len(set(self.arms.values())) < len(self.arms):
            raise ValueError("two of `arms` have one address")
        if not self.tasks:
            raise ValueError("`tasks` is empty")
        if (self.trials is None) == (self.power is None):
            raise ValueError("give either `trials` or `power`")
        for pair in self.comparisons or ():
            if len(set(pair)) < 2 or not set(pair) <= set(self.arms):
                raise ValueError(f"`comparisons`: {list(pair)} are not two of `arms`")
        if self.comparisons is not None:
            _distinct(tuple(" and ".join(sorted(pair)) for pair in self.comparisons))
            if not self.comparisons:
                raise ValueError("`comparisons` is empty; leave it out to test every pair")
        return self

    @property
    def tested(self) -> tuple[tuple[str, str], ...]:
        """Return the pairs of arms that are tested."""
        names = list(self.arms)
        every = tuple((a, b) for i, a in enumerate(names) for b in names[i + 1 :])
        return every if self.comparisons is None else self.comparisons


def _distinct(names: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{name!r} is there twice")
    return names
