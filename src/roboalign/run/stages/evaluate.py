"""Stages under `eval/`: token metrics of each backbone on held-out frames, and rollouts of each
policy."""

import functools
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from roboalign.conversations.conversation import (
    Conversation,
    read_conversations,
    read_table,
    shards,
)
from roboalign.conversations.styles.registry import style_of
from roboalign.core.errors import RoboAlignError
from roboalign.core.files import append_jsonl, read_json, write_json
from roboalign.core.machine import cores, device_of, side_by_side
from roboalign.core.state import read_records
from roboalign.evaluate.priors import language_priors
from roboalign.evaluate.success import EpisodeState, read_episodes
from roboalign.evaluate.tokens import evaluate_mllm
from roboalign.run.benchmark import (
    evaluation_episodes,
    measured_benchmark,
    protocol_record,
    rollout_config,
)
from roboalign.run.folder import (
    backbone_folder,
    mixture_folder,
    policy_folder,
    read_demonstrations,
    run_action_tokens,
)
from roboalign.run.recipe import Recipe
from roboalign.run.stage import Context
from roboalign.sim.base import Benchmark
from roboalign.sim.parallel import evaluate_parallel
from roboalign.sim.ray import evaluate_on_cluster
from roboalign.sim.rollout import EpisodeResult, write_video
from roboalign.vla.acting import load_act, load_copied_act
from roboalign.vla.policy import policy_files

VIDEO_FPS = 10.0


def tokens(context: Context) -> dict[str, Any]:
    """Write answers.jsonl (one record per answer) and metrics.json (with intervals)."""
    return ask_heldout(context, read_conversations(mixture_folder(context.run_dir), "heldout"))


def ask_heldout(context: Context, heldout: Sequence[Conversation]) -> dict[str, Any]:
    """Ask the stage's arm these held-out conversations; write answers.jsonl and metrics.json."""
    mixture = mixture_folder(context.run_dir)
    actions = run_action_tokens(context.run_dir)
    metrics = evaluate_mllm(
        context.load(backbone_folder(context.run_dir, context.seed, context.arm)),
        heldout,
        language_priors(read_conversations(mixture, "train"), style_of(context.recipe.prompts)),
        actions.fast,
        actions.stats,
        actions.mean_chunk,
        context.recipe.tokens,
        context.folder / "answers.jsonl",
        grid=context.recipe.mix.grid,
        run_seed=context.seed,
    )
    write_json(context.folder / "metrics.json", metrics)
    return metrics["cost"]


def rollouts(context: Context) -> dict[str, Any]:
    """Write protocol.json, episodes.jsonl and videos/; of a policy that counts, counts.json too.

    protocol.json holds what affects a success rate besides the policy; episodes.jsonl has one
    record per episode; videos/ has each task's first success and first failure. A stage that was
    killed runs only the episodes that its file lacks.
    """
    recipe = context.recipe
    path = context.folder / "episodes.jsonl"
    wanted, benchmark = evaluation_episodes(recipe), measured_benchmark(recipe)
    refuse_leaks(context.run_dir, benchmark, wanted)
    write_json(context.folder / "protocol.json", protocol_record(recipe))
    policy = policy_folder(context.run_dir, context.seed, context.arm)
    done = {(row["task"], row["seed"]) for row in read_records(path, EpisodeState)}

    def keep(result: EpisodeResult) -> None:
        _keep_film(
            context.folder / "videos", result
        )  # before the row is written: an episode that has a row does not run again
        append_jsonl(path, {**result.record(), "run_seed": context.seed})

    _measure(recipe, policy, benchmark, [key for key in wanted if key not in done], keep)
    rows = read_episodes(path, wanted)
    counts = _sum_counts(rows)
    if counts:
        write_json(context.folder / "counts.json", counts)
    return {
        "episodes": len(rows),
        "successes": sum(row["success"] for row in rows),
        "crashes": sum(row["crash"] is not None for row in rows),
        "steps": sum(row["steps"] for row in rows),
        **{name: counts[name] for name in ("decisions", "holds", "tokens") if name in counts},
    }


def _sum_counts(rows: Sequence[dict[str, Any]]) -> dict[str, int]:
    """Return what the policy counted over all episodes, crashed ones included."""
    counts: Counter[str] = Counter()
    for row in rows:
        counts.update(row.get("counts", {}))
    return dict(sorted(counts.items()))


def _measure(
    recipe: Recipe,
    policy: Path,
    benchmark: Benchmark,
    episodes: Sequence[tuple[str, int]],
    keep: Callable[[EpisodeResult], None],
) -> None:
    """Run the episodes in processes of this machine, or on the machines of a Ray cluster."""
    cluster, config = recipe.hardware.ray, rollout_config(recipe)
    if cluster is None:
        workers = max(1, cores() // side_by_side(recipe.parallel))
        act = functools.partial(load_act, policy, workers, str(device_of(recipe.hardware.device)))
        evaluate_parallel(act, benchmark, episodes, config, workers=workers, on_result=keep)
        return
    inside, files = policy_files(policy)
    load = functools.partial(
        load_copied_act, inside, cluster.cpus, "cuda" if cluster.gpus else "cpu"
    )
    evaluate_on_cluster(load, files, benchmark, episodes, config, cluster, on_result=keep)


def refuse_leaks(run_dir: Path, benchmark: Benchmark, wanted: Sequence[tuple[str, int]]) -> None:
    """Refuse evaluation episodes that are among the demonstrations, whatever their seeds were set
    to."""
    trained = {episode.episode_id for episode in read_demonstrations(run_dir, "downstream")}
    if (run_dir / "collect" / "align").exists():
        trained |= {episode.episode_id for episode in read_demonstrations(run_dir, "align")}
    else:  # SFT and RL learned from a given mixture
        for path in shards(mixture_folder(run_dir), "train"):
            trained |= set(read_table(path, columns=["episode_id"])["episode_id"].to_pylist())
    leaks = sorted(trained & {benchmark.episode_id(task, seed) for task, seed in wanted})
    if leaks:
        raise RoboAlignError(
            f"evaluation episode {leaks[0]} is among the demonstrations",
            where="collect",
            fix="collect demonstrations with other seeds than those that measure",
        )


def _keep_film(folder: Path, result: EpisodeResult) -> None:
    """Write a task's first success and first failure, by seed, as videos; an earlier seed replaces
    a later one."""
    if result.crash is not None or not result.film:
        return
    outcome = "success" if result.success else "failure"
    index = read_json(folder / "index.json") if (folder / "index.json").exists() else []
    others = [row for row in index if (row["task"], row["outcome"]) != (result.task, outcome)]
    if any(row["seed"] < result.seed for row in index if row not in others):
        return
    path = f"{result.task.replace('/', '-')}-{outcome}.mp4"
    write_video(folder / path, result.film, VIDEO_FPS)
    row = {"task": result.task, "outcome": outcome, "seed": result.seed, "path": path}
    write_json(
        folder / "index.json", sorted([*others, row], key=lambda one: (one["task"], one["outcome"]))
    )
