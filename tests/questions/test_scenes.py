"""Scenes: points, relations, gripper, movement and phases by hand, from the raw state alone."""

import numpy as np
import pytest
from data_episodes import NAMES, make_episode, overhead
from made_scenes import GRID, HORIZON, scene, still_episode

from roboalign.core.errors import RoboAlignError
from roboalign.episodes.episode import Camera
from roboalign.questions.facts.scene import AXES, EpisodeScenes


def test_points_by_hand():
    found = scene((0.0, 0.5, 0.2), (-0.49, 0.99, 0.0), (0.6, 0.5, 0.0))
    assert found.points == {"gripper": (8, 8), "object": (0, 0)}  # the goal is right of the image


def test_a_point_behind_the_camera_is_not_in_the_image():
    matrix = -overhead().projection  # the same pixels, negative depth
    camera = Camera("workspace", 32, 32, matrix)
    assert np.isnan(camera.pixels(np.zeros((2, 3)))).all()
    found = scene((0.0, 0.5, 0.2), (0, 0.4, 0), (0, 0.3, 0), cameras={"workspace": camera})
    assert found.points == {}


def test_relations_by_hand():
    found = scene((0.0, 0.5, 0.2), (0.1, 0.52, 0.02), (-0.1, 0.3, 0.5))
    assert found.relations == {"object": (1, 0, -1), "goal": (-1, -1, 1)}
    assert [AXES[axis][1] for axis in range(3)] == ["right", "forward", "up"]  # of +x, +y, +z
    assert found.distances["object"] == pytest.approx(np.sqrt(0.1**2 + 0.02**2 + 0.18**2), rel=1e-5)


@pytest.mark.parametrize(
    ("opening", "thing", "expected"),
    [
        (1.0, (0.0, 0.5, 0.2), "open"),
        (0.4, (0.0, 0.5, 0.18), "holding"),
        (0.4, (0.3, 0.5, 0.2), "closed"),
    ],
)
def test_gripper_by_hand(opening, thing, expected):
    assert scene((0.0, 0.5, 0.2), thing, (0.4, 0.9, 0), opening=opening).gripper == expected


@pytest.mark.parametrize(
    ("opening", "last", "expected"),
    [
        (1.0, 1.0, "close"),
        (1.0, -1.0, "keep"),
        (0.4, 1.0, "keep"),
        (0.4, -1.0, "open"),
        (0.4, 0.05, "keep"),
    ],
)
def test_gripper_command_by_hand(opening, last, expected):
    found = scene((0, 0.5, 0.2), (0, 0.5, 0), (0, 0.9, 0), opening=opening, action=(0, 0, 0, last))
    assert found.command == expected


def test_movement_is_the_mean_over_the_horizon():
    episode = still_episode((0, 0.5, 0.2), (0, 0.5, 0), (0, 0.9, 0))
    episode.actions[10 : 10 + HORIZON] = (1, -1, 0.1, 0)
    scenes = EpisodeScenes(episode, "workspace", GRID, HORIZON)
    assert scenes.at(10).move == (1, -1, 0)  # 0.1 is still
    assert scenes.at(5).move == (1, -1, 0)  # one step of six: 1/6 is above the threshold
    assert scenes.at(4).move == (0, 0, 0)


@pytest.mark.parametrize("seed", range(3))
def test_an_episode_in_liberos_axes_has_the_same_scenes(seed):
    """x forward, y to the left, the table at 0.9 m: positions, actions and camera are turned, what is true is not."""
    plain, turned = make_episode(seed=seed), make_episode(seed=seed)
    matrix = np.array([[0, 1, 0], [-1, 0, 0], [0, 0, 1.0]])  # (right, forward, up) -> (x, y, z)
    table = np.array([0, 0, 0.9])
    assert turned.privileged is not None
    columns = [
        NAMES.index(f"{body}.{axis}") for body in ("gripper", "object", "goal") for axis in "xyz"
    ]
    points = plain.privileged[:, columns].reshape(30, 3, 3) @ matrix.T + table
    turned.privileged[:, columns] = points.reshape(30, 9)
    turned.privileged = np.column_stack([turned.privileged, np.full(30, 0.9, np.float32)])
    turned.privileged_names = (*NAMES, "table.z")
    turned.actions[:, :3] = plain.actions[:, :3] @ matrix.T
    turned.axes = ("forward", "left", "up")
    back = np.eye(4)
    back[:3, :3], back[:3, 3] = matrix.T, -matrix.T @ table
    turned.cameras = {
        "workspace": Camera("workspace", 32, 32, plain.cameras["workspace"].projection @ back)
    }
    scenes = [EpisodeScenes(episode, "workspace", GRID, HORIZON) for episode in (plain, turned)]
    for t in range(30):
        one, other = (each.at(t) for each in scenes)
        assert (other.relations, other.move, other.command) == (
            one.relations,
            one.move,
            one.command,
        )
        assert (other.points, other.trace, other.phase) == (one.points, one.trace, one.phase)
        assert other.height == pytest.approx(one.height, abs=1e-6)


def test_what_the_simulator_says_of_holding_is_believed():
    """Half a frame wide, or held by its end: opening and distance alone say neither."""
    episode = still_episode(
        (0, 0.5, 0.2), (0, 0.5, 0.08), (0, 0.9, 0), opening=0.8, action=(0, 0, 0, 1)
    )
    episode.privileged = np.column_stack([episode.privileged, np.repeat([0, 1], 15)]).astype(
        np.float32
    )
    episode.privileged_names = (*NAMES, "gripper.holding")
    scenes = EpisodeScenes(episode, "workspace", GRID, HORIZON)
    assert (scenes.at(14).gripper, scenes.at(14).command, scenes.at(14).phase) == (
        "open",
        "close",
        "reach",
    )
    assert (scenes.at(15).gripper, scenes.at(15).command, scenes.at(15).phase) == (
        "holding",
        "keep",
        "grasp",
    )


def test_phases_follow_the_episode():
    episode = make_episode("puck-push", 0, steps=30)
    names = [EpisodeScenes(episode, "workspace", GRID, HORIZON).at(t).phase for t in range(30)]
    assert names == sorted(names, key=["reach", "grasp", "move", "done"].index)
    assert names[0] == "reach" and names[25] == names[26] == "move" and names[27:] == ["done"] * 3


def test_an_object_that_the_instruction_leaves_out_is_no_target():
    told = scene((0, 0.5, 0.2), (0, 0.5, 0), (0, 0.9, 0))
    untold = scene(
        (0, 0.5, 0.2), (0, 0.5, 0), (0, 0.9, 0), instruction="Move the gripper to the target."
    )
    assert (told.target, untold.target) == ("object", "goal")


def test_scenes_refuse_what_they_cannot_read():
    with pytest.raises(RoboAlignError, match="no camera 'side'"):
        EpisodeScenes(make_episode(), "side", GRID, HORIZON)
    blind = make_episode()
    blind.privileged, blind.privileged_names = None, ()
    with pytest.raises(RoboAlignError, match=r"no gripper.x, y, z and opening"):
        EpisodeScenes(blind, "workspace", GRID, HORIZON)
    unplaced = make_episode()
    unplaced.cameras = {"workspace": Camera("workspace", 32, 32)}
    with pytest.raises(RoboAlignError, match="no projection matrix"):
        EpisodeScenes(unplaced, "workspace", GRID, HORIZON)
    assert NAMES[3] == "gripper.opening"
