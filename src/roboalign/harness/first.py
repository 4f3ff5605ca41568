"""Ask a server once before the first episode, and show what was sent and what came back."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from roboalign.actions.known_spaces import known_space
from roboalign.core.errors import RoboAlignError
from roboalign.core.files import atomic_path
from roboalign.harness.presets import Preset
from roboalign.harness.settings import ClientConfig, read_gripper
from roboalign.sim.base import Benchmark, EnvironmentCrash, Observation
from roboalign.sim.rollout import Key

SHOWN_GRIPPERS = 6
"""Number of different gripper values that are listed; of more, only the range is."""


class Asked(Protocol):
    """The policy behind a connection."""

    preset: Preset
    client: ClientConfig

    def answer(self, observation: Observation, key: Key) -> np.ndarray:
        """Return the chunk [H, A] as the server gave it. Raises EnvironmentCrash if the answer is
        unusable."""


def first_answer(
    asked: Asked, benchmark: Benchmark, episode: tuple[str, int], frames: Path
) -> dict[str, Any]:
    """Reset the first episode, ask for one chunk, and return what it is like, as JSON values.

    The images of the request are written to `frames` as PNG files, unchanged: what is on top there
    is row 0 of the array. Raises RoboAlignError if the answer cannot be executed.
    """
    task, seed = episode
    environment = benchmark.make(task)
    try:
        environment.reset(seed)
        observation = environment.observe()
    finally:
        environment.close()
    pictures = asked.preset.pictures(observation)
    paths = {key: _write_png(frames, key, image) for key, image in pictures.items()}
    try:
        chunk = asked.answer(observation, (task, seed, 0))
    except EnvironmentCrash as crash:
        raise RoboAlignError(
            f"its first answer cannot be executed ({crash})",
            where=f"{task} seed {seed}",
            fix=f"compare what was sent ({frames}) with what the server expects; another --preset?",
        ) from None
    executed = read_gripper(chunk, asked.client.gripper or "as-is")
    return {
        "task": task,
        "seed": seed,
        "instruction": observation.instruction,
        "state": [float(number) for number in observation.state],
        "frames": {
            key: {"path": str(path), "shape": list(pictures[key].shape)}
            for key, path in paths.items()
        },
        "chunk": list(chunk.shape),
        "lowest": [round(float(value), 5) for value in chunk.min(axis=0)],
        "highest": [round(float(value), 5) for value in chunk.max(axis=0)],
        "outside": float((np.abs(executed) > 1).mean()),
        "gripper_answered": _values(chunk[:, -1]),
        "gripper_executed": _values(executed[:, -1]),
        "gripper_opens_at": 1 if _opens_at_one(benchmark) else -1,
    }


def _opens_at_one(benchmark: Benchmark) -> bool:
    """Return whether the simulator opens the gripper at 1, as CALVIN does; the others do at -1."""
    space = getattr(benchmark, "action_space", None)
    if space is None:
        return False
    return (known_space(space) if isinstance(space, str) else space).gripper == "open_positive"


def describe_first(first: Mapping[str, Any], replan_every: int) -> list[str]:
    """Return the first request and its answer as lines to print, cautions last."""
    lines = [f"first request: {first['task']} seed {first['seed']}, `{first['instruction']}`"]
    for key, frame in first["frames"].items():
        lines.append(f"  {key} {frame['shape']}, as sent (row 0 on top): {frame['path']}")
    state = ", ".join(f"{number:.4g}" for number in first["state"])
    lines.append(f"  state [{len(first['state'])}]: {state}")
    horizon, width = first["chunk"]
    lines.append(
        f"first answer: {horizon} actions of {width} numbers; {replan_every} are executed before it is asked again"
    )
    ranges = zip(first["lowest"], first["highest"], strict=True)
    lines.append("  range: " + ", ".join(f"{low:.3g} to {high:.3g}" for low, high in ranges))
    lines.append(
        f"  gripper: {first['gripper_answered']} answered, {first['gripper_executed']} executed "
        f"({first['gripper_opens_at']} opens, {-first['gripper_opens_at']} closes)"
    )
    lines.append(
        f"  outside [-1, 1], where the simulator clips: {100 * first['outside']:.1f}% of the numbers"
    )
    return lines + [f"  caution: {text}" for text in _cautions(first)]


def _cautions(first: Mapping[str, Any]) -> list[str]:
    cautions = []
    if first["outside"] > 0.1:
        cautions.append("many numbers are outside [-1, 1]: are the actions un-normalized twice?")
    low, high = first["lowest"][-1], first["highest"][-1]
    converted = first["gripper_answered"] != first["gripper_executed"]
    if low >= 0 and high <= 1 and low < 1 and not converted:
        cautions.append("the gripper is between 0 and 1: does the server mean that? See --gripper")
    if converted and low < -0.05:
        cautions.append("the gripper is below 0, but is read as 0 to 1: see --gripper")
    return cautions


def _values(numbers: np.ndarray) -> str:
    different = np.unique(np.round(numbers.astype(np.float64), 3))
    if len(different) > SHOWN_GRIPPERS:
        return f"{different[0]:g} to {different[-1]:g}"
    return ", ".join(f"{value:g}" for value in different)


def _write_png(folder: Path, key: str, image: np.ndarray) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{key.replace('/', '-')}.png"
    with atomic_path(path) as temporary:
        Image.fromarray(np.ascontiguousarray(image)).save(temporary, format="png")
    return path
