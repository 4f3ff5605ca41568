"""`roboalign think-curve`: what a policy gains from more computation before each decision."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field, NonNegativeInt, PositiveInt

from roboalign.core.config import Config
from roboalign.core.files import hash_tree, locked, write_json
from roboalign.evaluate.statistics import mean_interval, paired_difference, proportion
from roboalign.evaluate.success import compare_arms
from roboalign.report.think_curve import ITSELF
from roboalign.run.recipe import Recipe
from roboalign.run.variants import (
    AnyPolicy,
    choose_frames,
    closed_loop,
    find_ground,
    in_order,
    keyed,
    load_any,
    open_loop,
    require_same,
)
from roboalign.vla.best_of import Candidates, Decides, Medoid, Redrawn
from roboalign.vla.head_policy import HeadPolicy
from roboalign.vla.token_policy import TokenPolicy
from roboalign.vla.token_writer import Choose


class ThinkCurveSettings(Config):
    """What a think curve measures, and on how much."""

    tasks: tuple[str, ...] | None = None
    """Tasks; by default all alignment tasks for a token policy, all downstream tasks for a head."""
    episodes: int = Field(8, ge=1)
    """Initial states of each task that nothing was trained on; the same for every variant."""
    frames: int = Field(100, ge=1)
    """Frames of held-out demonstrations, evenly spaced, at which error and latency are taken."""
    answers: tuple[PositiveInt, ...] = (1, 2, 4, 8)
    """Answers, or noises of a head, among which one is chosen."""
    choose: tuple[Choose, ...] = ("median", "mg-select", "likelihood")
    """How a token policy chooses among its answers."""
    reasonings: tuple[NonNegativeInt, ...] = (0, 32, 128)
    """Token policies: tokens that a reasoning may have; 0 answers directly."""
    oracle: int = Field(4, ge=0)
    """Best of N by the simulator, for N up to this: the initial state is tried with so many draws,
    and solved if one of them solves it. 0: none."""
    temperature: float = Field(0.6, gt=0, le=10)
    """Of a token policy's several answers; a single one is greedy."""
    workers: int = Field(1, ge=1)
    """Processes that run episodes."""


@dataclass(frozen=True)
class Variant:
    """One way to decide."""

    family: str
    """`itself`, `reasoning`, `medoid`, `draw`, `oracle`, or how an answer is chosen."""
    size: int
    """Answers, noises, tokens of a reasoning, or the number of the draw."""

    @property
    def name(self) -> str:
        """Return the name in records."""
        return self.family if self.family == ITSELF else f"{self.family} {self.size}"


def variants_of(policy: AnyPolicy, settings: ThinkCurveSettings) -> list[Variant]:
    """Return what is measured of a policy: the draws of the oracle in closed loop alone, the oracle
    itself on frames alone."""
    several = sorted({size for size in settings.answers if size > 1})
    if isinstance(policy, HeadPolicy):
        found = [Variant("medoid", size) for size in several]
    else:
        found = [Variant("reasoning", size) for size in sorted(set(settings.reasonings))]
        found = [one for one in found if one.size != own_reasoning(policy)]
        found += [Variant(choose, size) for choose in settings.choose for size in several]
    draws = [Variant("draw", number) for number in range(settings.oracle)]
    oracle = [Variant("oracle", size) for size in _oracle_sizes(settings)]
    return [Variant(ITSELF, 1), *found, *draws, *oracle]


def own_reasoning(policy: TokenPolicy) -> int:
    """Return the tokens that a policy's reasonings may have; 0 if it answers directly."""
    return policy.config.max_reasoning_tokens if policy.view.mode == "think" else 0


def _oracle_sizes(settings: ThinkCurveSettings) -> list[int]:
    return sorted(size for size in {1, *settings.answers} if size <= settings.oracle)


def make_variant(
    variants: Mapping[str, Variant], temperature: float, policy: AnyPolicy, name: str
) -> Decides:
    """Build one variant of a policy that nothing else uses."""
    one = variants[name]
    if one.family == ITSELF:
        return policy
    if isinstance(policy, HeadPolicy):
        if one.family == "draw":
            return Redrawn(policy, one.size)
        return Candidates(policy, one.size) if one.family == "oracle" else Medoid(policy, one.size)
    if one.family == "reasoning":
        return _reasoning(policy, one.size)
    config = policy.config.model_copy(update={"temperature": temperature})
    sampled = replace(policy, config=config)
    if one.family == "draw":
        return Redrawn(sampled, one.size)
    if one.family == "oracle":
        return Candidates(sampled, one.size)
    several = config.model_copy(update={"answers": one.size, "choose": one.family})
    return replace(policy, config=several)


