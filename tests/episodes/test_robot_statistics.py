"""The survey of a robot data set: its numbers against numpy's, planted faults found, one error without any."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from data_episodes import make_episode
from plain_episodes import data_of, plain
from scipy.fft import dct, idct

from roboalign.actions.fast import FastTokenizer
from roboalign.actions.normalize import ActionStats
from roboalign.actions.spaces import ActionSpace
from roboalign.core.errors import RoboAlignError
from roboalign.core.outcomes import Fault
from roboalign.episodes.episode import Camera, Episode, encode_png
from roboalign.episodes.formats.rlds import read_rlds
from roboalign.episodes.robot_data import RobotData
from roboalign.episodes.survey import statistics
from roboalign.episodes.survey.measures import BINS
from roboalign.episodes.survey.statistics import keep_episodes, survey_episodes

BRIDGE = Path(__file__).parents[2].parent / "shared" / "data" / "bridge_sample"
SPACE = ActionSpace(control="end-effector", mode="delta", gripper="open_one")


def seen_by(*frames: np.ndarray, number: int = 0) -> Episode:
    """An episode of as many steps as frames, of one camera."""
    episode = plain(number, np.random.default_rng(number).normal(size=(len(frames), 2)))
    images = {"front": [encode_png(frame) for frame in frames]}
    return replace(episode, images=images, cameras={"front": Camera("front", 8, 6)})


def noise(*seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)


def flat(level: int) -> np.ndarray:
    return np.full((6, 8, 3), level, dtype=np.uint8)


def test_numbers_by_hand():
    first = plain(0, [[0, 1], [2, 1], [4, 1]], instruction="")
    second = plain(1, [[6, 1]], fps=float("nan"))
    found = survey_episodes(data_of(first, second), horizon=2)
    assert (found.episodes, found.steps, found.rows) == (2, 4, 4)
    assert (found.length_min, found.length_median, found.length_max) == (1, 2.0, 3)
    assert found.fps == {"10": 1, "unknown": 1}
    assert (found.without_instruction, found.instructions, found.frequent) == (
        1,
        1,
        [("Do it.", 1)],
    )
    x, constant = found.action
    assert (x.minimum, x.median, x.maximum, x.mean) == (0.0, 3.0, 6.0, 3.0)
    assert x.std == pytest.approx(np.sqrt(5.0))  # ((9 + 1) * 2) / 4
    assert x.q01 == pytest.approx(0.06) and x.q99 == pytest.approx(5.94)
    assert x.at_extremes == 0.5 and not x.near_constant
    assert constant.near_constant and constant.std == 0 and constant.at_extremes == 1.0
    assert constant.histogram.counts == [4]
    json.dumps(asdict(found), allow_nan=False)


def test_a_sample_gives_the_quantiles_of_all_rows_nearly_and_the_moments_exactly():
    episodes = [plain(i, np.random.default_rng(i).gamma(2.0, size=(50, 1))) for i in range(200)]
    everything = np.concatenate([episode.actions for episode in episodes]).astype(np.float64)
    x = survey_episodes(data_of(*episodes), rows=2_000).action[0]
    assert x.mean == pytest.approx(everything.mean(), rel=1e-12)
    assert x.std == pytest.approx(everything.std(), rel=1e-12)
    assert (x.minimum, x.maximum) == (everything.min(), everything.max())
    ranks = [(everything < value).mean() for value in (x.q01, x.median, x.q99)]
    assert ranks == pytest.approx([0.01, 0.5, 0.99], abs=0.04)
    assert sum(x.histogram.counts) == 2_000
    assert survey_episodes(data_of(*episodes), rows=2_000).action[0] == x
    assert survey_episodes(data_of(*episodes), rows=2_000, seed=1).action[0] != x


def test_flags_of_constant_discrete_and_broken_dimensions():
    rng = np.random.default_rng(0)
    episodes = []
    for i in range(30):
        actions = rng.normal(size=(40, 4))
        actions[:, 1] = 1e-4 * rng.normal(size=40)  # narrower than a thousandth of the first
        actions[:, 2] = rng.random(40) < 0.3
        actions[:, 3] = rng.choice([-1.0, 0.5, 1.0], 40) * (rng.random(40) < 0.1)
        if i in (7, 21):
            actions[3, 0] = 1e4 * i
        episodes.append(plain(i, actions))
    wide, narrow, gripper, rare = survey_episodes(data_of(*episodes)).action
    assert [d.near_constant for d in (wide, narrow, gripper, rare)] == [False, True, False, False]
    assert [d.discrete for d in (wide, narrow, gripper, rare)] == [False, False, True, True]
    assert wide.worst == ["made/21", "made/7"] and wide.outliers == pytest.approx(2 / 1200)
    assert narrow.worst == gripper.worst == []
    assert len(wide.histogram.counts) == BINS and wide.histogram.counts[-1] >= 2
    assert wide.histogram.edges[-1] == pytest.approx(2 * wide.q99 - wide.q01)


def test_a_spike_that_the_sample_missed_still_names_its_episode():
    episodes = [plain(i, np.random.default_rng(i).normal(size=(50, 1))) for i in range(40)]
    episodes[11].actions[20] = -500.0
    x = survey_episodes(data_of(*episodes), rows=30).action[0]
    assert x.worst[0] == "made/11" and x.minimum == -500.0


def test_cameras_that_show_nothing():
    same = noise(9)
    dark = [flat(0), flat(4), flat(10)]
    found = survey_episodes(
        data_of(
            seen_by(*dark, number=0),
            seen_by(*dark, number=1),
            seen_by(flat(90), flat(90), noise(1), number=2),
            seen_by(same, same, same, number=3),
            seen_by(noise(2), noise(3), noise(4), number=4),
            plain(5, np.ones((3, 2))),
        )
    )
    (camera,) = found.cameras
    assert (camera.episodes, camera.looked_at, camera.frames, camera.sizes) == (5, 5, 15, ["8 x 6"])
    assert (camera.black, camera.flat, camera.frozen, camera.unreadable) == (6, 2, 1, 0)
    assert found.same_frames.contents == 0  # black frames are equal, which says nothing


def test_a_frame_of_two_episodes_and_an_episode_twice():
    shared = noise(5)
    first, second = (
        seen_by(shared, noise(6), noise(7), number=0),
        seen_by(noise(8), noise(9), shared, number=1),
    )
    twin = replace(first, episode_id="made/twin")
    found = survey_episodes(data_of(first, second, twin))
    assert (
        found.same_actions.examples == [["made/0", "made/twin"]] and found.same_actions.copies == 1
    )
    assert found.same_frames.contents == 3 and found.same_frames.copies == 4
    assert ["made/0", "made/1", "made/twin"] in found.same_frames.examples


def test_broken_frames_are_faults_and_their_episode_stays():
    good, cut, short = (seen_by(noise(i), noise(i, 1), noise(i, 2), number=i) for i in range(3))
    cut = replace(cut, images={"front": [image[:40] for image in cut.images["front"]]})
    short = replace(short, images={"front": short.images["front"][:2]})
    found = survey_episodes(data_of(good, cut, short))
    assert found.episodes == 3 and found.left_out == 0
    assert found.cameras[0].unreadable == found.faults == 4
    assert "2 frames for 3 actions" in found.first_faults[-1].problem
    with pytest.raises(RoboAlignError, match=r"made/1.*not a readable image"):
        survey_episodes(data_of(good, cut, strict=True))


BROKEN = {
    "not finite at step 1, dimension 0": np.array([[1, 2], [np.nan, 2]]),
    "3 action and 1 state dimensions, the first episode has 2 and 1": np.ones((2, 3)),
    "expected [T, A]": np.ones((0, 2)),
    "not a number": np.array([["a", "b"], ["c", "d"]]),
}


@pytest.mark.parametrize("problem", BROKEN)
def test_an_episode_with_broken_numbers_is_left_out_and_counted(problem):
    bad = plain(1, np.ones((len(BROKEN[problem]), 2)))
    bad.actions = BROKEN[problem]
    items = (plain(0, [[1, 2], [3, 4]]), bad, Fault("shard 3", "truncated"), plain(2, [[5, 6]]))
    found = survey_episodes(data_of(*items))
    assert (found.episodes, found.steps, found.left_out, found.faults) == (2, 3, 2, 2)
    assert found.first_faults[0] == Fault("shard 3", "truncated")
    assert (
        problem in found.first_faults[1].problem and found.first_faults[1].where == "episode made/1"
    )
    with pytest.raises(RoboAlignError) as caught:
        survey_episodes(data_of(*items, strict=True))
    assert problem in caught.value.problem


def test_what_cannot_be_surveyed_is_one_error():
    with pytest.raises(
        RoboAlignError, match=r"no episode could be read; the first of 2 faults is a: torn"
    ):
        survey_episodes(data_of(Fault("a", "torn"), Fault("b", "torn")))
    with pytest.raises(RoboAlignError, match="no episode could be read"):
        survey_episodes(data_of())
    with pytest.raises(RoboAlignError, match=r"no camera 'wrist'; it has \['front'\]"):
        survey_episodes(data_of(seen_by(noise(0))), camera="wrist")
    with pytest.raises(RoboAlignError, match="1 or more"):
        survey_episodes(data_of(plain(0, [[1, 2]])), horizon=0)
    fast = FastTokenizer.fit(
        np.random.default_rng(0).uniform(-1, 1, (9, 4, 3)), scale=5, vocab_size=400
    )
    with pytest.raises(RoboAlignError, match="3 action dimensions, the data has 2"):
        survey_episodes(data_of(plain(0, [[1, 2]])), fast=fast)


def test_only_the_first_faults_are_kept_word_for_word():
    faults = [Fault(f"record {i}", "torn") for i in range(50)]
    found = survey_episodes(data_of(*faults, plain(0, [[1.0]])))
    assert found.faults == 50 and [fault.where for fault in found.first_faults] == [
        f"record {i}" for i in range(20)
    ]


def test_no_chunk_of_an_episode_or_of_its_copy_is_on_both_sides(monkeypatch):
    sides = {}
    monkeypatch.setattr(
        statistics,
        "measure_tokens",
        lambda fit, held, fast: sides.update(a=fit, b=held) or (None, ""),
    )
    episodes = [plain(i // 2, np.full((5, 1), i // 2)) for i in range(40)]  # each twice
    survey_episodes(data_of(*episodes), horizon=3)
    fit, held = (set(np.unique(side).tolist()) for side in (sides["a"], sides["b"]))
    assert fit | held == set(range(20)) and not fit & held
    assert len(fit) == len(held) == 10
    assert sides["a"].shape == (100, 3, 1)


def test_reconstruction_is_that_of_the_rounded_transform_on_held_out_chunks(monkeypatch):
    episodes = [
        plain(i, np.random.default_rng(i).normal(size=(40, 2)).cumsum(axis=0)) for i in range(6)
    ]
    captured = {}
    measure = statistics.measure_tokens

    def capture(fit, held, fast):
        captured.update(fit=fit.copy(), held=held.copy())
        return measure(fit, held, fast)

    monkeypatch.setattr(statistics, "measure_tokens", capture)
    measured = survey_episodes(data_of(*episodes), horizon=8).tokens
    stats = ActionStats.fit(captured["fit"][:, 0])
    fit, held = (
        np.around(dct(stats.normalize(captured[side]), axis=1, norm="ortho") * 10)
        for side in ("fit", "held")
    )
    inside = np.clip(held, fit.min(), fit.max())  # the tokenizer has no symbol for more
    again = idct(inside / 10, axis=1, norm="ortho")
    assert (measured.clipped, measured.undecodable) == ((inside != held).sum(), 0)
    errors = np.abs(again - stats.normalize(captured["held"])).mean(axis=(0, 1))
    assert measured.l1_dims == pytest.approx(errors.tolist(), abs=1e-5)
    assert measured.l1 == pytest.approx(np.mean(measured.l1_dims)) and measured.l1 > 0
    assert measured.chunks == measured.fitted_on == 120 == sum(measured.lengths.counts)
    assert 0 < measured.length_q05 <= measured.length_mean <= measured.length_q95


def test_a_given_tokenizer_brings_its_horizon_and_one_episode_has_no_held_out_half():
    fast = FastTokenizer.fit(
        np.random.default_rng(0).uniform(-1, 1, (99, 4, 4)), scale=5, vocab_size=400
    )
    found = survey_episodes(
        data_of(make_episode("puck-push", 0), make_episode("puck-push", 1)), fast=fast
    )
    assert found.horizon == found.tokens.horizon == 4 and found.tokens.vocab_size == fast.vocab_size
    assert not found.tokens.fitted_here
    alone = survey_episodes(data_of(make_episode(), make_episode()))
    assert alone.tokens is None and "none to hold out" in alone.tokens_problem


def test_names_come_from_the_action_space_and_wide_states_have_no_histograms():
    stated = plain(0, np.ones((2, 4)), np.ones((2, 65), dtype=np.float32), action_space=SPACE)
    found = survey_episodes(
        data_of(stated, plain(1, np.ones((2, 4)), np.ones((2, 65), dtype=np.float32)))
    )
    assert [d.name for d in found.action] == ["x", "y", "z", "gripper"]
    assert found.action_spaces == {str(SPACE): 1, "not stated": 1}
    assert found.action[0].histogram is not None and len(found.state) == 65
    assert all(d.histogram is None for d in found.state)
    assert survey_episodes(data_of(plain(1, np.ones((2, 4)), np.zeros((2, 0))))).state == []


def test_dimensions_are_called_what_the_action_space_or_the_data_set_calls_them():
    def names(data: RobotData) -> list[str]:
        found = survey_episodes(data)
        return [d.name for d in (*found.action, *found.state)]

    episodes = [
        plain(i, np.random.default_rng(i).normal(size=(4, 2)), np.ones((4, 1))) for i in range(2)
    ]
    assert names(RobotData("made", "memory", lambda: iter(episodes))) == [
        "action 0",
        "action 1",
        "state 0",
    ]
    own = {"action_names": ("left", "right"), "state_names": ("height",)}
    named = RobotData("made", "memory", lambda: iter(episodes), **own)
    assert names(keep_episodes(named, [])) == ["left", "right", "height"]
    space = ActionSpace(control="joint", mode="delta", joints=2, gripper="none")
    spaced = [replace(episode, action_space=space) for episode in episodes]
    assert names(RobotData("made", "memory", lambda: iter(spaced), **own)) == [
        *space.names,
        "height",
    ]
    own = {"action_names": ("left",), "state_names": ("height", "width")}  # of another number
    assert names(RobotData("made", "memory", lambda: iter(episodes), **own)) == [
        "action 0",
        "action 1",
        "state 0",
    ]


@pytest.mark.skipif(not BRIDGE.exists(), reason="no real data here")
def test_the_real_bridge_sample():
    data = RobotData("bridge", "rlds", lambda: read_rlds(BRIDGE, split="train"))
    found = survey_episodes(data)
    actions = np.concatenate([episode.actions for episode in data])
    assert (found.episodes, found.steps, len(found.action), len(found.state)) == (25, 250, 7, 7)
    assert [d.mean for d in found.action] == pytest.approx(
        actions.mean(axis=0, dtype=np.float64).tolist()
    )
    assert [d.q99 for d in found.action] == pytest.approx(
        np.quantile(actions, 0.99, axis=0).tolist()
    )
    cameras = {camera.name: camera for camera in found.cameras}
    assert cameras["image_3"].black == cameras["image_3"].frames == 75
    assert not any(cameras[f"image_{i}"].black for i in range(3))
    assert [d.discrete for d in found.action] == [False] * 6 + [True]
    assert found.tokens is not None and 0 < found.tokens.l1 < 0.05
