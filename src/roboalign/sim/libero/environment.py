"""LIBERO's tasks (a Panda arm, operational-space control at 20 Hz) as a benchmark.

Actions are 7-d in [-1, 1]: change of position (1 is 5 cm) and rotation vector (1 is 0.5 rad) of the
hand, gripper (-1 opens, 1 closes). There are two disjoint kinds of episodes: seeds 0 to 49 are the
stored initial states, used for evaluation; seeds from 1000 on are draws of the suite's own
placement sampler, used for training.
"""

import contextlib
import io
import warnings
from dataclasses import dataclass, field
from typing import Any

import mujoco
import numpy as np

from roboalign.core.errors import RoboAlignError
from roboalign.sim.base import EnvironmentCrash, Observation, Task
from roboalign.sim.cameras import CameraGeometry, CameraView, RenderMode, pose_of, projection_matrix
from roboalign.sim.images import resize_with_padding
from roboalign.sim.libero.control import ArmControl
from roboalign.sim.libero.protocol import LiberoConfig
from roboalign.sim.libero.suites import (
    CAMERA_NAMES,
    FIRST_PLACEMENT,
    STORED_STATES,
    bddl_file,
    find_task,
    load_library,
    stored_states,
    suite_tasks,
    suites_in,
    unperturbed,
)
from roboalign.sim.physics import diverged
from roboalign.sim.rendering import Renderer

CAMERAS = {
    name: CameraView(name, fixed=fixed)
    for name, fixed in zip(CAMERA_NAMES, ("agentview", "robot0_eye_in_hand"), strict=True)
}
REST = np.array([0, 0, 0, 0, 0, 0, -1], np.float64)
_COLLISION_GROUP = 0
RENDERERS = 2
"""Number of tasks whose uploaded meshes and textures a process keeps."""
_renderers: dict[tuple[str, int, RenderMode], Renderer] = {}


@dataclass(frozen=True)
class Libero:
    """One LIBERO suite, or the four of `libero`, as a `Benchmark`."""

    suite: str
    config: LiberoConfig = field(default_factory=LiberoConfig)
    action_dim: int = 7
    state_dim: int = 8
    fps: float = 20.0

    @property
    def cameras(self) -> tuple[str, ...]:
        return self.config.cameras

    def tasks(self) -> list[Task]:
        """Return the suite's tasks in LIBERO's order, called `libero_object/<task>`."""
        return list(suite_tasks(self.suite, self.config.instruction))

    def make(self, task: str) -> "LiberoEnvironment":
        """Build one task, `suite/task`. Raises RoboAlignError if it is unknown."""
        if task.partition("/")[0] not in suites_in(self.suite):
            raise RoboAlignError(
                f"{task!r} is no task of {self.suite}", where="task", fix=f"use {self.suite}/..."
            )
        return LiberoEnvironment(find_task(task, self.config.instruction), self.config)

    def episode_id(self, task: str, seed: int) -> str:
        """Return, for example,
        `libero_object/pick_up_the_milk_and_place_it_in_the_basket/seed-1000`."""
        return f"{task}/seed-{seed}"


