"""An animation of a policy's rollouts on Meta-World, side by side, for the README.

    python -m tools.animate POLICY docs/images/rollouts.webp handle-press-side-v3:1000000 button-press-wall-v3:1000000

POLICY is a policy's folder (seed-0/head/ARM/policy of a run). TASK:SEED names an episode of the run's evaluation. The
policy sees what its run trained it on; for the animation the same actions are replayed and drawn larger. An episode
that it does not solve is refused, so the README must say that the episodes are chosen.
"""

import argparse
import contextlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from roboalign.core.errors import RoboAlignError
from roboalign.sim.metaworld.environment import MetaWorld, MetaWorldConfig
from roboalign.vla.policy import Policy

GAP, CAPTION = 6, 18
REPLAN = 4  # actions of a chunk that are executed, and steps of an episode, as in recipes/quickstart.yaml
MAX_STEPS = 150


def roll_out(policy: Policy, task: str, seed: int) -> list[np.ndarray]:
    """The actions [A] up to the solved step. Raises RoboAlignError where the policy does not solve the episode."""
    actions: list[np.ndarray] = []
    with contextlib.closing(MetaWorld().make(task)) as environment:
        environment.reset(seed)
        while len(actions) < MAX_STEPS:
            for action in policy.act(environment.observe(), (task, seed, len(actions)))[:REPLAN]:
                actions.append(action)
                if environment.step(action):
                    return actions
    raise RoboAlignError("the policy does not solve this episode", where=f"{task}:{seed}")


def draw(
    task: str, seed: int, actions: list[np.ndarray], size: int, every: int
) -> list[np.ndarray]:
    """Every n-th picture of the replayed episode, and the last, uint8 [size, size, 3]."""
    with contextlib.closing(MetaWorld(MetaWorldConfig(image_size=size)).make(task)) as environment:
        environment.reset(seed)
        pictures = [environment.render()["workspace"]]
        for number, action in enumerate(actions, start=1):
            solved = environment.step(action)
            if number % every == 0 or number == len(actions):
                pictures.append(environment.render()["workspace"])
    if not solved:
        raise RoboAlignError("the replay is not the episode", where=f"{task}:{seed}")
    return pictures


def animate(films: list[list[np.ndarray]], captions: list[str], out: Path) -> None:
    """Write the films side by side; a film that is over holds its last picture."""
    size = films[0][0].shape[0]
    pictures = []
    for number in range(max(map(len, films)) + 8):
        picture = Image.new("RGB", (len(films) * (size + GAP) - GAP, size + CAPTION), "white")
        for column, (film, caption) in enumerate(zip(films, captions, strict=True)):
            left = column * (size + GAP)
            picture.paste(Image.fromarray(film[min(number, len(film) - 1)]), (left, 0))
            ImageDraw.Draw(picture).text((left + 2, size + 3), caption, fill="black")
        pictures.append(picture)
    pictures[0].save(
        out, save_all=True, append_images=pictures[1:], duration=80, loop=0, quality=60
    )


def main() -> None:
    """Roll out, draw, write, and say how large the file is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("policy", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("episodes", nargs="+", metavar="TASK:SEED")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--every", type=int, default=2)
    options = parser.parse_args()
    policy = Policy.load(options.policy)
    episodes = [(task, int(seed)) for task, seed in (e.split(":") for e in options.episodes)]
    # All are rolled out before one is drawn larger: the two sizes are two OpenGL contexts, used one after the other.
    actions = [roll_out(policy, task, seed) for task, seed in episodes]
    print(f"solved after {', '.join(str(len(taken)) for taken in actions)} steps", flush=True)
    films = [
        draw(task, seed, taken, options.size, options.every)
        for (task, seed), taken in zip(episodes, actions, strict=True)
    ]
    captions = [task.removesuffix("-v3") for task, _ in episodes]
    animate(films, captions, options.out)
    print(f"{options.out}: {options.out.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