def _reasoning(policy: TokenPolicy, tokens: int) -> TokenPolicy:
    """Return the policy with this many tokens of reasoning."""
    view = policy.view.model_copy(update={"mode": "think" if tokens else "direct"})
    config = policy.config.model_copy(update={"max_reasoning_tokens": max(1, tokens)})
    return replace(policy, view=view, config=config)


def think_curve(
    run_dir: Path, recipe: Recipe, folder: Path, settings: ThinkCurveSettings, out: Path
) -> dict[str, Any]:
    """Measure the policy in `folder`, write the records and curve.json to `out`, and return the
    latter's content. What `out` has already is not measured again.

    Raises RoboAlignError if `out` has measurements of another policy or protocol.
    """
    policy = load_any(folder)
    variants = {one.name: one for one in variants_of(policy, settings)}
    ground = find_ground(run_dir, recipe, policy, settings.tasks, settings.episodes)
    frames = choose_frames(ground.heldout, settings.frames)
    make = functools.partial(make_variant, variants, settings.temperature)
    with locked(out):
        asked = {
            "policy": hash_tree(folder),
            "temperature": settings.temperature,
            "rollout": ground.config.model_dump(exclude={"batch_size"}),
        }
        require_same(out, asked)
        single = [name for name, one in variants.items() if one.family != "draw"]
        opened = open_loop(out, policy, make, single, frames)
        acted = [name for name, one in variants.items() if one.family != "oracle"]
        closed = closed_loop(out, folder, make, acted, ground, settings.workers)
        result = {
            "run": str(run_dir),
            "policy": str(folder),
            "kind": policy.kind,
            "reasoning": own_reasoning(policy) if isinstance(policy, TokenPolicy) else None,
            "settings": settings.model_dump(mode="json"),
            "rollout": asked["rollout"],
            "tasks": sorted({task for task, _ in ground.episodes}),
            "points": [
                _point(one, opened, closed) for one in variants.values() if one.family != "draw"
            ],
        }
        write_json(out / "curve.json", result)
    return result


_Rows = Sequence[Mapping[str, Any]]


def _point(
    one: Variant, opened: Mapping[str, _Rows], closed: Mapping[str, _Rows]
) -> dict[str, Any]:
    """Return one point of the curve: error and cost on frames, success in closed loop."""
    frames, itself = opened[one.name], opened[ITSELF]
    episodes = _best_of(closed, one.size) if one.family == "oracle" else closed[one.name]
    finished = [row for row in episodes if row["crash"] is None]
    seconds = np.array([row["seconds"] for row in frames])
    point = {
        "family": one.family,
        "size": one.size,
        "success": asdict(proportion([row["success"] for row in finished])),
        "crashes": len(episodes) - len(finished),
        "l1": asdict(_error(frames)),
        "tokens": float(np.mean([row["counts"].get("tokens", 0) for row in frames])),
        "holds": float(np.mean([row["counts"].get("holds", 0) for row in frames])),
        "seconds": float(seconds.mean()),
        "p95": float(np.quantile(seconds, 0.95)),
        "frames": len(frames),
    }
    if one.family == ITSELF:
        return point
    against = compare_arms(keyed(closed[ITSELF]), keyed(episodes))
    errors = ([row["l1"] for row in in_order(rows)] for rows in (itself, frames))
    owners = [row["episode_id"] for row in in_order(frames)]
    return {
        **point,
        "success_difference": {
            **against["difference"],
            "p": against["p"],
            "gained": against["only_after"],
            "lost": against["only_before"],
        },
        "l1_difference": asdict(paired_difference(*errors, clusters=owners)),
    }


def _best_of(closed: Mapping[str, _Rows], size: int) -> list[dict[str, Any]]:
    """Return one record an initial state: solved if one of the first `size` draws solved it. A
    crash among them counts as one, unless another draw solved it."""
    draws = [keyed(closed[Variant("draw", number).name]) for number in range(size)]
    found = []
    for key in draws[0]:
        tried = [rows[key] for rows in draws if key in rows]
        solved = [row for row in tried if row["crash"] is None and row["success"]]
        crashed = [row for row in tried if row["crash"] is not None]
        found.append(dict((solved or crashed or tried)[0]))
    return found


def _error(frames: _Rows) -> Any:
    return mean_interval(
        [row["l1"] for row in frames], clusters=[row["episode_id"] for row in frames]
    )
