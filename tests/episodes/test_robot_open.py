"""Opening a data set by what its files tell, and writing it again as LeRobot v3.0."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from data_episodes import make_episode

from roboalign.actions.spaces import ActionSpace
from roboalign.core.errors import RoboAlignError
from roboalign.core.outcomes import Fault
from roboalign.episodes.episode import Episode
from roboalign.episodes.formats.lerobot import read_lerobot
from roboalign.episodes.open import format_of, open_robot_data, options_of
from roboalign.episodes.rewrite import rewrite
from roboalign.episodes.robot_data import RobotData

SPACE = ActionSpace(
    control="end-effector", mode="delta", gripper="closed_positive", position_scale=0.05
)
BRIDGE = Path(__file__).parents[3] / "shared" / "data" / "bridge_sample"


def stream(*items: Episode | Fault, strict: bool = False) -> RobotData:
    return RobotData("made", "test", lambda: iter(items), strict=strict)


def episodes(count: int = 3) -> list[Episode]:
    return [replace(make_episode(seed=seed, steps=6), action_space=SPACE) for seed in range(count)]


def test_faults_are_counted_anew_in_each_pass_or_raised():
    one, fault = episodes(1)[0], Fault("file x", "it is cut", "get it again")
    data = stream(fault, one, fault)
    for _ in range(2):
        assert [e.episode_id for e in data] == [one.episode_id] and data.faults == [fault, fault]
    with pytest.raises(RoboAlignError, match=r"file x: it is cut Fix: get it again"):
        list(stream(one, fault, strict=True))


def test_the_format_is_told_by_the_files(tmp_path):
    for format, name in (
        ("lerobot", "meta/info.json"),
        ("rlds", "features.json"),
        ("robomimic", "deep/demo.hdf5"),
        ("calvin", "lang_annotations/auto_lang_ann.npy"),
    ):
        path = tmp_path / format / name
        path.parent.mkdir(parents=True)
        path.touch()
        assert format_of(tmp_path / format) == format
    (tmp_path / "none").mkdir()
    with pytest.raises(RoboAlignError, match=r"no known data set here.*name the format"):
        open_robot_data(tmp_path / "none")


def test_what_is_wrong_is_said_when_it_is_opened(tmp_path):
    with pytest.raises(RoboAlignError, match="no such file"):
        open_robot_data(tmp_path / "gone")
    with pytest.raises(RoboAlignError, match=r"unknown format 'rosbag'.*lerobot"):
        open_robot_data(tmp_path, "rosbag")
    with pytest.raises(RoboAlignError, match=r"the robomimic reader has no option flop.*flip"):
        open_robot_data(tmp_path, "robomimic", options={"flop": True})
    with pytest.raises(RoboAlignError, match=r"meta/info\.json"):
        open_robot_data(tmp_path, "lerobot")
    assert "fps" in options_of("rlds") and options_of("lerobot") == [
        "action",
        "state",
        "instruction",
        "links",
    ]


@pytest.mark.parametrize(
    ("format", "option", "message"),
    [
        (
            "robomimic",
            {"fps": "abc"},
            r"--read fps: the robomimic reader takes a number, not 'abc'",
        ),
        ("robomimic", {"fps": True}, r"takes a number, not True.*--read fps=5"),
        ("robomimic", {"flip": 3}, r"--read flip: .* not 3"),
        ("rlds", {"fps": "abc"}, r"--read fps: the rlds reader takes a number, not 'abc'"),
        ("rlds", {"state": 3}, r"--read state: .* takes a name or a list of names, not 3"),
        ("lerobot", {"links": "maybe"}, r"--read links: .* takes true or false, not 'maybe'"),
        ("lerobot", {"action": [1]}, r"--read action: .* a list of names, not \[1\]"),
    ],
)
def test_an_option_of_another_type_is_named(tmp_path, format, option, message):
    with pytest.raises(RoboAlignError, match=message):
        open_robot_data(tmp_path, format, options=option)


def test_written_as_lerobot_it_reads_the_same(tmp_path):
    given = episodes()
    written = rewrite(stream(*given), tmp_path / "out")
    assert (written.episodes, written.already_there, written.faults) == (3, 0, [])
    for before, after in zip(given, read_lerobot(tmp_path / "out"), strict=True):
        assert after.episode_id == before.episode_id and after.instruction == before.instruction
        np.testing.assert_array_equal(after.actions, before.actions)
        np.testing.assert_array_equal(after.state, before.state)
        np.testing.assert_array_equal(after.privileged, before.privileged)
        for t in (0, 5):
            np.testing.assert_array_equal(after.frame("workspace", t), before.frame("workspace", t))


def test_a_rewriting_that_was_stopped_goes_on(tmp_path):
    given = episodes(22)  # the writer commits every 20

    def until(stop: int) -> Iterator[Episode | Fault]:
        yield from given[:stop]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rewrite(RobotData("made", "test", lambda: until(21)), tmp_path / "out")
    written = rewrite(stream(*given), tmp_path / "out")
    assert (written.episodes, written.already_there) == (22, 20)
    assert [e.episode_id for e in read_lerobot(tmp_path / "out")] == [e.episode_id for e in given]


def test_actions_are_converted_on_purpose_only(tmp_path):
    given = episodes(1)
    target = SPACE.model_copy(update={"gripper": "open_one", "position_scale": 0.01})
    rewrite(stream(*given), tmp_path / "out", target=target)
    (after,) = read_lerobot(tmp_path / "out")
    assert after.action_space == target
    np.testing.assert_allclose(after.actions[:, :3], given[0].actions[:, :3] * 5, rtol=1e-6)
    np.testing.assert_allclose(after.actions[:, 3], (1 - given[0].actions[:, 3]) / 2, atol=1e-6)
    with pytest.raises(RoboAlignError, match="what its actions mean is not known"):
        rewrite(stream(replace(given[0], action_space=None)), tmp_path / "other", target=target)


def test_an_episode_that_does_not_fit_is_left_out_and_named(tmp_path):
    one, two = episodes(2)
    slow = replace(two, fps=7.0)
    broken = replace(two, episode_id="broken", images={"workspace": [b"no image"] * 6})
    written = rewrite(stream(one, slow, broken), tmp_path / "out")
    assert written.episodes == 1 and [fault.where for fault in written.faults] == [
        f"episode {slow.episode_id}",
        "episode broken",
    ]
    with pytest.raises(RoboAlignError, match=r"7\.0 steps a second"):
        rewrite(stream(one, slow, strict=True), tmp_path / "strict")
    with pytest.raises(
        RoboAlignError, match=r"no episode could be read, 1 were left out; the first: file x: cut"
    ):
        rewrite(stream(Fault("file x", "cut")), tmp_path / "none")


def test_a_space_of_other_dimensions_is_a_fault(tmp_path):
    rewrite(stream(replace(episodes(1)[0], action_space=None)), tmp_path / "out")
    wrong = open_robot_data(
        tmp_path / "out", space=ActionSpace(control="joint", mode="absolute", joints=7)
    )
    assert list(wrong) == [] and "actions of 4 dimensions" in wrong.faults[0].problem
    (right,) = open_robot_data(tmp_path / "out", space=SPACE)
    assert right.action_space == SPACE


def test_the_meaning_of_the_actions_is_kept_with_them(tmp_path):
    other = SPACE.model_copy(update={"gripper": "open_one"})
    rewrite(stream(*episodes(2)), tmp_path / "out")
    assert [episode.action_space for episode in open_robot_data(tmp_path / "out")] == [SPACE, SPACE]
    contradicted = open_robot_data(tmp_path / "out", space=other)
    assert (
        list(contradicted) == [] and "gripper is closed_positive" in contradicted.faults[0].problem
    )
    with pytest.raises(
        RoboAlignError, match="another fps or action space"
    ):  # half in one meaning, half in another
        rewrite(stream(*episodes(3)), tmp_path / "out", target=other)
    extras = tmp_path / "out" / "meta" / "roboalign.json"
    extras.write_text(extras.read_text().replace('"end-effector"', '"elbow"'))
    with pytest.raises(RoboAlignError, match="action_space"):
        read_lerobot(tmp_path / "out")


def test_names_of_dimensions_pass_from_set_to_set(tmp_path):
    made = [replace(episode, action_space=None) for episode in episodes()]
    named = RobotData(
        "made", "test", lambda: iter(made), action_names=tuple("abcd"), state_names=tuple("efgh")
    )
    rewrite(named, tmp_path / "named")
    data = open_robot_data(tmp_path / "named")
    assert (data.action_names, data.state_names) == (tuple("abcd"), tuple("efgh"))
    rewrite(data, tmp_path / "again")
    assert open_robot_data(tmp_path / "again").state_names == tuple("efgh")
    rewrite(stream(*episodes()), tmp_path / "numbered")
    assert open_robot_data(tmp_path / "numbered").state_names == (
        "state_0",
        "state_1",
        "state_2",
        "state_3",
    )


@pytest.mark.skipif(not BRIDGE.exists(), reason="no BridgeV2 sample")
def test_bridge_becomes_a_lerobot_data_set(tmp_path):
    data = open_robot_data(BRIDGE)
    written = rewrite(data, tmp_path / "bridge")
    assert data.format == "rlds" and written.episodes == 25
    before, after = next(iter(data)), read_lerobot(tmp_path / "bridge")[0]
    np.testing.assert_array_equal(after.actions, before.actions)
    np.testing.assert_array_equal(after.frame("image_0", 3), before.frame("image_0", 3))