class LiberoEnvironment:
    """One task (see `Environment`); `simulation` is robosuite's environment, for experts."""

    def __init__(self, task: Task, config: LiberoConfig) -> None:
        self.task, self.config = task, config
        suite = unperturbed(task.name.partition("/")[0])
        self.max_steps: int = getattr(config.max_steps, suite)
        self.simulation: Any = _build(task.name)
        self._control = ArmControl(self.simulation)
        self._stored = stored_states(task.name)

    @property
    def model(self) -> mujoco.MjModel:
        """Return the MuJoCo model."""
        return self.simulation.sim.model._model

    @property
    def data(self) -> mujoco.MjData:
        """Return the MuJoCo state."""
        return self.simulation.sim.data._data

    def reset(self, seed: int) -> None:
        """Reset to stored initial state `seed` (0 to 49), or to the placement of a seed from 1000
        on, and let it settle.

        Raises RoboAlignError for a seed between the two.
        """
        if 0 <= seed < STORED_STATES:
            own = self.config.fixtures == "trial"
            self._restart((self.config.seed, seed) if own else self.config.seed)
            self.simulation.sim.set_state_from_flattened(self._stored[seed])
            self.simulation.sim.forward()
            self.simulation._post_process()
        elif seed >= FIRST_PLACEMENT:
            self._restart(seed)
        else:
            raise RoboAlignError(
                f"LIBERO has no episode of seed {seed}",
                where=self.task.name,
                fix=(
                    f"0 to {STORED_STATES - 1} are the stored initial states, {FIRST_PLACEMENT} and above placements"
                ),
            )
        for _ in range(self.config.settle_steps):
            self.step(REST)

    def _restart(self, seed: int | tuple[int, int]) -> None:
        """Draw a placement and restore everything that an earlier episode changed, without
        rebuilding the model."""
        from robosuite.utils.errors import RandomizationError

        simulation, model = self.simulation, self.model
        # The sampler adds a fixture's new place to that of its regions, so the fixture must first
        # be where its file puts it.
        for fixture in simulation.fixtures_dict.values():
            body, element = model.body(fixture.root_body), fixture.get_obj()
            body.pos[:] = np.array(element.get("pos", "0 0 0").split(), np.float64)
            body.quat[:] = np.array(element.get("quat", "1 0 0 0").split(), np.float64)
        for robot in simulation.robots:
            robot.gripper.current_action = np.zeros(robot.gripper.dof)
        np.random.seed(seed)
        for _ in range(100):
            with contextlib.suppress(RandomizationError):
                simulation.reset()
                self._control.reset()
                return
        raise EnvironmentCrash(f"{self.task.name}: no placement found for seed {seed}")

    def step(self, action: np.ndarray) -> bool:
        """Execute a raw action [7], clipped to [-1, 1]; return True if the goal holds after it.

        Raises EnvironmentCrash if the action is not finite or the simulation breaks.
        """
        action = np.asarray(action, np.float64)
        if action.shape != (7,) or not np.isfinite(action).all():
            raise EnvironmentCrash(
                f"{self.task.name}: an action must be 7 finite numbers, got {action}"
            )
        try:
            self._control.step(np.clip(action, -1.0, 1.0))
            self.simulation._post_process()
        except (mujoco.FatalError, np.linalg.LinAlgError) as error:
            raise EnvironmentCrash(f"{self.task.name}: the simulation stopped: {error}") from error
        broken = diverged(self.data)
        if broken or not np.isfinite(self.data.qpos).all():
            raise EnvironmentCrash(
                f"{self.task.name}: the simulation diverged ({', '.join(broken)})"
            )
        return bool(self.simulation._check_success())

    def observe(self) -> Observation:
        """Render the protocol's cameras and read the proprioception."""
        return Observation(self.render(), self.state(), self.task.instruction)

    def render(self) -> dict[str, np.ndarray]:
        """Return camera name -> uint8 [image_size, image_size, 3], turned and resized as the
        protocol says."""
        renderer = self._renderer()
        images: dict[str, np.ndarray] = {}
        for name in self.config.cameras:
            upright = renderer.render(self.model, self.data, CAMERAS[name])
            images[name] = resize_with_padding(
                upright[:, ::-1] if self.config.rotate else upright[::-1], self.config.image_size
            )
        return images

    def state(self) -> np.ndarray:
        """Return proprioception float32 [8]: hand position (meters), hand rotation vector (rad),
        two finger positions."""
        robot = self.simulation.robots[0]
        rotation = axis_angle(self.data.xquat[self.model.body(robot.robot_model.eef_name).id])
        fingers = self.data.qpos[robot._ref_gripper_joint_pos_indexes]
        return np.concatenate([self.data.site_xpos[robot.eef_site_id], rotation, fingers]).astype(
            np.float32
        )

    def physics(self) -> np.ndarray:
        """Return the simulation's positions and velocities, float64 [nq + nv]; equal for two
        episodes if they are the same."""
        return np.concatenate([self.data.qpos, self.data.qvel])

    def camera_geometry(self) -> dict[str, CameraGeometry]:
        """Return camera name -> size of the image that a policy sees, and its projection; the
        wrist's camera moves."""
        size = self.config.image_size
        pose = pose_of(CAMERAS["agentview"], self.model, self.data)
        projection = projection_matrix(CAMERAS["agentview"], pose, size, size)
        # Turned by 180 degrees, robosuite's upside-down image is upright, and mirrored left to right.
        mirrored = 0 if self.config.rotate else 1
        projection[mirrored] = size * projection[2] - projection[mirrored]
        return {
            name: CameraGeometry(size, size, projection if name == "agentview" else None)
            for name in self.config.cameras
        }

    def close(self) -> None:
        """Free the simulation. Uploaded meshes and textures stay for other environments of the task."""
        self.simulation.close()

    def _renderer(self) -> Renderer:
        """Return the process's renderer of this task: uploaded meshes and textures take hundreds of
        megabytes."""
        key = self.task.name, self.config.render_size, self.config.render
        if key not in _renderers:
            while len(_renderers) >= RENDERERS:
                _renderers.pop(next(iter(_renderers))).close()
            _renderers[key] = Renderer(self.model, self.config.render_size, self.config.render)
            _renderers[key].options.geomgroup[_COLLISION_GROUP] = 0
        return _renderers[key]


def _build(task: str) -> Any:
    load_library()
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        from libero.libero.envs.env_wrapper import ControlEnv

        control = ControlEnv(
            bddl_file_name=str(bddl_file(task)),
            use_camera_obs=False,
            has_offscreen_renderer=False,
            hard_reset=False,
            ignore_done=True,
        )
    return control.env


def axis_angle(quaternion: np.ndarray) -> np.ndarray:
    """Convert MuJoCo's quaternion (w, x, y, z) to a rotation vector [3] of angle 2 acos(w), 0 to 2
    pi, as policies expect.

    It is not the shortest rotation if w < 0: robosuite does not flip the sign, and neither do the
    data sets.
    """
    w, vector = float(np.clip(quaternion[0], -1.0, 1.0)), quaternion[1:]
    sine = np.sqrt(1.0 - w * w)
    return np.zeros(3) if sine < 1e-9 else vector * (2.0 * np.arccos(w) / sine)
