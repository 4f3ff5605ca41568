"""Find the trained backbones of a run that a probe reads."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from roboalign.core.errors import RoboAlignError
from roboalign.run.folder import backbone_folder
from roboalign.run.recipe import Recipe


@dataclass(frozen=True)
class ProbedBackbone:
    """One trained model; arms that share a model share this object."""

    arm: str
    seed: int | None
    """None for the base, which all training seeds share."""
    folder: Path


def find_backbones(
    recipe: Recipe, run_dir: Path, arms: Sequence[str] | None, seeds: Sequence[int] | None = None
) -> tuple[list[ProbedBackbone], list[str]]:
    """Return the backbones of `arms` under the training seeds `seeds` (None: all), and the stages
    of those not done.

    The blind arm has RoboAlign's backbone; only its head sees a gray image. Raises RoboAlignError
    if an arm or a seed is not in the recipe, or a requested arm is not done under any seed.
    """
    for seed in set(seeds or ()) - set(recipe.seeds):
        raise RoboAlignError(
            f"the run has no training seed {seed}",
            where="--seed",
            fix=f"choose of {', '.join(map(str, recipe.seeds))}",
        )
    for arm in set(arms or ()) - set(recipe.arms):
        raise RoboAlignError(
            f"the run has no arm {arm!r}", where="--arm", fix=f"choose of {', '.join(recipe.arms)}"
        )
    fix = f"roboalign run {run_dir / 'recipe.yaml'} --out {run_dir}"
    found: dict[Path, ProbedBackbone] = {}
    absent: list[str] = []
    for arm in arms or recipe.arms:
        there = False
        for seed in seeds or recipe.seeds:
            folder = backbone_folder(run_dir, seed, arm)
            shared = folder.parent.parent == run_dir
            if (folder.parent / "stage.json").is_file():  # written last: the model is whole
                found.setdefault(folder, ProbedBackbone(arm, None if shared else seed, folder))
                there = True
            elif (name := str(folder.parent.relative_to(run_dir))) not in absent:
                absent.append(name)
        if arms and not there:
            raise RoboAlignError(f"the backbone of {arm} is not done", where=str(run_dir), fix=fix)
    if not found:
        raise RoboAlignError("no backbone is done", where=str(run_dir), fix=fix)
    return list(found.values()), absent
