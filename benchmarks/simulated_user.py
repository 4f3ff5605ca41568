"""A user's road, simulated: somebody's recordings -> init, plan, run, serve -> a robot that only the client moves.

    python benchmarks/simulated_user.py FOLDER [--world metaworld|libero] [--crf 30]
        [--part builtin|data|user|drive|table ...]

The parts, in order; the same command continues after a stop:

builtin  the built-in road: `roboalign run` collects the experts' demonstrations, trains and measures in process
data     its demonstrations again, as a plain LeRobot v3.0 video data set with other names of cameras and state
user     `roboalign init`, `plan` and `run` on that folder, init's recipe with the settings of the built-in road
drive    `roboalign serve`, and the simulator driven by `RemotePolicy`, which learns names and order from the server
table    success by road, arm and task as Markdown, and the two roads' pairs

Arm `base` is the comparison: its head is trained on the same demonstrations with the same settings by both roads. The
alignment of arm `roboalign` differs: questions and actions of other tasks there, the user's own actions here.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import yaml

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a script

from benchmarks.plain_lerobot import CRF, write_plain
from roboalign.core.files import append_jsonl, read_jsonl
from roboalign.core.machine import cores
from roboalign.episodes.formats.lerobot import read_lerobot
from roboalign.evaluate.statistics import mcnemar_exact, wilson
from roboalign.run.benchmark import evaluation_episodes, measured_benchmark, rollout_config
from roboalign.run.load import load_recipe
from roboalign.serve.client import RemotePolicy
from roboalign.sim.parallel import evaluate_parallel

PARTS = ("builtin", "data", "user", "drive", "table")
TRAINING = {
    "tokenizer": {"horizon": 8, "scale": 1.0, "vocab_size": 64},
    "backbone": {"source": "builtin", "action_start": "labels", "layer": 2},
    "sft": {
        "learning_rate": 1.0e-3,
        "batch_size": 16,
        "micro_batch_size": 16,
        "freeze_vision": True,
        "max_steps": 12,
    },
    "rl": {
        "learning_rate": 3.0e-4,
        "prompts_per_rollout": 8,
        "prompts_per_update": 8,
        "micro_batch_size": 8,
        "samples": 4,
        "updates": 2,
        "reward": "decoded",
        "max_new_tokens": 72,
        "freeze_vision": True,
    },
    "tokens": {"max_questions": 20, "max_actions": 20, "max_new_tokens": 72},
    "head": {"preset": "tiny", "proprioception": True},
}
"""What both roads train with: the quickstart's head, with the state, and a mere start of an alignment, which shows that
the road is passable and no more."""
MIX = {"conversations": 2000, "rl_share": 0.0099, "heldout_actions": 40}


@dataclass(frozen=True)
class World:
    """A simulator, and how the made-up user names what it gives."""

    collect: dict[str, Any]
    rollout: dict[str, Any]
    head_training: dict[str, Any]
    seeds: tuple[int, ...]
    """Training seeds."""
    arms: tuple[str, ...]
    cameras: dict[str, str]
    """The simulator's name -> the user's."""
    state_names: tuple[str, ...]
    """The user's."""
    state_order: tuple[int, ...]
    """Column i of the user's state is this one of the simulator's."""
    action_names: tuple[str, ...]
    action_space: str


