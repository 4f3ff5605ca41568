"""The shape of a stage, and where a run keeps things."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from roboalign.mllm.load import Mllm, load_mllm
from roboalign.run.recipe import Recipe, device_of


@dataclass(frozen=True)
class Context:
    """What a stage is given: the recipe, the run's folder, its own folder and name (`seed-0/head/roboalign`)."""

    recipe: Recipe
    run_dir: Path
    folder: Path
    name: str

    @property
    def seed(self) -> int:
        """The seed in the stage's name; 0 for stages that all seeds share."""
        first = self.name.split("/")[0]
        return int(first.removeprefix("seed-")) if first.startswith("seed-") else 0

    @property
    def arm(self) -> str:
        """The arm in the stage's name, its last part."""
        return self.name.rsplit("/", 1)[-1]

    @property
    def seed_dir(self) -> Path:
        """Folder of the stages of this seed."""
        return self.run_dir / f"seed-{self.seed}"

    def load(self, folder: Path) -> Mllm:
        """The MLLM of a folder, on the device and in the precision that the recipe says."""
        hardware = self.recipe.hardware
        return load_mllm(folder, dtype=getattr(torch, hardware.dtype), device=device_of(hardware))


@dataclass(frozen=True)
class Stage:
    """One unit of work: `name` is also its folder; `settings` is all of the recipe that changes its result.

    `work` returns its row of the cost ledger (samples, rollouts, tokens, ...). An exclusive stage uses every core by
    itself, so nothing runs beside it. Where several processes train together, all of them do a `together` stage, and
    the first alone does the others.
    """

    name: str
    needs: tuple[str, ...]
    settings: dict[str, Any]
    work: Callable[[Context], dict[str, Any]]
    exclusive: bool = False
    together: bool = False


def limit_threads(count: int) -> None:
    """Use `count` threads for tensor work in this process."""
    torch.set_num_threads(count)
