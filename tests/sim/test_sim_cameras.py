"""Projection matrices against what is drawn, and the fast mode against the slow one."""

import mujoco
import numpy as np
import pytest

from roboalign.core.errors import RoboAlignError
from roboalign.sim import rendering
from roboalign.sim.cameras import VIEWS, CameraView, Pose, pose_of, project, projection_matrix
from roboalign.sim.metaworld.environment import MetaWorld, MetaWorldConfig

SIZE = 256
BOTH = MetaWorldConfig(cameras=("workspace", "corner2"), image_size=SIZE)


def test_projection_by_hand():
    # At the origin, looking along +y with z up; 90 degrees see as far sideways as ahead.
    pose = Pose(
        np.zeros(3), np.array([1.0, 0, 0]), np.array([0, 0, 1.0]), np.array([0, 1.0, 0]), 90.0
    )
    points = np.array([[0, 2, 0], [2, 2, 0], [-1, 2, 2], [0, 4, -4]], np.float64)
    pixels = project(projection_matrix(CameraView("v"), pose, 64, 64), points)
    np.testing.assert_allclose(pixels, [[32, 32], [64, 32], [16, 0], [32, 64]], atol=1e-9)
    turned = project(projection_matrix(CameraView("v", upside_down=True), pose, 64, 64), points)
    np.testing.assert_allclose(turned, 64 - pixels, atol=1e-9)


@pytest.fixture(scope="module")
def reach():
    environment = MetaWorld(BOTH).make("reach-v3")
    environment.reset(0)
    return environment


@pytest.mark.parametrize("camera", ["workspace", "corner2"])
@pytest.mark.parametrize(
    "point", [(0.0, 0.6, 0.2), (0.2, 0.8, 0.1), (0.25, 0.5, 0.02), (0.3, 0.8, 0.3)]
)
def test_a_marker_is_drawn_where_the_matrix_says(reach, camera, point):
    site = reach.model.site("goal").id
    reach.model.site_rgba[site] = (1, 0, 1, 1)
    reach.model.site_size[site] = 0.02
    reach.data.site_xpos[site] = point
    image = reach.render()[camera].astype(int)
    rows, columns = np.nonzero((image[..., 0] > 50) & (image[..., 2] > 50) & (image[..., 1] < 40))
    assert len(rows) > 10
    expected = project(reach.camera_geometry()[camera].projection, np.array(point))
    np.testing.assert_allclose([columns.mean() + 0.5, rows.mean() + 0.5], expected, atol=1.0)


def test_a_moved_camera_is_the_models_at_another_place():
    """What lerobot does: the camera is moved in the model, and the image turned by 180 degrees."""
    environment = MetaWorld(
        MetaWorldConfig(cameras=("corner2_near", "corner2"), image_size=SIZE)
    ).make("reach-v3")
    environment.reset(0)
    images, geometry = environment.render(), environment.camera_geometry()
    camera = environment.model.camera("corner2").id
    environment.model.cam_pos[camera] = (0.75, 0.075, 0.7)
    mujoco.mj_camlight(environment.model, environment.data)
    np.testing.assert_array_equal(environment.render()["corner2"], images["corner2_near"])
    assert (images["corner2"] != images["corner2_near"]).mean() > 0.2
    low, high = project(
        geometry["corner2_near"].projection, np.array([[0.0, 0.6, 0.0], [0.0, 0.6, 0.3]])
    )
    assert high[1] < low[1] - 10


def test_up_is_up_in_both_cameras(reach):
    for geometry in reach.camera_geometry().values():
        low, high = project(geometry.projection, np.array([[0.0, 0.6, 0.0], [0.0, 0.6, 0.3]]))
        assert high[1] < low[1] - 10


@pytest.mark.parametrize("task", ["reach-v3", "door-open-v3", "stick-push-v3"])
def test_leaving_out_geoms_beyond_the_image_changes_no_pixel(task, monkeypatch):
    environment = MetaWorld(BOTH).make(task)
    environment.reset(1)
    expert = environment.expert()
    for _ in range(3):
        for _ in range(12):
            environment.step(expert())
        pose = pose_of(VIEWS["workspace"], environment.model, environment.data)
        assert not rendering.geoms_in_view(environment.model, environment.data, pose).all(), (
            "nothing left out"
        )
        lean = environment.render()
        with monkeypatch.context() as patch:
            patch.setattr(
                rendering, "geoms_in_view", lambda model, data, pose: np.ones(model.ngeom, bool)
            )
            full = environment.render()
        for camera in lean:
            np.testing.assert_array_equal(lean[camera], full[camera])


def test_default_mode_draws_shadows_that_fast_mode_leaves_out():
    images = []
    for mode in ("fast", "default"):
        environment = MetaWorld(MetaWorldConfig(render=mode)).make("drawer-open-v3")
        environment.reset(0)
        images.append(environment.render()["workspace"].astype(int))
    difference = np.abs(images[0] - images[1]).mean()
    assert 1 < difference < 40, "other light, same scene"


def test_rendering_does_not_disturb_the_simulation(reach):
    reach.reset(2)
    groups = reach.model.geom_group.copy()
    positions = []
    for look in (False, True):
        reach.reset(2)
        for _ in range(5):
            reach.step(np.array([0.5, 0.5, -0.5, 0.0]))
            if look:
                reach.render()
        positions.append(reach.data.qpos.copy())
    np.testing.assert_array_equal(*positions)
    np.testing.assert_array_equal(groups, reach.model.geom_group)


def test_environments_of_one_task_share_a_renderer_and_draw_their_own_state():
    world = MetaWorld()
    first, second = world.make("push-v3"), world.make("push-v3")
    first.reset(0)
    second.reset(1)
    alone = first.render()["workspace"]
    assert not np.array_equal(alone, second.render()["workspace"])
    np.testing.assert_array_equal(alone, first.render()["workspace"])


def test_no_opengl_names_the_packages(monkeypatch):
    monkeypatch.setattr(rendering, "_PROBE", "raise SystemExit(1)")
    with pytest.raises(RoboAlignError, match="libegl1 libegl-mesa0 libgl1-mesa-dri"):
        rendering.gl_backend.__wrapped__()