WORLDS = {
    # Three of the quickstart's four downstream tasks: easy ones, none of which is an alignment task.
    "metaworld": World(
        collect={
            "align_tasks": ["button-press-v3", "door-close-v3", "handle-press-v3", "reach-v3"],
            "downstream_tasks": [
                "button-press-topdown-v3",
                "button-press-wall-v3",
                "handle-press-side-v3",
            ],
            "align": {"episodes_per_task": 8, "noise": 0.2, "first_seed": 10000},
            "downstream": {"episodes_per_task": 20, "noise": 0.2},
        },
        rollout={"episodes": 20, "max_steps": 150, "replan_every": 4, "batch_size": 10},
        head_training={"steps": 500, "draws": 2, "eval_every": 250, "features": {"every": 4}},
        seeds=(0, 1),
        arms=("base", "roboalign"),
        cameras={"workspace": "top"},
        state_names=("jaw", "tool_x", "tool_y", "tool_z"),
        state_order=(3, 0, 1, 2),
        action_names=("dx", "dy", "dz", "jaw_effort"),
        action_space="control=end-effector,mode=delta,gripper=closed_positive,position_scale=0.01",
    ),
    # The first three tasks of the suite, with the settings of recipes/libero-tiny.yaml but fewer steps.
    "libero": World(
        collect={
            "benchmark": "libero_object",
            "align_tasks": ["button-press-v3", "reach-v3"],
            "align": {"episodes_per_task": 10, "noise": 0.2, "first_seed": 10000},
            "downstream_tasks": [
                f"libero_object/pick_up_the_{name}_and_place_it_in_the_basket"
                for name in ("alphabet_soup", "cream_cheese", "salad_dressing")
            ],
            "downstream": {
                "episodes_per_task": 10,
                "noise": 0.1,
                "max_steps": 300,
                "first_seed": 1000,
            },
            "libero": {
                "preset": "openpi",
                "render": "fast",
                "render_size": 128,
                "image_size": 64,
                "cameras": ["agentview"],
            },
        },
        rollout={"episodes": 5, "batch_size": 5},
        head_training={"steps": 500, "draws": 2, "eval_every": 250, "features": {"every": 4}},
        seeds=(0,),
        arms=("base",),
        cameras={"agentview": "top"},
        state_names=("jaw_l", "jaw_r", "tool_x", "tool_y", "tool_z", "turn_x", "turn_y", "turn_z"),
        state_order=(6, 7, 0, 1, 2, 3, 4, 5),
        action_names=("dx", "dy", "dz", "turn_dx", "turn_dy", "turn_dz", "jaw_effort"),
        action_space="control=end-effector,mode=delta,rotation=axis_angle,gripper=closed_positive,"
        "position_scale=0.05,rotation_scale=0.5",
    ),
}


def training_of(world: World) -> dict[str, Any]:
    """What both roads train with in this world."""
    return {**TRAINING, "head_training": world.head_training, "seeds": list(world.seeds)}


def roboalign(*arguments: object) -> None:
    """Run one command of the product; end with its status if it fails."""
    print("$ roboalign", *arguments, flush=True)
    line = [sys.executable, "-m", "roboalign", *map(str, arguments)]
    if status := subprocess.run(line).returncode:
        raise SystemExit(status)


def builtin(folder: Path, world: World) -> None:
    """The built-in road, whole."""
    recipe = {
        "name": "builtin",
        "arms": list(world.arms),
        "collect": world.collect,
        "mix": MIX,
        "rollout": world.rollout,
        **training_of(world),
    }
    path = folder / "builtin.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    roboalign("run", path, "--out", folder / "builtin")


def data(folder: Path, world: World, crf: int) -> None:
    """The user's recordings; says how far their pictures are from the rendered ones."""
    out = folder / "press_things"
    if out.exists():
        return
    episodes = read_lerobot(folder / "builtin" / "collect" / "downstream")
    beside = folder / "press_things.part"
    write_plain(
        beside,
        episodes,
        cameras=world.cameras,
        state_names=world.state_names,
        state_order=world.state_order,
        action_names=world.action_names,
        crf=crf,
    )
    theirs = read_lerobot(beside)
    for ours, name in world.cameras.items():
        errors = [
            np.square(a.frame(ours, t).astype(float) - b.frame(name, t)).mean()
            for a, b in zip(episodes, theirs, strict=True)
            for t in range(0, len(a), 10)
        ]
        loss = 10 * np.log10(255**2 / np.mean(errors))
        print(f"{name}: {len(episodes)} episodes, PSNR of the video {loss:.1f} dB")
    beside.rename(out)


def user(folder: Path, world: World) -> None:
    """The first three commands."""
    recipe = folder / "press_things.yaml"
    if not recipe.exists():
        given = ("--backbone", "builtin", "--action-space", world.action_space, "--out", recipe)
        roboalign("init", folder / "press_things", *given)
    settings: dict[str, Any] = {"arms": list(world.arms)}
    for name, section in {**training_of(world), "mix": MIX}.items():
        if isinstance(section, dict):
            settings |= {f"{name}.{key}": value for key, value in section.items()}
        else:
            settings[name] = section
    sets = [part for k, v in settings.items() for part in ("--set", f"{k}={json.dumps(v)}")]
    roboalign("plan", recipe, "--gpus", "1xL40S", *sets)
    roboalign("run", recipe, "--out", folder / "user", *sets)


class Robot:
    """The user's control program: it knows its own cameras and state, and asks the server for the rest."""

    def __init__(self, port: int, world: World) -> None:
        self.remote, self.world = RemotePolicy(port=port), world
        wanted = self.remote.metadata["observation"]["observation/state"]["names"]
        own = [world.state_order[world.state_names.index(name)] for name in wanted]
        self.columns = np.array(own)

    def __call__(self, observations: list[Any], keys: list[Any]) -> np.ndarray:
        """Chunks for what the simulator shows, float32 [k, H, A]."""
        return self.remote.act_batch([self.renamed(one) for one in observations], keys)

    def renamed(self, seen: Any) -> SimpleNamespace:
        images = {theirs: seen.images[ours] for ours, theirs in self.world.cameras.items()}
        return SimpleNamespace(
            images=images, state=seen.state[self.columns], instruction=seen.instruction
        )


