"""Define a stage and the context that it runs in."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from roboalign.conversations.styles.registry import require_model_style
from roboalign.core.machine import device_of
from roboalign.mllm.load import Mllm, load_mllm
from roboalign.run.recipe import Recipe


@dataclass(frozen=True)
class Stage:
    """One unit of work: `name` is also its folder; `settings` holds all of the recipe that changes
    its result.

    `work` returns its row of the cost ledger (samples, rollouts, tokens, ...). It must be
    picklable, a module-level function or a `functools.partial` of one, because stages run in
    separate processes.
    """

    name: str
    work: "Callable[[Context], dict[str, Any]]"
    needs: tuple[str, ...] = ()
    """Names of the stages whose results this one reads."""
    settings: dict[str, Any] = field(default_factory=dict)
    seed: int | None = None
    """The training seed; None for a stage that all seeds share."""
    arm: str | None = None
    """The arm that this stage measures or trains a head for; None for a stage that arms may share."""
    exclusive: bool = False
    """Whether it uses every core by itself, so that nothing runs at the same time."""
    together: bool = False
    """Whether all processes of a team run it; the first process alone runs the others."""

    @property
    def kind(self) -> str:
        """Return the name without the seed: `seed-0/head/roboalign` -> `head/roboalign`."""
        return self.name if self.seed is None else self.name.removeprefix(f"seed-{self.seed}/")


@dataclass(frozen=True)
class Context:
    """What a stage is given: the recipe, the run's folder and the stage itself."""

    recipe: Recipe
    run_dir: Path
    stage: Stage

    @property
    def name(self) -> str:
        """Return the stage's name, such as `seed-0/head/roboalign`."""
        return self.stage.name

    @property
    def folder(self) -> Path:
        """Return the stage's own folder; it exists."""
        return self.run_dir / self.stage.name

    @property
    def seed(self) -> int:
        """Return the stage's training seed; 0 for a stage that all seeds share."""
        return self.stage.seed or 0

    @property
    def arm(self) -> str:
        """Return the stage's arm. Only for stages that belong to one arm."""
        assert self.stage.arm is not None, f"stage {self.name} belongs to no arm"
        return self.stage.arm

    @property
    def seed_dir(self) -> Path:
        """Return the folder of the stages of this seed."""
        return self.run_dir / f"seed-{self.seed}"

    def load(self, folder: Path) -> Mllm:
        """Load the MLLM of a folder, on the device and in the precision that the recipe sets.

        A model that has no prompt style yet gets the recipe's. Raises RoboAlignError on a model of
        another one.
        """
        hardware = self.recipe.hardware
        mllm = load_mllm(
            folder, dtype=getattr(torch, hardware.dtype), device=device_of(hardware.device)
        )
        return in_style(mllm, self.recipe.prompts)


def in_style(mllm: Mllm, prompts: str) -> Mllm:
    """Return the model, marked as trained in this prompt style.

    Raises RoboAlignError if it is of another one.
    """
    require_model_style(mllm, prompts, where=str(mllm.folder))
    mllm.prompts = prompts
    return mllm


def limit_threads(count: int) -> None:
    """Use `count` threads for tensor work in this process."""
    torch.set_num_threads(count)
