"""Meta-World (metaworld 3.1.1) as a benchmark: 50 tabletop tasks of a Sawyer arm, with experts.

Actions are 4-d: hand displacement in x, y, z (1 is a centimeter) and gripper effort (-1 opens, 1
closes), each clipped to [-1, 1] by the environment. The robot is at y = 0 and faces +y; +x is to
its right; z is up; meters.
"""

import copy
import functools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import mujoco
import numpy as np

from roboalign.actions.axes import KNOWN_AXES, Axes
from roboalign.core.errors import RoboAlignError
from roboalign.sim.base import EnvironmentCrash, Observation, Task
from roboalign.sim.cameras import VIEWS, CameraGeometry, RenderMode, pose_of, projection_matrix
from roboalign.sim.metaworld.config import EPISODE_STEPS, MetaWorldConfig
from roboalign.sim.metaworld.instructions import TASKS
from roboalign.sim.physics import diverged
from roboalign.sim.rendering import Renderer, gl_backend


@functools.cache
def _environment_classes() -> dict[str, type]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from metaworld.env_dict import ALL_V3_ENVIRONMENTS
    return {
        name: type(environment.__name__, (_CopiedModel, environment), {})
        for name, environment in ALL_V3_ENVIRONMENTS.items()
    }


@functools.cache
def _expert_classes() -> dict[str, Any]:
    from metaworld.policies import ENV_POLICY_MAP

    return dict(ENV_POLICY_MAP)


@functools.lru_cache(maxsize=8)
def _compiled(path: str) -> mujoco.MjModel:
    return mujoco.MjModel.from_xml_path(path)


class _CopiedModel:
    """Mixin for a Meta-World environment: compile its model once per process, and copy it ten times
    faster."""

    def _initialize_simulation(self: Any) -> tuple[mujoco.MjModel, mujoco.MjData]:
        model = copy.copy(_compiled(self.fullpath))
        model.vis.global_.offwidth = max(model.vis.global_.offwidth, self.width)
        model.vis.global_.offheight = max(model.vis.global_.offheight, self.height)
        return model, mujoco.MjData(model)


# Copies of one task's model differ in body positions only, so one set of uploaded meshes and textures serves them all.
@functools.lru_cache(maxsize=8)
def _renderer(task: str, size: int, mode: RenderMode) -> Renderer:
    model = MetaWorldEnvironment.new_simulation(task).model
    return Renderer(model, size, mode)


@dataclass(frozen=True)
class MetaWorld:
    """The 50 tasks of Meta-World v3 as a `Benchmark`."""

    config: MetaWorldConfig = field(default_factory=MetaWorldConfig)
    action_dim: int = 4
    state_dim: int = 4
    fps: float = 80.0
    """Control rate: five simulation steps of 2.5 ms per action."""
    robot_type: str = "sawyer"
    action_space: str = "metaworld"
    axes: Axes = KNOWN_AXES["metaworld"]
    action_names: tuple[str, ...] = ("x", "y", "z", "gripper")
    state_names: tuple[str, ...] = ("hand.x", "hand.y", "hand.z", "gripper.opening")

    @property
    def cameras(self) -> tuple[str, ...]:
        return self.config.cameras

    def prepare(self) -> None:
        """Find the OpenGL backend once for all worker processes."""
        gl_backend()

    def tasks(self) -> list[Task]:
        """Return all 50 tasks, by name."""
        return [TASKS[name] for name in sorted(TASKS)]

    def make(self, task: str) -> "MetaWorldEnvironment":
        """Build one task. Raises RoboAlignError if the name is unknown."""
        if task not in TASKS:
            raise RoboAlignError(
                f"unknown Meta-World task {task!r}", where="task", fix=f"use one of {sorted(TASKS)}"
            )
        return MetaWorldEnvironment(TASKS[task], self.config)

    @property
    def image_size(self) -> int:
        return self.config.image_size

    def privileged_names(self, tasks: Sequence[str]) -> tuple[str, ...]:
        """Return every name of these tasks' environments, in the order in which they first
        occur."""
        return tuple(
            dict.fromkeys(name for task in tasks for name in _privileged_names(TASKS[task]))
        )

    def episode_id(self, task: str, seed: int) -> str:
        """Return, for example, `metaworld/reach-v3/seed-17`."""
        return f"metaworld/{task}/seed-{seed}"


