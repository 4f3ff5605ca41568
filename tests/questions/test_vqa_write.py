"""The folder: which frames, which bytes, what a kill leaves, what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from vqa_made import ROS, data_of, straight

from roboalign.actions.axes import KNOWN_AXES
from roboalign.actions.known_spaces import known_space
from roboalign.conversations.conversation import read_conversations
from roboalign.core.errors import RoboAlignError
from roboalign.core.files import hash_file, read_json
from roboalign.core.outcomes import Fault
from roboalign.episodes.open import open_robot_data
from roboalign.episodes.robot_data import RobotData
from roboalign.questions import write
from roboalign.questions.base import QuestionConfig
from roboalign.questions.computed import StateQuestions
from roboalign.questions.write import AT_ONCE, draw_frames, read_work, spaced, write_questions

BRIDGE = Path(__file__).parents[3] / "shared" / "data" / "bridge_sample"
EPISODES = [straight((0, -0.01, 0), number=n) for n in range(12)]


def make(folder: Path, episodes=EPISODES, config: QuestionConfig | None = None, **given) -> dict:
    config = config or QuestionConfig(axes=ROS)
    arguments = {"count": 150, "seed": 0, "settings": {"by": "states"}, "shard": 40, **given}
    data = episodes if isinstance(episodes, RobotData) else data_of(*episodes)
    return write_questions(data, StateQuestions(config), folder, **arguments)


@given(
    st.lists(st.integers(0, 300), min_size=1, max_size=8), st.integers(1, 500), st.integers(0, 5)
)
def test_frames_are_drawn_without_repeats_up_to_the_count(lengths, count, seed) -> None:
    named = [(f"e{n}", length) for n, length in enumerate(lengths)]
    if not sum(lengths):
        with pytest.raises(RoboAlignError, match="no episode"):
            draw_frames(named, [], count, seed, "x")
        return
    plan = draw_frames(named, [], count, seed, "x")
    flat = [(place, t) for place, frames in plan.frames for t in frames]
    assert len(flat) == plan.count == min(count, sum(lengths)) and flat == sorted(set(flat))
    assert all(0 <= t < lengths[place] for place, t in flat)
    assert all(0 < len(frames) <= AT_ONCE for _, frames in plan.frames)


def test_every_frame_is_as_likely_as_another() -> None:
    times = np.zeros(40)
    for seed in range(2000):
        for place, frames in draw_frames([("a", 10), ("b", 30)], [], 4, seed, "x").frames:
            times[[10 * place + t for t in frames]] += 1
    assert abs(times - 200).max() < 5 * np.sqrt(200 * 0.9)


@given(st.integers(0, 300), st.integers(1, 400))
def test_spaced_frames_are_even(length, each) -> None:
    frames = list(spaced(length, each))
    assert len(frames) == min(length, each) and frames == sorted(set(frames))
    assert all(0 <= t < length for t in frames)
    gaps = np.diff(frames)
    assert not len(gaps) or gaps.max() - gaps.min() <= 1
    assert not frames or abs(frames[0] - (length - 1 - frames[-1])) <= 1  # the same at both ends


def test_so_many_frames_of_each_episode() -> None:
    assert list(spaced(10, 2)) == [2, 7] and list(spaced(9, 3)) == [1, 4, 7]
    lengths = [("a", 10), ("b", 1), ("c", 9)]
    plan = draw_frames(lengths, [], 100, 0, "x", 2)
    assert (
        plan.frames
        == [(0, (2, 7)), (1, (0,)), (2, (2, 6))]
        == draw_frames(lengths, [], 5, 7, "x", 2).frames
    )
    fewer = draw_frames(lengths, [], 3, 0, "x", 2)
    assert fewer.count == 3 and all(
        set(ts) <= set(dict(plan.frames)[place]) for place, ts in fewer.frames
    )


def test_the_manifest_tells_what_the_shards_hold(tmp_path: Path) -> None:
    manifest = make(tmp_path / "a")
    assert manifest == read_json(tmp_path / "a" / "manifest.json")
    conversations = read_conversations(tmp_path / "a", "train")
    turns = [turn for one in conversations for turn in one.turns]
    assert manifest["conversations"] == len(conversations) and manifest["questions"] == len(turns)
    for name, modes in manifest["types"].items():
        assert modes == {
            mode: sum(t.type == name and t.mode == mode for t in turns) for mode in modes
        }
    assert sum(manifest["modes"].values()) == len(turns)
    assert manifest["episodes"] == list(dict.fromkeys(one.episode_id for one in conversations))
    assert manifest["shards"] == {
        path.name: hash_file(path) for path in sorted((tmp_path / "a").glob("*.parquet"))
    }
    assert len(manifest["shards"]) == 4 and manifest["spent"] == {}
    assert any(
        "gripper_trace: the camera is not calibrated" in reason for reason in manifest["refused"]
    )


def test_the_same_settings_give_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    for name in ("a", "b"):
        make(tmp_path / name)
    make(tmp_path / "c", seed=1)
    for file in sorted(path.name for path in (tmp_path / "a").iterdir() if path.name != ".lock"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    first = [(tmp_path / name / "train-00000.parquet").read_bytes() for name in "ac"]
    assert first[0] != first[1]


@pytest.mark.parametrize("killed_at", ["shard 0", "line 0", "shard 2", "line 2", "manifest"])
def test_a_killed_run_goes_on_after_its_last_whole_shard(
    tmp_path: Path, monkeypatch, killed_at: str
) -> None:
    whole = make(tmp_path / "whole")
    calls = {"write_conversations": 0, "append_jsonl": 0, "write_json": 0}
    name, limit = (
        {"shard": "write_conversations", "line": "append_jsonl"}.get(
            killed_at.split()[0], "write_json"
        ),
        0,
    )
    limit = int(killed_at.split()[1]) if name != "write_json" else 1
    real = getattr(write, name)

    def killed(*arguments):
        calls[name] += 1
        if calls[name] > limit:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(write, name, killed)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "killed")
    monkeypatch.setattr(write, name, real)
    with (tmp_path / "killed" / "shards.jsonl").open("ab") as file:
        file.write(b'{"shard": "train-0')
    asked: list[str] = []
    seen = [straight((0, -0.01, 0), number=n) for n in range(12)]
    monkeypatch.setattr(StateQuestions, "questions", watch(StateQuestions.questions, asked))
    assert make(tmp_path / "killed", seen) == whole
    assert len(asked) < 12 or killed_at in ("shard 0", "line 0")  # what was done is not asked again
    for shard in whole["shards"]:
        assert (tmp_path / "killed" / shard).read_bytes() == (
            tmp_path / "whole" / shard
        ).read_bytes()


def watch(real, asked: list[str]):
    def questions(self, work):
        def told():
            for one in work:
                asked.append(one.episode.episode_id)
                yield one

        return real(self, told())

    return questions


def test_a_folder_of_other_settings_or_other_data_is_refused(tmp_path: Path, monkeypatch) -> None:
    whole = make(tmp_path / "a")
    assert make(tmp_path / "a") == whole
    for changed in ({"count": 151}, {"seed": 1}, {"settings": {"by": "teacher"}}):
        with pytest.raises(RoboAlignError, match="other settings"):
            make(tmp_path / "a", **changed)
    (tmp_path / "a" / "manifest.json").unlink()
    shards = (tmp_path / "a" / "shards.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "a" / "shards.jsonl").write_text("".join(shards[:2]))
    for other in (EPISODES[:9], [*EPISODES[:10], straight((0, 0, 0), number=77), EPISODES[11]]):
        with pytest.raises(RoboAlignError, match=r"changed since|fewer episodes"):
            make(tmp_path / "a", other)
    with (tmp_path / "a" / "train-00000.parquet").open("ab") as file:
        file.write(b"x")
    with pytest.raises(RoboAlignError, match=r"train-00000.parquet: .*not the one in shards.jsonl"):
        make(tmp_path / "a")


def test_other_settings_begin_anew_where_nothing_was_made(tmp_path: Path) -> None:
    nothing = [straight((0, 0, 0), number=n, space=None, instruction="") for n in range(12)]
    with pytest.raises(RoboAlignError, match="no question could be made"):
        make(tmp_path / "a", nothing, settings={"by": "states", "space": None})
    assert make(tmp_path / "a")["refused"] == make(tmp_path / "b")["refused"]


def test_more_frames_hold_the_fewer() -> None:
    lengths = [("a", 30), ("b", 50)]
    drawn = [
        {(place, t) for place, ts in draw_frames(lengths, [], count, 3, "x").frames for t in ts}
        for count in (5, 40, 80)
    ]
    assert drawn[0] < drawn[1] < drawn[2]


def test_faults_are_listed_and_strict_stops_at_the_first(tmp_path: Path) -> None:
    wild = straight((0, 0, 0), number=5)
    wild.actions[:] = np.nan
    items = [EPISODES[0], Fault("episode 1", "it is torn"), wild, EPISODES[2]]
    manifest = make(tmp_path / "a", RobotData("made", "test", lambda: iter(items)), count=60)
    assert manifest["faults"]["count"] == 2 and manifest["episodes"] == ["made/0", "made/2"]
    assert [fault["problem"] for fault in manifest["faults"]["listed"]] == [
        "it is torn",
        "an action is not finite",
    ]
    with pytest.raises(RoboAlignError, match="not finite"):
        make(tmp_path / "b", data_of(wild, strict=True))


def test_where_nothing_can_be_asked_the_reasons_are_told(tmp_path: Path) -> None:
    made = [straight((0, 0, 0), number=n, space=None, instruction="") for n in range(3)]
    for _ in range(2):  # the second call finds what the first one left
        with pytest.raises(
            RoboAlignError, match=r"no question could be made: .*no action space.*--space"
        ):
            make(tmp_path / "a", made)
    assert not (tmp_path / "a" / "manifest.json").exists()
    with pytest.raises(RoboAlignError, match="no episode could be read: episode 1: torn"):
        make(tmp_path / "b", RobotData("made", "test", lambda: iter([Fault("episode 1", "torn")])))


def test_work_is_read_one_episode_at_a_time(tmp_path: Path) -> None:
    read: list[str] = []

    def episodes():
        for one in EPISODES:
            read.append(one.episode_id)
            yield one

    data = RobotData("made", "test", episodes)
    plan = draw_frames([(one.episode_id, 20) for one in EPISODES], [], 5, 0, "made")
    work = read_work(data, plan, 0)
    assert next(work).episode.episode_id == read[-1]
    assert len(list(work)) == len(plan.frames) - 1
    assert (
        len(read) == plan.frames[-1][0] + 1
    )  # what lies behind the last planned frame is not read
    assert json.loads(json.dumps(plan.lengths))[0] == ["made/0", 20]


@pytest.mark.skipif(not BRIDGE.is_dir(), reason="the sample data are not here")
def test_the_real_bridge_sample(tmp_path: Path) -> None:
    data = open_robot_data(BRIDGE, space=known_space("bridge"))
    config = QuestionConfig(axes=KNOWN_AXES["bridge"])
    manifest = make(tmp_path, data, config, count=250, shard=1000)
    assert len(manifest["episodes"]) == 25 and manifest["questions"] > 700
    assert {"next_movement", "next_rotation", "fingers_next", "subtask_next", "frame_order"} <= set(
        manifest["types"]
    )
    assert manifest["faults"]["count"] == 1  # the split that is not in the sample
    # What the state shows to have moved agrees with what is answered from the actions, where it says anything clear.
    by_id = {episode.episode_id: episode for episode in data}
    agree = []
    for one in read_conversations(tmp_path, "train"):
        for turn in one.turns:
            if turn.type == "main_direction" and one.frame + 5 < 10:
                moved = np.diff(
                    by_id[one.episode_id].state[[one.frame, one.frame + 5], :3], axis=0
                )[0]
                axis, sign = {
                    "forward": (0, 1),
                    "back": (0, -1),
                    "left": (1, 1),
                    "right": (1, -1),
                    "up": (2, 1),
                    "down": (2, -1),
                }[turn.expected]
                agree.append(moved[axis] * sign > 0)
    assert len(agree) > 20 and np.mean(agree) > 0.9