@dataclass(frozen=True)
class Connect:
    """Makes a `Robot` in each of the simulator's processes."""

    port: int
    world: str

    def __call__(self) -> Robot:
        return Robot(self.port, WORLDS[self.world])


@contextmanager
def served(run: Path, arm: str, seed: int) -> Iterator[int]:
    """The fourth command, on a free port; gives it."""
    line = [sys.executable, "-m", "roboalign", "serve", str(run), "--arm", arm]
    line += ["--seed", str(seed), "--port", "0"]
    with subprocess.Popen(line, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            said = []
            for text in server.stderr:
                said.append(text)
                if "listening on ws://" in text:
                    break
            else:
                raise SystemExit("".join(said))
            yield int(text.rsplit(":", 1)[1])
        finally:
            server.terminate()
            server.wait(60)


def drive(folder: Path, world: World, name: str) -> None:
    """Every evaluation episode of every policy over the wire; those that a record has are not run again."""
    recipe = load_recipe(folder / "builtin" / "recipe.yaml")
    wanted = evaluation_episodes(recipe)
    for seed in world.seeds:
        for arm in world.arms:
            path = folder / "driven" / f"{arm}-{seed}.jsonl"
            path.parent.mkdir(exist_ok=True)
            done = {(row["task"], row["seed"]) for row in rows_of(path)}
            left = [key for key in wanted if key not in done]
            if not left:
                continue
            with served(folder / "user", arm, seed) as port:
                evaluate_parallel(
                    Connect(port, name),
                    measured_benchmark(recipe),
                    left,
                    rollout_config(recipe),
                    workers=cores(),
                    on_result=lambda result, path=path: append_jsonl(path, result.record()),
                )


def rows_of(path: Path) -> list[dict[str, Any]]:
    return read_jsonl(path) if path.exists() else []


def table(folder: Path, world: World) -> None:
    """Print success by road, arm and task, all training seeds together, and the pairs of the two roads."""
    tasks = world.collect["downstream_tasks"]
    print(f"| road | arm | {' | '.join(tasks)} | all |\n|---|---|{'---|' * (len(tasks) + 1)}")
    for arm in world.arms:
        found = {
            "built-in, in process": outcomes(
                folder, f"builtin/seed-{{}}/eval/rollouts/{arm}/episodes.jsonl", world.seeds
            ),
            "user's, served": outcomes(folder, f"driven/{arm}-{{}}.jsonl", world.seeds),
        }
        for road, solved in found.items():
            cells = [rate([won for key, won in solved.items() if key[1] == task]) for task in tasks]
            print(f"| {road} | {arm} | {' | '.join(cells)} | {rate([*solved.values()])} |")
        one, other = found.values()
        assert one.keys() == other.keys(), "not the same episodes"
        pairs = [(won, other[key]) for key, won in one.items()]
        first, second = (sum(pair == case for pair in pairs) for case in ((1, 0), (0, 1)))
        p = mcnemar_exact(*zip(*pairs)).p
        print(f"{arm}: {first} solved by the built-in policy alone, {second} by the user's alone")
        print(f"{arm}: of {len(pairs)} pairs, exact McNemar p = {p:.2f}")


def outcomes(
    folder: Path, pattern: str, seeds: tuple[int, ...]
) -> dict[tuple[int, str, int], bool]:
    """(training seed, task, initial state) -> whether it was solved."""
    found = {}
    for number in seeds:
        for row in rows_of(folder / pattern.format(number)):
            assert row["crash"] is None, row
            found[number, row["task"], row["seed"]] = row["success"]
    return found


def rate(won: list[bool]) -> str:
    low, high = wilson(sum(won), len(won))
    return f"{sum(won)}/{len(won)} ({100 * low:.0f} to {100 * high:.0f})"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--world", choices=tuple(WORLDS), default="metaworld")
    parser.add_argument("--part", choices=PARTS, nargs="+", default=PARTS)
    parser.add_argument("--crf", type=int, default=CRF, help="quality of the video, 0 the best")
    options = parser.parse_args()
    folder, world = options.folder, WORLDS[options.world]
    folder.mkdir(parents=True, exist_ok=True)
    for part in options.part:
        if part == "drive":
            drive(folder, world, options.world)
        elif part == "data":
            data(folder, world, options.crf)
        else:
            {"builtin": builtin, "user": user, "table": table}[part](folder, world)


if __name__ == "__main__":
    main()
