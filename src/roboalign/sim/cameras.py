"""Define viewpoints and their exact projection from the world to pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    import mujoco

RenderMode = Literal["fast", "default"]
"""`default` draws a model as it asks; `fast` leaves out shadows, reflections and multisampling
(`sim.rendering`)."""


@dataclass(frozen=True)
class CameraView:
    """A viewpoint: a camera of the model (`fixed`), or a free camera that looks at a point.

    Angles are MuJoCo's, in degrees: `azimuth` of the viewing direction around z from x, `elevation` above the horizon.
    """

    name: str
    fixed: str | None = None
    upside_down: bool = False
    """Whether the model mounts this camera rotated by 180 degrees; the image is then turned
    back."""
    position: tuple[float, float, float] | None = None
    """Where a fixed camera is moved to, world coordinates in meters; None: where the model has it."""
    lookat: tuple[float, float, float] = (0.0, 0.0, 0.0)
    distance: float = 1.0
    azimuth: float = 90.0
    elevation: float = -45.0
    fovy: float = 45.0
    """Vertical field of view of a free camera, degrees."""


# Fitted to the fingertip, object and goal points of the scripted experts of all 50 tasks: 99.9% of
# them are inside. Seen from the robot's right and slightly from behind, so that the fronts of
# drawers, doors and buttons show. The arm enters from the top left and seldom hides the object.
# Seen from 50 degrees above, the tabletop shows depth.
WORKSPACE = CameraView(
    "workspace",
    lookat=(0.118, 0.599, 0.12),
    distance=1.416,
    azimuth=155.0,
    elevation=-50.0,
    fovy=30.0,
)
CORNER2 = CameraView("corner2", fixed="corner2", upside_down=True)
# lerobot and others move corner2 there; its orientation stays.
CORNER2_NEAR = CameraView(
    "corner2_near", fixed="corner2", upside_down=True, position=(0.75, 0.075, 0.7)
)
VIEWS = {view.name: view for view in (WORKSPACE, CORNER2, CORNER2_NEAR)}


@dataclass(frozen=True)
class CameraGeometry:
    """Image size in pixels and the projection [3, 4] of world points to pixels; None for a camera that moves."""

    width: int
    height: int
    projection: np.ndarray | None


@dataclass(frozen=True)
class Pose:
    """A camera's position [3] in meters, orthonormal axes [3] each, and vertical field of view in degrees."""

    position: np.ndarray
    right: np.ndarray
    up: np.ndarray
    forward: np.ndarray
    fovy: float


def pose_of(view: CameraView, model: mujoco.MjModel, data: mujoco.MjData) -> Pose:
    """Return the pose of `view` in the current state (a fixed camera may be mounted on a body)."""
    if view.fixed is not None:
        camera = model.camera(view.fixed).id
        right, up, backward = data.cam_xmat[camera].reshape(3, 3).T
        own = data.cam_xpos[camera].copy()
        return Pose(
            own if view.position is None else np.array(view.position),
            right.copy(),
            up.copy(),
            -backward,
            float(model.cam_fovy[camera]),
        )
    azimuth, elevation = np.radians([view.azimuth, view.elevation])
    horizontal = np.array([np.cos(azimuth), np.sin(azimuth), 0.0])
    forward = np.cos(elevation) * horizontal + np.array([0.0, 0.0, np.sin(elevation)])
    right = np.array([np.sin(azimuth), -np.cos(azimuth), 0.0])
    position = np.array(view.lookat) - view.distance * forward
    return Pose(position, right, np.cross(right, forward), forward, view.fovy)


def mujoco_camera(view: CameraView, model: mujoco.MjModel) -> mujoco.MjvCamera:
    """Return the same viewpoint for MuJoCo's renderer. A free camera takes its field of view from
    `model.vis.global_.fovy`."""
    import mujoco

    camera = mujoco.MjvCamera()
    if view.fixed is not None:
        camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        camera.fixedcamid = model.camera(view.fixed).id
        return camera
    model.vis.global_.fovy = view.fovy
    camera.type = mujoco.mjtCamera.mjCAMERA_FREE
    camera.lookat[:] = view.lookat
    camera.distance, camera.azimuth, camera.elevation = view.distance, view.azimuth, view.elevation
    return camera


def projection_matrix(view: CameraView, pose: Pose, width: int, height: int) -> np.ndarray:
    """Return the 3x4 matrix P with (u w, v w, w) = P (x, y, z, 1), float64.

    u counts pixels to the right and v pixels down from the top left corner of the image: the pixel
    of column i covers [i, i + 1). w > 0 is the depth in meters along the viewing direction.
    """
    focal = height / 2 / np.tan(np.radians(pose.fovy) / 2)
    turn = -1.0 if view.upside_down else 1.0
    intrinsics = np.array([[turn * focal, 0, width / 2], [0, turn * focal, height / 2], [0, 0, 1]])
    rotation = np.stack([pose.right, -pose.up, pose.forward])
    return intrinsics @ np.hstack([rotation, -rotation @ pose.position[:, None]])


def project(projection: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Project world points [..., 3], meters, to pixels (u, v) [..., 2] by a 3x4 matrix. The depth's
    sign is not checked."""
    homogeneous = points @ projection[:, :3].T + projection[:, 3]
    return homogeneous[..., :2] / homogeneous[..., 2:]
