"""A small environment whose outcome can be computed by hand, and policies for it; picklable, for workers."""

import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from roboalign.core.errors import RoboAlignError
from roboalign.sim.base import EnvironmentCrash, Observation, Task


class Walk:
    """Solved when the position reaches 10. Seeds: 13 crashes at reset, 66 at step 3, 77 ends the process."""

    max_steps = 500

    def __init__(self, deaths: str):
        self.deaths, self.observed, self.closed = deaths, 0, False

    def reset(self, seed):
        self.seed, self.position, self.steps = seed, float(seed % 5), 0
        if seed == 13:
            raise EnvironmentCrash("crash at reset")
        if seed == 77 or (seed == 78 and not Path(self.deaths).exists()):
            Path(self.deaths).touch()
            os._exit(3)

    def observe(self):
        self.observed += 1
        image = np.full((16, 16, 3), min(self.position * 20, 255), np.uint8)
        return Observation({"camera": image}, np.array([self.position], np.float32), "walk")

    def step(self, action):
        self.steps += 1
        self.position += float(action[0])
        if self.seed == 66 and self.steps == 3:
            raise EnvironmentCrash("crash at step 3")
        return self.position >= 10

    def close(self):
        self.closed = True


@dataclass(frozen=True)
class Walks:
    deaths: str = ""
    action_dim: int = 1
    state_dim: int = 1
    cameras: tuple[str, ...] = ("camera",)
    fps: float = 10.0

    def tasks(self):
        return [Task("walk", "walk", {})]

    def make(self, task):
        return Walk(self.deaths)


def one_step(observations, keys):
    return np.ones((len(observations), 4, 1))


def make_one_step():
    return one_step


def make_broken():
    def act(observations, keys):
        raise ValueError("the head is on fire")

    return act


def make_refused():
    raise RoboAlignError(
        "the policy has no statistics", where="policy.json", fix="train the head again"
    )


class Strides:
    """Steps of a size that is drawn from the key and scaled by the number in a file of the policy's folder."""

    def __init__(self, folder: Path, pause: float = 0.0) -> None:
        self.scale, self.pause = float((folder / "weights" / "scale.txt").read_text()), pause

    def __call__(self, observations, keys):
        time.sleep(self.pause)
        drawn = [
            np.random.default_rng([seed, step]).uniform(0, 1, (4, 1)) for _, seed, step in keys
        ]
        return self.scale * np.stack(drawn)


def slow_strides(folder: Path) -> Strides:
    return Strides(folder, pause=0.3)


def load_broken(folder: Path):
    return make_broken()


def load_refused(folder: Path):
    return make_refused()
