"""Format what `roboalign trial plan` prints."""

from collections.abc import Iterator
from pathlib import Path

from roboalign.report.console import fold
from roboalign.report.text import count_text, percent, points
from roboalign.trial.plan import LockedPlan, key_path
from roboalign.trial.power import Sized, detectable
from roboalign.trial.study import Study

POWER_SHOWN = 0.8


def format_plan(
    study: Study, trials: int, sized: Sized | None, plan: LockedPlan | None, path: Path
) -> str:
    """Format the size of a study, what it can detect, and where it is locked. Lines of 80 columns."""
    pairs = trials * len(study.tasks)
    lines = [
        f"{study.name}: {len(study.arms)} arms, {len(study.tasks)} tasks, {trials} trials of each "
        f"task and arm, {count_text(pairs * len(study.arms))} in all",
        *(_asked(study, sized) if sized else ()),
        *_detects(study, pairs, trials),
    ]
    if plan is None:
        return fold("\n".join([*lines, "nothing was locked (--dry-run)"])) + "\n"
    lines += [
        "",
        f"plan:   {path}",
        f"sha256: {plan.sha256}",
        f"key:    {key_path(path)}",
        "The key says which arm each trial has: keep it from those who set up scenes and judge.",
        "",
        f"start the arms' servers, then: roboalign trial run {path}",
    ]
    return fold("\n".join(lines)) + "\n"


def _asked(study: Study, sized: Sized) -> Iterator[str]:
    """Yield the power calculation's assumptions and result."""
    wanted = study.power
    assert wanted is not None
    yield (
        f"power {sized.power:.3f} (asked for {wanted.power:g}) to detect {_in_points(wanted.difference)} "
        f"points with {sized.pairs} pairs of one comparison: McNemar's exact test, two-sided"
    )
    divided = f" = {wanted.alpha:g} / {len(study.tested)} comparisons"
    yield f"  alpha {sized.alpha:.4g}{divided if len(study.tested) > 1 else ''}"
    source = "given" if wanted.discordant else "two independent arms about 50%"
    yield f"  exactly one arm succeeds in {percent(sized.discordant)} of pairs ({source})"


def _detects(study: Study, pairs: int, trials: int) -> Iterator[str]:
    """Yield the difference that is detected in 80% of studies, over all tasks and in one of them."""
    alpha = (study.power.alpha if study.power else 0.05) / len(study.tested)
    for name, count in {"all tasks together": pairs, "one task alone": trials}.items():
        found = detectable(count, alpha, POWER_SHOWN)
        size = "no difference" if found is None else f"{_in_points(found)} points or more"
        yield (
            f"{name}, {count} pairs: {size} detected with power {POWER_SHOWN:g} (independent arms)"
        )
        if len(study.tasks) == 1:
            return


def _in_points(difference: float) -> str:
    return points(difference).removeprefix("+")
