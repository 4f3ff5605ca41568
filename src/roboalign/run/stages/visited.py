"""Stages `visited`, `rl-visited`, `sft-visited` and `eval/visited`: the states that the SFT policy
reaches by itself, with the expert's actions, and what learns from them."""

from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from roboalign.actions.hold import hold_rule
from roboalign.conversations.conversation import (
    PARQUET,
    Conversation,
    read_conversations,
    read_table,
    write_conversations,
)
from roboalign.conversations.prompts import MODES, Mode
from roboalign.conversations.styles.registry import style_of
from roboalign.core.errors import RoboAlignError
from roboalign.core.files import append_jsonl, atomic_path, read_jsonl
from roboalign.core.progress import Progress
from roboalign.episodes.episode import encode_png
from roboalign.mixture.packing import action_turn
from roboalign.run.benchmark import action_space_of, alignment_benchmark, evaluation_episodes
from roboalign.run.folder import (
    ActionTokens,
    mixture_folder,
    read_demonstrations,
    run_action_tokens,
)
from roboalign.run.recipe import Recipe
from roboalign.run.stage import Context
from roboalign.run.stages.align import direct_sample, imitate, refine
from roboalign.run.stages.evaluate import ask_heldout
from roboalign.sim.base import DemonstratedBenchmark, Observation
from roboalign.sim.rollout import Act, Key, Planned
from roboalign.sim.visited import VisitedState, visit
from roboalign.vla.token_policy import TokenPolicy, TokenView

DRIVEN = "episodes.jsonl"


def visited(context: Context) -> dict[str, Any]:
    """Write rl.parquet and heldout.parquet, action samples of visited states, and episodes.jsonl.

    The SFT model drives every alignment task. A stage that was killed goes on with the next task.
    Raises RoboAlignError if the experts cannot act in these states, or no state was labelled.
    """
    recipe, config = context.recipe, context.recipe.visited
    benchmark, tasks = alignment_benchmark(recipe), recipe.collect.align_names()
    _refuse_known(context.run_dir, recipe, benchmark)
    tokens, work = run_action_tokens(context.run_dir), context.folder / "work"
    work.mkdir(exist_ok=True)
    act = _acting(context, benchmark, tokens)
    each = config.episodes_per_task + config.heldout_per_task
    seeds = range(config.first_seed, config.first_seed + each)
    with Progress(context.name, total=len(tasks) * each) as progress:
        for number, task in enumerate(tasks):
            path = work / f"{number:03d}.parquet"
            if not path.exists():
                states = _drive(context, act, benchmark, [(task, seed) for seed in seeds], tokens)
                held = config.first_seed + config.episodes_per_task
                late = [state for state in states if state.seed >= held]
                _write(path.with_suffix(".heldout"), recipe, late, tokens, MODES)
                early = [state for state in states if state.seed < held]
                _write(
                    path, recipe, early, tokens, ("think",)
                )  # last: it says that the task is done
            progress.advance(each, note=task)
    counts = {
        name: _join(context.folder / f"{name}.parquet", sorted(work.glob(f"*.{kind}")))
        for name, kind in (("rl", "parquet"), ("heldout", "heldout"))
    }
    if not counts["rl"]:
        raise RoboAlignError(
            "no visited state could be labelled: every episode crashed, or was solved at once",
            where=str(context.folder),
            fix="raise visited.episodes_per_task",
        )
    if config.heldout_per_task and not counts["heldout"]:
        raise RoboAlignError(
            "no state of a held-out episode could be labelled",
            where=str(context.folder),
            fix="raise visited.heldout_per_task, or set it to 0 and measure none",
        )
    rows = read_jsonl(context.folder / DRIVEN)
    successes = Counter(row["success"] for row in rows)
    return {"episodes": len(rows), "successes": successes[True], **counts}


def _drive(
    context: Context,
    act: Act,
    benchmark: DemonstratedBenchmark,
    episodes: Sequence[tuple[str, int]],
    tokens: ActionTokens,
) -> list[VisitedState]:
    """Return the labelled states of one task's episodes; append the episodes to their file."""
    config, found = context.recipe.visited, []
    labels = config.labels_per_episode
    horizon = tokens.fast.horizon
    path = context.folder / DRIVEN
    known = {(row["task"], row["seed"]) for row in read_jsonl(path)} if path.exists() else set()
    for result, states in visit(act, benchmark, episodes, config, horizon=horizon, labels=labels):
        found += states
        if (result.task, result.seed) not in known:  # a killed stage may have written it
            append_jsonl(path, result.record())
    return found


