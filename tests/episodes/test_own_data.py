"""Recorded demonstrations of the user's own robot: names, filters, conversions, splits."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from own_sets import DELTA, STEPS, own_set, poses, write_own
from pydantic import ValidationError

from roboalign.core.errors import RoboAlignError
from roboalign.episodes.own_data import (
    DataSetConfig,
    data_key,
    held_out_recordings,
    idle_steps,
    read_own,
)
from roboalign.run.demos import DemosConfig, OwnDemonstrations


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_own(tmp_path_factory.mktemp("own") / "pick_cube")


def config(folder: Path, **changes: Any) -> DataSetConfig:
    return DataSetConfig.model_validate(own_set(folder, **changes))


def demos(*sets: dict[str, Any], **changes: Any) -> DemosConfig:
    return DemosConfig.model_validate({"sets": sets, **changes})


def test_an_episode_has_the_recipes_names(folder: Path) -> None:
    read = read_own(config(folder))
    assert [e.episode_id.rsplit("-", 1)[0] for e in read.episodes] == [
        f"own/episode-{n:06d}" for n in range(6)
    ]
    one = read.episodes[2]
    state, action = poses(2)
    np.testing.assert_array_equal(one.actions, action)
    np.testing.assert_array_equal(one.state, state)
    assert set(one.images) == set(one.cameras) == {"front", "hand"}
    assert one.cameras["front"].name == "front" and one.instruction == "Put the cube into the bowl."
    assert one.frame("hand", 3).shape == (32, 32, 3)
    # "hand" shows the data set's "wrist", the second camera drawn of this seed.
    rng = np.random.default_rng(2)
    rng.integers(0, 256, (STEPS, 32, 32, 3), np.uint8)
    wrist = rng.integers(0, 256, (STEPS, 32, 32, 3), np.uint8)
    np.testing.assert_array_equal(one.frame("hand", 3), wrist[3])
    assert one.action_space is not None and one.action_space.position_scale == 0.05
    assert (read.frames, read.unwanted, read.idle_frames) == (6 * STEPS, 0, 0)


def test_a_missing_camera_is_named_with_the_nearest(folder: Path) -> None:
    with pytest.raises(RoboAlignError) as raised:
        read_own(config(folder, cameras={"front": "observation.images.top"}))
    assert "there is no camera 'observation.images.top'; the data set has top, wrist" in str(
        raised.value
    )
    assert raised.value.where == "demos.sets, own, cameras.front"


def test_patterns_choose_episodes_and_an_unused_one_is_refused(folder: Path) -> None:
    kept = read_own(config(folder, episodes=["*episode-00000[0-3]*", "!*episode-000002*"]))
    assert [e.episode_id[len("own/episode-") :][:6] for e in kept.episodes] == [
        "000000",
        "000001",
        "000003",
    ]
    assert kept.unwanted == 3
    others = read_own(config(folder, episodes=["!*episode-000000*"]))
    assert len(others.episodes) == 5
    with pytest.raises(RoboAlignError, match="the pattern 'nothing' fits no episode"):
        read_own(config(folder, episodes=["nothing", "*"]))
    with pytest.raises(RoboAlignError, match="no episode is left"):
        read_own(config(folder, episodes=["!*"]))


def test_no_instruction_is_refused_and_one_can_be_given(tmp_path: Path) -> None:
    silent = write_own(tmp_path / "silent", 2, instruction="")
    with pytest.raises(RoboAlignError, match="records no instruction") as raised:
        read_own(config(silent))
    assert "give `instruction`" in raised.value.fix
    read = read_own(config(silent, instruction="Pick it up."))
    assert {(e.instruction, e.task) for e in read.episodes} == {("Pick it up.", "Pick it up.")}


def test_actions_of_another_width_than_the_space_are_refused(folder: Path) -> None:
    with pytest.raises(RoboAlignError, match=r"actions of 4 dimensions, the action space .* has 7"):
        read_own(config(folder, space="bridge"))


def test_an_unknown_space_is_refused_with_the_nearest(folder: Path) -> None:
    with pytest.raises(ValidationError, match="did you mean bridge"):
        config(folder, space="bridgee")
    with pytest.raises(ValidationError, match="Field required"):
        DataSetConfig.model_validate({"name": "a", "robot": "b", "cameras": {"c": "d"}})


def test_idle_frames_are_left_out_of_every_array(tmp_path: Path) -> None:
    """Seven resting steps before each episode; the first of them that moves is kept."""
    resting = write_own(tmp_path / "resting", 4, idle=7)
    whole, moving = read_own(config(resting)), read_own(config(resting, idle=0.001))
    assert whole.frames == 4 * (STEPS + 7)
    assert moving.idle_frames == 4 * 7 and moving.frames == 4 * STEPS
    for before, after in zip(whole.episodes, moving.episodes, strict=True):
        np.testing.assert_array_equal(after.actions, before.actions[7:])
        np.testing.assert_array_equal(after.state, before.state[7:])
        np.testing.assert_array_equal(after.frame("front", 0), before.frame("front", 7))
        assert after.png("front", 4) == before.png("front", 11)
        assert len(after.images["front"]) == STEPS


def test_a_gripper_that_closes_is_not_idle(folder: Path) -> None:
    one = read_own(config(folder)).episodes[0]
    still = np.zeros((5, 4), np.float32)
    still[2:, 3] = 1.0  # told to close at step 2; the fingers move until step 4
    state = np.zeros((5, 4), np.float32)
    state[:, 3] = [0.0, 0.0, 0.0, 0.5, 1.0]
    episode = replace(one, actions=still, state=state)
    idle = idle_steps(episode, np.ones(4), np.ones(4), 0.01)
    # Steps 0 and 1 rest; 2 changes the command; in 2 and 3 the fingers move; 4 rests again.
    assert idle.tolist() == [True, True, False, False, True]
    absolute = replace(
        episode, action_space=one.action_space.model_copy(update={"mode": "absolute"})
    )
    moved = absolute.actions.copy()
    moved[:, 0] = 5.0  # far from 0, but it stays there
    assert (
        idle_steps(replace(absolute, actions=moved), np.ones(4), np.ones(4), 0.01).tolist()
        == idle.tolist()
    )
    assert not idle_steps(replace(episode, actions=moved), np.ones(4), np.ones(4), 0.01).any()


def test_actions_are_converted_to_the_first_sets_space(tmp_path: Path) -> None:
    """The second robot counts in units of 0.1 m and says 1 for open."""
    first = write_own(tmp_path / "first", 2)
    second = write_own(tmp_path / "second", 2, first=2, scale=0.5)
    other = {**DELTA, "position_scale": 0.1, "gripper": "open_one"}
    both = demos(own_set(first), own_set(second, "other", space=other))
    read = OwnDemonstrations(both, "align", 0.5, 0)
    converted = read.sets[1].episodes[0].actions
    _, expected = poses(2)
    np.testing.assert_allclose(converted[:, :3], expected[:, :3], atol=1e-6)
    np.testing.assert_array_equal(converted[:, 3], 1 - expected[:, 3])
    assert {e.action_space for e in read.episodes} == {both.sets[0].space}


def test_sets_that_do_not_fit_together_are_refused(tmp_path: Path, folder: Path) -> None:
    joint = {"control": "joint", "mode": "absolute", "joints": 4}
    with pytest.raises(ValidationError, match="other cannot be converted to those of own"):
        demos(own_set(folder), own_set(folder, "other", space=joint))
    absolute = {**DELTA, "mode": "absolute", "position_scale": 1.0}
    with pytest.raises(ValidationError, match="it would need the poses"):
        demos(own_set(folder), own_set(folder, "other", space=absolute))
    fast = write_own(tmp_path / "fast", 2, fps=20, first=10)
    with pytest.raises(RoboAlignError, match="20 actions a second, others have 10"):
        OwnDemonstrations(demos(own_set(folder), own_set(fast, "fast")), "align", 0.2, 0)
    with pytest.raises(ValidationError, match="set other has no camera front"):
        demos(own_set(folder), own_set(folder, "other", cameras={"side": "top"}))
    with pytest.raises(ValidationError, match="align names nobody"):
        demos(own_set(folder), align=["nobody"])
    with pytest.raises(ValidationError, match="two sets are called own"):
        demos(own_set(folder), own_set(folder))
    with pytest.raises(ValidationError, match="two names are of one camera"):
        demos(own_set(folder, cameras={"a": "top", "b": "top"}))


def test_parts_may_learn_from_different_sets(folder: Path) -> None:
    sets = (own_set(folder), own_set(folder, "other"))
    chosen = demos(*sets, align=["other"], head="experts")
    assert [one.name for one in chosen.of("align")] == ["other"] and chosen.of("downstream") == ()
    assert [one.name for one in demos(*sets).of("downstream")] == ["own", "other"]
    assert demos(*sets, head_cameras=["hand"]).shown_cameras() == ("hand",)


def test_held_out_episodes_are_whole_recordings_with_their_copies(folder: Path) -> None:
    episodes = read_own(config(folder)).episodes
    copies = [replace(e, episode_id=f"copy/{e.episode_id}") for e in episodes]
    parts = [replace(e, episode_id=f"{e.episode_id}/steps-0-19") for e in episodes[:1]]
    for share, count in ((0.1, 1), (0.34, 2), (0.9, 5)):
        held = held_out_recordings(episodes, share, 0)
        assert len(held) == count
        again = held_out_recordings([*episodes, *copies, *parts], share, 0)
        assert held <= again
        for episode, copy in zip(episodes, copies):
            assert (episode.episode_id in again) == (copy.episode_id in again)
    assert held_out_recordings(episodes, 0.0, 0) == set()
    assert held_out_recordings(episodes[:1], 0.5, 0) == set()
    assert held_out_recordings(episodes, 0.34, 0) != held_out_recordings(episodes, 0.34, 3)


def test_the_split_is_the_same_for_alignment_and_head(folder: Path) -> None:
    own = demos(own_set(folder))
    align, head = (OwnDemonstrations(own, part, 0.3, 0) for part in ("align", "downstream"))
    assert align.held_out == head.held_out and len(head.held_out) == 2
    training, held = head.split()
    assert len(training) == 4 and {e.episode_id for e in held} == head.held_out
    record = head.record()
    assert record["fps"] == 10 and record["state_dim"] == 4
    assert record["cameras"] == {"front": [32, 32], "hand": [32, 32]}
    assert record["action_names"] == ["x", "y", "z", "gripper"]
    assert record["sets"][0]["episodes"] == 6 and record["sets"][0]["heldout"] == 2


def test_the_key_is_of_the_content_and_not_of_the_place(tmp_path: Path) -> None:
    one, two = (write_own(tmp_path / name / "set", 2) for name in ("a", "b"))
    assert data_key(config(one)) == data_key(config(two))
    info = two / "meta" / "info.json"
    info.write_text(info.read_text().replace('"fps": 10', '"fps": 11'))
    assert data_key(config(one)) != data_key(config(two))


ABSOLUTE = {**DELTA, "mode": "absolute", "position_scale": 1.0}
RELATIVE = {"x": "x", "y": "y", "z": "z"}


def test_the_heads_actions_may_be_relative_to_the_chunks_start(folder: Path) -> None:
    config = demos(own_set(folder, space=ABSOLUTE), relative=RELATIVE)
    relative = OwnDemonstrations(config, "downstream", 0.2, 0).relative
    assert relative is not None and relative.pairs == ((0, 0), (1, 1), (2, 2))
    assert OwnDemonstrations(config, "align", 0.2, 0).relative is None
    plain = demos(own_set(folder, space=ABSOLUTE))
    assert config.identity("downstream") == [
        *plain.identity("downstream"),
        {"relative": RELATIVE},
    ]
    assert config.identity("align") == plain.identity("align")
    with pytest.raises(RoboAlignError, match="would be a double delta") as raised:
        OwnDemonstrations(demos(own_set(folder), relative=RELATIVE), "downstream", 0.2, 0)
    assert raised.value.where == "demos.relative (set own)"
    with pytest.raises(ValidationError, match="relative is for the head's data sets"):
        demos(own_set(folder), head="experts", relative=RELATIVE)


def test_deltas_stated_as_absolute_are_named(folder: Path) -> None:
    wrong = read_own(config(folder, space=ABSOLUTE)).sentences()
    assert wrong[1].startswith("own: The actions are stated as absolute, and look like deltas.")
    assert len(read_own(config(folder)).sentences()) == 1
