"""Load a policy as the simulator's workers call it.

Workers import this module and nothing of the trainings, whose libraries take a third of their start.
"""

from pathlib import Path

import torch

from roboalign.sim.base import Observation
from roboalign.sim.rollout import Act, Key, Planned
from roboalign.vla.policy import Policy


def load_act(folder: Path, threads: int, device: str) -> Act:
    """Return the policy in `folder`; its flow noise is keyed by (task, seed, step)."""
    torch.set_num_threads(threads)
    policy = Policy.load(folder, device)

    def act(observations: list[Observation], keys: list[Key]) -> Planned:
        return Planned(*policy.act_and_count(observations, keys))

    return act


def load_copied_act(inside: str, threads: int, device: str, folder: Path) -> Act:
    """Call `load_act` on the policy whose copy is in `folder`."""
    return load_act(folder / inside, threads, device)
