"""Experts and demonstrations: moves by numbers, starts by the symbolic rules, an episode on the fake checkout."""

import numpy as np
import pytest

from roboalign.core.errors import RoboAlignError
from roboalign.sim.base import Task
from roboalign.sim.calvin import demonstrations
from roboalign.sim.calvin.chains import chain_start, initial_states, is_chain, next_states
from roboalign.sim.calvin.checkout import open_checkout
from roboalign.sim.calvin.config import CalvinConfig
from roboalign.sim.calvin.demonstrations import DemonstratedCalvinEnvironment
from roboalign.sim.calvin.environment import CHAINS
from roboalign.sim.calvin.experts.catalog import expert_moves, expert_tasks
from roboalign.sim.calvin.experts.hand import Hand, fingers, nearest_grasp, reach, wrapped
from roboalign.sim.calvin.starts import draw_preparation, drawn_start, generator_of
from roboalign.sim.collect import CollectConfig, collect_episode
from roboalign.sim.registry import find_benchmark


class Free:
    """A hand that is at once where it is told to be, 2 cm or 0.05 rad an action."""

    def __init__(self):
        self.pose = np.array([0.1, -0.2, 0.5, np.pi, 0.0, 1.5, 0.08] + [0.0] * 8)
        self.blocked = False
        self.place = self.pose[:3].copy()

    def robot(self):
        return self.pose.copy()

    def commanded(self):
        return self.place.copy(), self.pose[3:6].copy()

    def step(self, action):
        self.place = self.place + 0.02 * action[:3]
        if not self.blocked:
            self.pose[:3] = self.place
            self.pose[3:6] += 0.05 * action[3:6]


def test_a_hand_goes_straight_to_its_goal_and_stops_there():
    free = Free()
    goal, start = np.array([0.3, -0.1, 0.45]), free.pose[:3].copy()
    for action in reach(Hand(free), goal, 1.5, 1.0, within=0.005):
        assert action.dtype == np.float32 and action.shape == (7,) and np.abs(action).max() <= 1
        free.step(action)
        along = (free.pose[:3] - start) @ (goal - start) / np.sum((goal - start) ** 2)
        assert np.allclose(free.pose[:3], start + along * (goal - start), atol=1e-6)
    assert np.linalg.norm(free.pose[:3] - goal) < 0.005


def test_a_blocked_hand_is_led_by_a_bounded_distance():
    free = Free()
    free.blocked = True
    for action in reach(Hand(free), np.array([1.0, -0.2, 0.5]), 1.5, 1.0, most=40):
        free.step(action)
    assert np.allclose(free.place - free.pose[:3], [0.06, 0, 0], atol=1e-6)


def test_fingers_move_alone():
    actions = list(fingers(Hand(Free()), -1.0, 5))
    assert len(actions) == 5 and all(np.allclose(a, [0, 0, 0, 0, 0, 0, -1]) for a in actions)


def test_a_grasp_is_a_quarter_turn_from_the_block_and_next_to_the_hand():
    for block in np.linspace(-7, 7, 29):
        yaw = nearest_grasp(1.5, block)
        assert abs(yaw - 1.5) <= np.pi / 4 + 1e-9
        assert np.isclose(wrapped(4 * (yaw - block)), 0, atol=1e-6)


def test_34_tasks_have_an_expert_and_others_are_refused():
    tasks = expert_tasks()
    assert len(tasks) == len(set(tasks)) == 34
    hand = Hand(Free())
    for task in tasks[:12]:
        assert hasattr(expert_moves(task, hand), "__next__")
    with pytest.raises(RoboAlignError, match="no expert does 'lift_green_block_table'"):
        expert_moves("lift_green_block_table", hand)


RULES = {
    "open_it": [{"condition": {"drawer": "closed", "grasped": 0}, "effect": {"drawer": "open"}}],
    "shut_it": [{"condition": {"drawer": "open", "grasped": 0}, "effect": {"drawer": "closed"}}],
    "lift_it": [
        {
            "condition": {"red_block": "table", "drawer": "open", "grasped": 0},
            "effect": {"red_block": "grasped", "grasped": 1},
        }
    ],
    "drop_it": [
        {
            "condition": {"red_block": "grasped", "grasped": 1},
            "effect": {"red_block": "drawer", "grasped": 0},
        }
    ],
    "never": [{"condition": {"drawer": "burnt"}, "effect": {}}],
}


