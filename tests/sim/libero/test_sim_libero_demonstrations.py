"""Demonstrations on LIBERO: what a record holds, that it replays, and that no measured state becomes one."""

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("libero.libero", reason="LIBERO is optional: requirements-libero.lock")

from roboalign.actions.axes import KNOWN_AXES, matrix_of
from roboalign.core.errors import RoboAlignError
from roboalign.episodes.formats.lerobot import read_lerobot
from roboalign.questions.ask import Question, ask, survey_world
from roboalign.questions.facts.scene import EpisodeScenes
from roboalign.questions.registry import types_from
from roboalign.run.stages import collect as stage
from roboalign.sim.collect import CollectConfig, Collected, EpisodeRecord, collect_episode
from roboalign.sim.libero.demonstrations import (
    DemonstratedLibero,
    DemonstratedLiberoEnvironment,
    goal_points,
)
from roboalign.sim.libero.environment import Libero
from roboalign.sim.libero.protocol import LiberoConfig
from roboalign.sim.libero.suites import FIRST_PLACEMENT

SIZE = 128
SOUP = "libero_object/pick_up_the_alphabet_soup_and_place_it_in_the_basket"
CONFIG = LiberoConfig(render="fast", render_size=SIZE, image_size=SIZE)
BENCHMARK = DemonstratedLibero("libero_object", CONFIG)


@pytest.fixture(scope="module")
def environment() -> Iterator[DemonstratedLiberoEnvironment]:
    built = BENCHMARK.make(SOUP)
    yield built
    built.close()


@pytest.mark.parametrize(
    ("goals", "points"),
    [
        (
            [["in", "milk_1", "basket_1_contain_region"]],
            {"object": ("in", "milk_1"), "goal": ("", "basket_1_contain_region")},
        ),
        ([["turnon", "flat_stove_1"]], {"object": ("turnon", "flat_stove_1")}),
        (
            [["on", "pot_1", "stove_1"], ["on", "pot_2", "stove_1"]],
            {"object": ("on", "pot_1"), "object2": ("on", "pot_2"), "goal": ("", "stove_1")},
        ),
        (
            [["in", "mug_1", "oven_1_inside"], ["close", "oven_1"]],
            {
                "object": ("in", "mug_1"),
                "object2": ("close", "oven_1"),
                "goal": ("", "oven_1_inside"),
            },
        ),
        (
            [["in", "bowl_1", "drawer"], ["close", "drawer"], ["on", "bowl_1", "top"]],
            {"object": ("in", "bowl_1"), "object2": ("close", "drawer"), "goal": ("", "top")},
        ),
    ],
)
def test_the_points_of_a_goal(goals: list[list[str]], points: dict[str, tuple[str, str]]) -> None:
    assert goal_points(goals) == points


def test_stored_initial_states_are_refused(environment: DemonstratedLiberoEnvironment) -> None:
    for seed in (0, 49, FIRST_PLACEMENT - 1):
        with pytest.raises(RoboAlignError, match="stored initial states only measure"):
            environment.reset(seed)


@pytest.fixture(scope="module")
def record(environment: DemonstratedLiberoEnvironment) -> EpisodeRecord:
    config = CollectConfig(noise=0.0, max_steps=300, steps_after_success=0)
    found = collect_episode(BENCHMARK, environment, FIRST_PLACEMENT, config)
    assert isinstance(found, EpisodeRecord)
    return found


def test_a_demonstration_is_solved_complete_and_replays_in_the_measured_environment(
    record: EpisodeRecord,
) -> None:
    length = len(record.actions)
    assert (
        record.success_step == length - 1
        and record.episode_id == f"{SOUP}/seed-1000"
        and record.fps == 20
    )
    assert (
        record.actions.shape == (length, BENCHMARK.action_dim) and np.abs(record.actions).max() <= 1
    )
    assert (
        record.state.shape == (length, BENCHMARK.state_dim) == (length, len(BENCHMARK.state_names))
    )
    assert {name: frames.shape for name, frames in record.frames.items()} == dict.fromkeys(
        BENCHMARK.cameras, (length, SIZE, SIZE, 3)
    )
    assert record.privileged.shape == (length, len(record.privileged_names)) == (length, 12)
    assert record.nouns.keys() == {"object", "goal", "scene"}
    assert (record.nouns["object"], record.nouns["goal"]) == ("alphabet soup", "basket")
    assert {"alphabet soup", "basket"} < {*record.nouns["scene"].split(", ")}
    # The fingers hold the soup exactly while it is off the floor: the hand lifts nothing else here.
    columns = dict(zip(record.privileged_names, record.privileged.T, strict=True))
    lifted = columns["object.z"] > columns["object.z"][0] + 0.01
    assert lifted.sum() > 20 and columns["gripper.holding"][lifted].mean() > 0.9
    assert (
        columns["gripper.holding"][:20].sum() == 0 and (columns["gripper.opening"][:20] > 0.9).all()
    )
    assert (
        np.ptp(columns["table.z"]) == 0 and abs(columns["table.z"][0]) < 0.005
    )  # libero_object stands on the floor
    # The label was executed (no noise): the same actions solve the episode where policies are measured.
    measured = Libero("libero_object", CONFIG).make(SOUP)
    measured.reset(FIRST_PLACEMENT)
    np.testing.assert_array_equal(measured.state(), record.state[0])
    assert [measured.step(action) for action in record.actions].index(True) == record.success_step
    measured.close()


