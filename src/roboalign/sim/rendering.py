"""Render offscreen images of a MuJoCo model, fast on one core.

Mode `default` draws the scene as the model asks. Mode `fast` leaves out shadows, multisampling and
reflections, which together cost ten times the rest in a software renderer, and does not send geoms
outside the image to the renderer. Pixels differ between the modes, so train and evaluate in the
same one.
"""

import atexit
import functools
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import mujoco
import numpy as np

from roboalign.core.errors import RoboAlignError
from roboalign.sim.cameras import CameraView, Pose, RenderMode, mujoco_camera, pose_of

BACKENDS = ("egl", "osmesa")
_PROBE = """
import sys, importlib, mujoco
context = importlib.import_module("mujoco." + sys.argv[1]).GLContext(16, 16)
context.make_current()
mujoco.MjrContext(mujoco.MjModel.from_xml_string("<mujoco/>"), mujoco.mjtFontScale.mjFONTSCALE_100)
"""
# MuJoCo's default options do not draw geoms of this group.
_HIDDEN_GROUP = 5
_MAX_GEOMS = 2000


@functools.cache
def gl_backend() -> str:
    """Return the OpenGL backend that works here: `MUJOCO_GL` if it is set, else EGL, else OSMesa.

    Each is tried in a separate process, because a process that has loaded one cannot load the
    other. `MUJOCO_GL` is set to the answer, for child processes. Raises RoboAlignError if none
    works.
    """
    wanted = os.environ.get("MUJOCO_GL", "").lower()
    candidates = (wanted,) if wanted in BACKENDS else BACKENDS
    for backend in candidates:
        environment = os.environ | {"MUJOCO_GL": backend}
        environment.pop("PYOPENGL_PLATFORM", None)
        command = [sys.executable, "-c", _PROBE, backend]
        probe = subprocess.run(command, env=environment, capture_output=True, check=False)
        if probe.returncode == 0:
            os.environ["MUJOCO_GL"] = backend
            return backend
    raise RoboAlignError(
        f"no offscreen OpenGL works (tried {', '.join(candidates)})",
        where="MUJOCO_GL",
        fix="apt-get install libegl1 libegl-mesa0 libgl1-mesa-dri (or libosmesa6 for MUJOCO_GL=osmesa)",
    )


@functools.cache
def _gl_context() -> Any:
    """Make this process's single OpenGL context current and return it. All models are drawn in
    it."""
    # Otherwise Mesa's software renderer starts a thread per core in every worker, and they slow
    # each other down.
    os.environ.setdefault("LP_NUM_THREADS", "0")
    context = import_module(f"mujoco.{gl_backend()}").GLContext(64, 64)
    context.make_current()
    # MuJoCo frees it only while Python takes its own modules apart, with a traceback.
    atexit.register(context.free)
    return context


class Renderer:
    """Draw the states of one model, and of identical copies of it, into square uint8 images."""

    def __init__(self, model: mujoco.MjModel, size: int, mode: RenderMode) -> None:
        _gl_context()
        self.size, self.fast = size, mode == "fast"
        model.vis.global_.offwidth = model.vis.global_.offheight = size
        if self.fast:
            model.light_castshadow[:] = 0
            model.mat_reflectance[:] = 0
            model.vis.quality.offsamples = 0
            model.vis.quality.shadowsize = 0
        self.context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
        self.scene = mujoco.MjvScene(model, maxgeom=_MAX_GEOMS)
        if self.fast:
            for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
                self.scene.flags[flag] = 0
        self.options = mujoco.MjvOption()
        self.viewport = mujoco.MjrRect(0, 0, size, size)

    def render(self, model: mujoco.MjModel, data: mujoco.MjData, view: CameraView) -> np.ndarray:
        """Return the image of the current state from `view`: uint8 [size, size, 3], RGB,
        upright."""
        camera = mujoco_camera(view, model)
        groups = model.geom_group.copy()
        if self.fast:
            inside = geoms_in_view(model, data, pose_of(view, model, data))
            model.geom_group[:] = np.where(inside, groups, _HIDDEN_GROUP)
        with _moved(view, model, data):
            everything = mujoco.mjtCatBit.mjCAT_ALL.value
            mujoco.mjv_updateScene(model, data, self.options, None, camera, everything, self.scene)
        model.geom_group[:] = groups
        # All models share one OpenGL context: without this the first image after another model's
        # image is stale.
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self.context)
        mujoco.mjr_render(self.viewport, self.scene, self.context)
        pixels = np.empty((self.size, self.size, 3), np.uint8)
        mujoco.mjr_readPixels(pixels, None, self.viewport, self.context)
        # OpenGL counts rows from the bottom; a camera mounted upside down is turned by 180 degrees as well.
        return np.ascontiguousarray(pixels[:, ::-1] if view.upside_down else pixels[::-1])

    def close(self) -> None:
        """Free the model's meshes and textures in the OpenGL context."""
        self.context.free()


@contextmanager
def _moved(view: CameraView, model: mujoco.MjModel, data: mujoco.MjData) -> Iterator[None]:
    """Move a fixed camera to where its view has it, within this context."""
    if view.fixed is None or view.position is None:
        yield
        return
    place = data.cam_xpos[model.camera(view.fixed).id]
    own = place.copy()
    place[:] = view.position
    try:
        yield
    finally:
        place[:] = own


_CORNERS = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], np.float64)


def geoms_in_view(model: mujoco.MjModel, data: mujoco.MjData, pose: Pose) -> np.ndarray:
    """Return bool [ngeom]: False only if the geom's bounding box is entirely beyond one side of a
    square image.

    Leaving these geoms out changes no pixel. Planes are unbounded and always True.
    """
    center, half = model.geom_aabb[:, :3], model.geom_aabb[:, 3:]
    corners = center[:, None] + half[:, None] * _CORNERS
    corners = (
        corners @ data.geom_xmat.reshape(-1, 3, 3).transpose(0, 2, 1)
        + data.geom_xpos[:, None]
        - pose.position
    )
    right, up, depth = (corners @ axis for axis in (pose.right, pose.up, pose.forward))
    reach = depth * np.tan(np.radians(pose.fovy) / 2)
    beyond = [(side > reach).all(1) for side in (right, -right, up, -up)]
    return ~np.any(beyond, axis=0) | (model.geom_type == mujoco.mjtGeom.mjGEOM_PLANE)
