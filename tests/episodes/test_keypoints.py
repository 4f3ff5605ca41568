"""Keypoints against values worked out by hand."""

import dataclasses

import numpy as np
import pytest
from data_episodes import make_episode

from roboalign.core.errors import RoboAlignError
from roboalign.episodes.episode import Camera, Episode, encode_png
from roboalign.episodes.keypoints import BODIES, keypoints

# Looks down: u = 10 x + 20, v = 20 - 10 y in an image of 40 x 20 pixels, depth z + 1.
CAMERA = Camera("top", 40, 20, np.array([[10.0, 0, 20, 20], [0, -10, 20, 20], [0, 0, 1, 1]]))


def episode(
    gripper: list[list[float]], goal: list[float], *, task: str = "reach", number: int = 0
) -> Episode:
    steps = len(gripper)
    names = tuple(f"{body}.{axis}" for body in ("gripper", "goal") for axis in "xyz")
    png = encode_png(np.zeros((20, 40, 3), np.uint8))
    return Episode(
        episode_id=f"{task}/{number}",
        task=task,
        instruction="go",
        fps=10,
        actions=np.zeros((steps, 4), np.float32),
        state=np.zeros((steps, 4), np.float32),
        images={"top": [png] * steps},
        cameras={"top": CAMERA},
        privileged=np.array([[*row, *goal] for row in gripper], np.float32),
        privileged_names=names,
    )


def test_places_by_hand() -> None:
    points = keypoints([episode([[0, 1, 0], [1, 0.5, 1]], goal=[-1, 1, 0])], "top", every=1)
    assert BODIES == ("gripper", "object", "object2", "goal")
    # t=0: u = 20, v = 10 at depth 1. t=1: (10 + 40, -5 + 40) / 2 = (25, 17.5). Divided by (40, 20).
    np.testing.assert_allclose(points.pixels[:, 0], [[0.5, 0.5], [0.625, 0.875]])
    np.testing.assert_allclose(points.pixels[:, 3], [[0.25, 0.5]] * 2)
    np.testing.assert_allclose(points.positions[:, 0], np.array([[0, 1, 0], [1, 0.5, 1]]))
    assert points.known.tolist() == [[True, False, False, True]] * 2  # the task has no objects
    assert not points.pixels[:, 1:3].any() and not points.positions[:, 1:3].any()
    assert points.pixels.dtype == points.positions.dtype == np.float32


@pytest.mark.parametrize(
    "place",
    [[2.1, 1, 0], [-2.1, 1, 0], [0, 2.1, 0], [0, -0.1, 0], [0, 1, -1], [0, 1, -2], [np.nan, 1, 0]],
    ids=["right", "left", "above", "below", "depth 0", "behind", "no number"],
)
def test_a_body_outside_the_image_is_unknown(place: list[float]) -> None:
    points = keypoints([episode([[0, 1, 0], place], goal=[0, 1, 0])], "top", every=1)
    assert points.known[:, 0].tolist() == [True, False]
    assert not points.pixels[1, 0].any() and not points.positions[1, 0].any()
    assert np.isfinite(points.pixels).all() and np.isfinite(points.positions).all()


def test_queries_tell_tasks_apart_and_every_nth_frame_is_used() -> None:
    inside = [[0, 1, z / 10] for z in range(5)]
    both = [
        episode(inside, [0, 1, 0], task="reach"),
        episode(inside, [0, 1, 0], task="push", number=1),
    ]
    points = keypoints(both, "top", every=2)
    assert [t for _, t in points.frames] == [0, 2, 4, 0, 2, 4]
    assert [frame[0] for frame in points.frames[::3]] == both
    assert points.queries[0].tolist() == [4, 5, 6, 7]  # reach comes after push
    assert points.queries[3].tolist() == [0, 1, 2, 3] and points.n_queries == 8
    np.testing.assert_allclose(points.positions[:3, 0, 2], [0, 0.2, 0.4])


def test_they_agree_with_the_camera_on_other_episodes() -> None:
    one = make_episode("puck-push", seed=3)
    points = keypoints([one], "workspace", every=3)
    pixels = one.cameras["workspace"].pixels(one.position("object")[::3])
    np.testing.assert_allclose(points.pixels[:, 1] * 32, pixels, rtol=1e-5)
    assert points.known[:, [0, 1, 3]].all() and not points.known[:, 2].any()


def test_nothing_to_learn_from_is_an_error() -> None:
    outside = [episode([[9, 9, 0]], goal=[9, 9, 0])]
    blank = [dataclasses.replace(make_episode(), privileged=None, privileged_names=())]
    for episodes, camera in ((outside, "top"), (blank, "workspace"), ([], "top")):
        with pytest.raises(RoboAlignError, match="no frame shows a body"):
            keypoints(episodes, camera, every=1)
    unknown = dataclasses.replace(outside[0], cameras={"top": Camera("top", 40, 20)})
    with pytest.raises(RoboAlignError, match="no projection matrix"):
        keypoints([unknown], "top", every=1)