@pytest.mark.parametrize("task", ["open_it", "lift_it", "drop_it"])
def test_what_comes_before_a_task_allows_it(task):
    seen = set()
    for seed in range(20):
        state, before = draw_preparation(task, generator_of(task, seed), RULES)
        assert is_chain(state, [*before, task], RULES)
        seen.add(before)
    assert len(seen) > 1, "starts differ"
    again = draw_preparation(task, generator_of(task, 3), RULES)
    assert again == draw_preparation(task, generator_of(task, 3), RULES)


def test_a_task_that_no_state_allows_is_refused():
    assert not next_states(initial_states()[0], RULES["never"])
    with pytest.raises(RoboAlignError, match="no state allows 'never'"):
        draw_preparation("never", generator_of("never", 0), RULES)


def test_demonstrated_starts_are_no_measured_ones(fake):
    poses = open_checkout(str(fake)).initial_poses()
    for seed, state in enumerate(initial_states()[:40]):
        measured = chain_start(state, poses)
        drawn = drawn_start(state, poses, generator_of("go_up", seed))
        assert drawn.things == measured.things and drawn.robot == measured.robot
        for color, pose in drawn.blocks.items():
            assert pose[5] != measured.blocks[color][5]
            assert np.abs(np.subtract(pose[:3], measured.blocks[color][:3])).max() <= 0.015


WAYS = {
    "up": (2, 1.0),
    "down": (2, -1.0),
    "right": (0, 1.0),
    "left": (0, -1.0),
    "away": (1, 1.0),
    "near": (1, -1.0),
}


def collected(fake, monkeypatch, path=("up",), after=1):
    """An episode of `go_up` whose expert goes these ways, the last one on and on; others do what their name says."""

    def moves(task, hand):
        ways = path if task == "go_up" else (task.removeprefix("go_"),)
        for number in range(1000):
            axis, value = WAYS[ways[min(number, len(ways) - 1)]]
            action = np.zeros(7, np.float32)
            action[axis] = value
            yield action

    monkeypatch.setattr(demonstrations, "expert_moves", moves)
    monkeypatch.setattr(DemonstratedCalvinEnvironment, "_object", lambda self: np.zeros(3))
    config = CalvinConfig(checkout=str(fake), render="tiny", image_size=16, cameras=("static",))
    benchmark = find_benchmark("calvin").demonstrated(config)
    task = Task("calvin/go_up", "move the hand up", {"object": "block"})
    environment = DemonstratedCalvinEnvironment(task, config)
    settings = CollectConfig(noise=0.0, steps_after_success=after, max_steps=9)
    try:
        return collect_episode(benchmark, environment, 1000, settings)
    finally:
        environment.close()


def test_an_episode_is_recorded_and_replayed(fake, monkeypatch):
    """On the fake checkout the expert of `go_up` rises; other tasks come before it, unrecorded."""
    record = collected(fake, monkeypatch)
    assert record.success_step == 2 and record.actions.shape == (4, 7)
    assert np.array_equal(record.actions[:, 2], np.ones(4))
    assert record.frames["static"].shape == (4, 16, 16, 3)
    assert np.allclose(np.diff(record.privileged[:, 2]), 0.02, atol=1e-6)
    assert (record.episode_id, record.task) == ("calvin/go_up:1000", "calvin/go_up")


def test_the_oracle_names_an_episode_and_not_the_expert(fake, monkeypatch):
    """3 steps up solve `go_up`. What counts is what is done at the end of the recording: 5 cm in which directions."""
    renamed = collected(fake, monkeypatch, ["up"] * 3 + ["down", "right"], after=4)
    assert (renamed.task, renamed.instruction) == ("calvin/go_right", "move the hand right")
    assert (renamed.episode_id, renamed.nouns) == ("calvin/go_up:1000", {"object": "block"})
    several = collected(fake, monkeypatch, ["up"] * 3 + ["right"], after=3)
    assert (several.reason, several.crashed) == ("the oracle names go_right, go_up", False)
    none = collected(fake, monkeypatch, ["up"] * 3 + ["down"], after=1)
    assert none.reason == "the oracle names no task"


def test_a_demonstration_of_chains_is_refused(fake):
    config = CalvinConfig(checkout=str(fake), render="tiny")
    with pytest.raises(RoboAlignError, match="no expert does 'calvin/chains'"):
        find_benchmark("calvin").demonstrated(config).make(CHAINS)