class MetaWorldEnvironment:
    """One Meta-World task (see `DemonstratedEnvironment`), with its expert and the privileged state."""

    max_steps: int = EPISODE_STEPS
    """Meta-World's own episode limit."""
    expert_starts_anywhere: bool = True
    """Its experts read the state at every step, and remember nothing."""

    def __init__(self, task: Task, config: MetaWorldConfig) -> None:
        self.task, self.config = task, config
        self.simulation = self.new_simulation(task.name)
        self.model: mujoco.MjModel = self.simulation.model
        self.data: mujoco.MjData = self.simulation.data
        # An episode moves bodies and sites of the model and leaves attributes on the simulation.
        # Each reset restores both.
        self._pristine_model = (self.model.body_pos.copy(), self.model.site_pos.copy())
        self._pristine_attributes = _copy_attributes(vars(self.simulation))
        self._full_observation = np.zeros(39)

    @staticmethod
    def new_simulation(task: str) -> Any:
        """Build Meta-World's own environment of `task`, with the goal in its observation (the
        experts need it)."""
        simulation = _environment_classes()[task]()
        simulation._partially_observable = False
        del simulation.sawyer_observation_space  # it was cached for the hidden goal
        simulation._set_task_called = True
        simulation.seeded_rand_vec = True
        return simulation

    def reset(self, seed: int) -> None:
        """Start the episode of `seed`, which fixes every position that the task randomizes (object, goal, fixture).

        The vector is drawn from the seed and then frozen, which is how Meta-World's benchmarks define their tasks.
        """
        simulation = self.simulation
        self.model.body_pos[:], self.model.site_pos[:] = self._pristine_model
        vars(simulation).clear()
        vars(simulation).update(_copy_attributes(self._pristine_attributes))
        mujoco.mj_resetData(self.model, self.data)
        simulation.seed(seed)
        simulation._freeze_rand_vec = False
        simulation.reset_model()
        simulation._freeze_rand_vec = True
        simulation.reset()
        # reset_model moves bodies and sites without updating what is drawn and observed. This
        # update changes no physics.
        mujoco.mj_kinematics(self.model, self.data)
        mujoco.mj_camlight(self.model, self.data)
        current = simulation._get_curr_obs_combined_no_goal()
        simulation._prev_obs = current
        self._full_observation = np.hstack([current, current, simulation._target_pos])
        self._check()

    def step(self, action: np.ndarray) -> bool:
        """Execute a raw action [4], clipped to [-1, 1]; return True if Meta-World reports success.

        Raises EnvironmentCrash if the action is not finite or the simulation breaks.
        """
        action = np.asarray(action, np.float64)
        if action.shape != (4,) or not np.isfinite(action).all():
            raise EnvironmentCrash(
                f"{self.task.name}: an action must be 4 finite numbers, got {action}"
            )
        try:
            self._full_observation, _, _, _, info = self.simulation.step(np.clip(action, -1.0, 1.0))
        except mujoco.FatalError as error:
            raise EnvironmentCrash(f"{self.task.name}: MuJoCo stopped: {error}") from error
        self._check()
        return bool(info["success"])

    def observe(self) -> Observation:
        """Render all cameras of the configuration and read the proprioception."""
        return Observation(self.render(), self.state(), self.task.instruction)

    def render(self) -> dict[str, np.ndarray]:
        """Return camera name -> uint8 [size, size, 3]."""
        renderer = _renderer(self.task.name, self.config.image_size, self.config.render)
        return {
            name: renderer.render(self.model, self.data, VIEWS[name])
            for name in self.config.cameras
        }

    def state(self) -> np.ndarray:
        """Return proprioception float32 [4]: hand x, y, z (meters), gripper opening (0 closed .. 1
        open)."""
        return self._full_observation[:4].astype(np.float32)

    @property
    def privileged_names(self) -> tuple[str, ...]:
        """Return the names of `privileged`: "gripper.x", "gripper.y", "gripper.z",
        "gripper.opening", "object.x", ..., "goal.z".

        "object2.x/y/z" come before the goal if the task has a second object.
        """
        return _privileged_names(self.task)

    def privileged(self) -> np.ndarray:
        """Return float32 [P]: world coordinates in meters, and the opening as in `state`.

        `gripper` is the point between the fingertips (4.5 cm below the hand of `state`). The
        objects and the goal are the points of Meta-World's observation, which the task's nouns
        describe.
        """
        objects, goal = self.simulation._get_pos_objects(), self.simulation._target_pos
        values = np.hstack([self.simulation.tcp_center, self._full_observation[3], objects, goal])
        return values.astype(np.float32)

    def expert(self) -> Callable[[], np.ndarray]:
        """Return Meta-World's scripted expert; its action, float32 [4], is clipped to [-1, 1]."""
        policy = _expert_classes()[self.task.name]()

        def action() -> np.ndarray:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the experts warn that the environment clips
                return np.clip(policy.get_action(self._full_observation), -1.0, 1.0).astype(
                    np.float32
                )

        return action

    def camera_geometry(self) -> dict[str, CameraGeometry]:
        """Return camera name -> image size and projection. The cameras do not move during an
        episode."""
        size = self.config.image_size
        geometry: dict[str, CameraGeometry] = {}
        for name in self.config.cameras:
            pose = pose_of(VIEWS[name], self.model, self.data)
            geometry[name] = CameraGeometry(
                size, size, projection_matrix(VIEWS[name], pose, size, size)
            )
        return geometry

    def close(self) -> None:
        """Free the simulation. Uploaded meshes and textures stay for other environments of the task."""
        self.simulation.close()

    def _check(self) -> None:
        if broken := diverged(self.data):
            raise EnvironmentCrash(
                f"{self.task.name}: the simulation diverged ({', '.join(broken)})"
            )
        if not np.isfinite(self._full_observation).all():
            raise EnvironmentCrash(f"{self.task.name}: the observation is not finite")


def _privileged_names(task: Task) -> tuple[str, ...]:
    points = [name for name in ("object", "object2", "goal") if name in task.nouns]
    gripper = ("gripper.x", "gripper.y", "gripper.z", "gripper.opening")
    return (*gripper, *(f"{point}.{axis}" for point in points for axis in "xyz"))


def _copy_attributes(attributes: dict[str, Any]) -> dict[str, Any]:
    """Copy containers and owned arrays; keep the rest (model, data, spaces, live views of the simulation) as it is."""
    copied = {}
    for name, value in attributes.items():
        owned = (
            value.base is None if isinstance(value, np.ndarray) else isinstance(value, (list, dict))
        )
        copied[name] = copy.deepcopy(value) if owned else value
    return copied