def _acting(context: Context, benchmark: DemonstratedBenchmark, tokens: ActionTokens) -> Act:
    """Return the SFT model as a policy that acts by its own tokens."""
    recipe = context.recipe
    space = action_space_of(benchmark)
    hold = hold_rule(
        space, benchmark.action_names, benchmark.state_names, where=recipe.collect.align_spec.name
    )
    view = TokenView(mode=recipe.visited.mode, cameras=(recipe.mix.camera,), prompts=recipe.prompts)
    mllm = context.load(context.seed_dir / "sft" / "model")
    policy = TokenPolicy(
        mllm, tokens.fast, tokens.stats, hold, view, recipe.token_policy, seed=context.seed
    )
    return partial(_act, policy)


def _act(policy: TokenPolicy, observations: list[Observation], keys: list[Key]) -> Planned:
    return Planned(*policy.act_and_count(observations, keys))


def _refuse_known(run_dir: Path, recipe: Recipe, benchmark: DemonstratedBenchmark) -> None:
    """Refuse seeds of demonstrations, and all that measure: `roboalign eval`, `think-curve` and
    `causal` may measure more of them than the run does."""
    config = recipe.visited
    each = config.episodes_per_task + config.heldout_per_task
    seeds = range(config.first_seed, config.first_seed + each)
    measuring = recipe.collect.align_spec.evaluation_seeds
    if kept := range(max(measuring.start, seeds.start), min(measuring.stop, seeds.stop)):
        raise RoboAlignError(
            f"seed {kept[0]} is one of those that measure policies",
            where="visited.first_seed",
            fix="choose other seeds",
        )
    names = {
        benchmark.episode_id(task, seed): (task, seed)
        for task in recipe.collect.align_names()
        for seed in seeds
    }
    shown = {episode.episode_id for episode in read_demonstrations(run_dir, "align")}
    measured = set(evaluation_episodes(recipe)) if recipe.measure == "benchmark" else set()
    evaluation = {name for name, key in names.items() if key in measured}
    if known := sorted((shown & names.keys()) | evaluation):
        raise RoboAlignError(
            f"episode {known[0]} is a demonstration, or measures policies",
            where="visited.first_seed",
            fix="choose other seeds",
        )


def _write(
    path: Path,
    recipe: Recipe,
    states: Sequence[VisitedState],
    tokens: ActionTokens,
    modes: Sequence[Mode],
) -> None:
    """Write the action samples of these states, one for each mode."""
    samples = []
    if states:
        chunks = tokens.stats.normalize(np.stack([state.chunk for state in states]))
        for state, chunk, ids in zip(states, chunks, tokens.fast.encode(chunks), strict=True):
            samples += [_sample(state, chunk, ids, mode, recipe) for mode in modes]
    write_conversations(path, samples)


def _sample(
    state: VisitedState, chunk: np.ndarray, ids: Sequence[int], mode: Mode, recipe: Recipe
) -> Conversation:
    style, seen = style_of(recipe.prompts), state.observation
    name = f"visited/{state.task}/seed-{state.seed}"
    return Conversation(
        f"{name}#{state.step}-{mode}",
        name,
        state.step,
        state.task,
        (encode_png(seen.images[recipe.mix.camera]),),
        (action_turn(seen.instruction, ids, mode, style),),
        tuple(ids),
        tuple(map(tuple, chunk.tolist())),
        style.action_question(seen.instruction, "direct"),
    )


def _join(path: Path, parts: Sequence[Path]) -> int:
    """Write one shard of all parts; return its rows."""
    table = pa.concat_tables([read_table(part) for part in parts])
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, **PARQUET)
    return len(table)


def _prompts(context: Context) -> list[Conversation]:
    """Return what the `-visited` arms are asked, in think mode."""
    prompts = read_conversations(context.seed_dir / "visited", "rl")
    if context.recipe.visited.demonstrations:
        prompts += read_conversations(mixture_folder(context.run_dir), "rl")
    return prompts


def rl_visited(context: Context) -> dict[str, Any]:
    """Train with GRPO from the SFT model on visited states, as `rl` does on demonstrations."""
    return refine(context, _prompts(context), context.recipe.rl)


def sft_visited(context: Context) -> dict[str, Any]:
    """Train the control: as many updates by SFT on the same states and actions, in direct mode."""
    style = style_of(context.recipe.prompts)
    return imitate(context, [direct_sample(one, style) for one in _prompts(context)])


def visited_tokens(context: Context) -> dict[str, Any]:
    """Measure the arm's actions on held-out visited states, as `eval/tokens` on demonstrations."""
    return ask_heldout(context, read_conversations(context.seed_dir / "visited", "heldout"))