def test_questions_about_a_collected_set_are_right(
    record: EpisodeRecord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stored by the stage and read back: what is asked, against LIBERO's own x (forward) and y (to the left)."""
    monkeypatch.setattr(
        stage, "collect_episodes", lambda *_, **__: iter([Collected(SOUP, record, ())])
    )
    stage._collect_set(tmp_path / "align", [SOUP], BENCHMARK, CollectConfig())
    (episode,) = read_lerobot(tmp_path / "align")
    assert episode.axes == ("forward", "left", "up") and episode.nouns == record.nouns
    scenes = EpisodeScenes(episode, "agentview", 32, 8)
    hand, soup, basket = (episode.position(body) for body in ("gripper", "object", "goal"))
    assert hand is not None and soup is not None and basket is not None
    for t in range(len(episode) - 8):
        scene, (x, y, z), mean = (
            scenes.at(t),
            soup[t] - hand[t],
            episode.actions[t : t + 8].mean(axis=0),
        )
        assert scene.relations["object"] == tuple(
            int(np.sign(d) * (abs(d) > 0.03)) for d in (-y, x, z)
        )
        assert scene.move == tuple(
            int(np.sign(d) * (abs(d) > 0.15)) for d in (-mean[1], mean[0], mean[2])
        )
    start = scenes.at(
        0
    )  # both stand on the floor: what is farther left in the world is so in the image
    assert abs(soup[0, 1] - basket[0, 1]) > 0.1
    assert (start.points["object"][0] < start.points["goal"][0]) == (soup[0, 1] > basket[0, 1])
    assert (
        list(dict.fromkeys(scenes.gripper))[:1] == ["open"] and scenes.gripper.count("holding") > 20
    )
    assert list(dict.fromkeys(scenes.phases)) == [
        "reach",
        "grasp",
        "move",
    ]  # nothing was recorded after the success
    world = survey_world([episode])
    asked = {
        name
        for name in types_from("scene")
        for t in range(0, len(episode), 5)
        if isinstance(ask(name, "think", (scenes.at(t), world), random.Random(t)), Question)
    }
    # Of one task no other is known: no thing and no instruction that is not of this scene.
    assert set(types_from("scene")) - asked == {
        "presence",
        "object_choice",
        "object_name",
        "task_choice",
    }


@pytest.mark.parametrize("rotate", [True, False])
def test_the_projection_shows_where_an_object_is(
    environment: DemonstratedLiberoEnvironment, rotate: bool
) -> None:
    # An image with the object less one without it: what changed is where the projection puts it.
    turned = DemonstratedLiberoEnvironment(
        environment.task, CONFIG.model_copy(update={"rotate": rotate})
    )
    turned.reset(FIRST_PLACEMENT + 7)
    body = turned.simulation.obj_body_id["alphabet_soup_1"]
    point = np.append(turned.data.xpos[body], 1.0)
    projection = turned.camera_geometry()["agentview"].projection
    assert projection is not None and turned.camera_geometry()["wrist"].projection is None
    u, v, depth = projection @ point
    # The robot's right is on the right of the image that is turned, forward is towards the camera.
    right, forward, up = matrix_of(
        KNOWN_AXES[BENCHMARK.action_space]
    )  # rows: these directions in x, y, z
    moved = {
        way: projection @ (point + np.append(0.05 * towards, 0))
        for way, towards in (("right", right), ("forward", forward), ("up", up))
    }
    assert np.sign(moved["right"][0] / moved["right"][2] - u / depth) == (1 if rotate else -1)
    falls = {
        way: np.sign(w[1] / w[2] - v / depth) for way, w in moved.items()
    }  # 1: lower in the image
    assert (falls["forward"], falls["up"]) == ((1, -1) if rotate else (-1, 1))
    before = turned.render()["agentview"].astype(int)
    joint = turned.simulation.objects_dict["alphabet_soup_1"].joints[-1]
    turned.data.joint(joint).qpos[2] -= 5.0
    turned.simulation.sim.forward()
    changed = np.abs(turned.render()["agentview"] - before).sum(-1) > 60
    turned.close()
    rows, columns = np.nonzero(changed)
    assert len(rows) > 20 and depth > 0
    assert abs(np.median(columns) - u / depth) < 4 and abs(np.median(rows) - v / depth) < 5
