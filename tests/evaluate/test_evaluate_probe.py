"""The representation probe: warping against a brute force, neighbours of other episodes only, baselines."""

import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from roboalign.core.errors import RoboAlignError
from roboalign.evaluate.probe import (
    accuracy,
    baselines,
    knn,
    label_frames,
    majority,
    match_frames,
    medoid,
    phase_of,
    standardize,
    warp,
)

WHOLE = st.integers(-4, 4).map(float)


def column(*values):
    return np.array(values, dtype=float)[:, None]


def sequences(longest=6):
    return st.integers(1, longest).flatmap(lambda n: npst.arrays(float, (n, 2), elements=WHOLE))


def brute_force(a, b):
    """The recursion as it is written in textbooks."""

    @functools.cache
    def cost(i, j):
        here = float(np.linalg.norm(a[i] - b[j]))
        if i == j == 0:
            return here
        ways = [(i - 1, j - 1), (i - 1, j), (i, j - 1)]
        return here + min(cost(p, q) for p, q in ways if p >= 0 and q >= 0)

    return cost(len(a) - 1, len(b) - 1)


def test_warping_by_hand():
    cost, path = warp(column(0, 1, 3), column(0, 3))
    assert cost == 1.0  # 0-0, 1-0, 3-3
    assert path.tolist() == [[0, 0], [1, 0], [2, 1]]
    cost, path = warp(column(0, 0, 5, 5), column(0, 5))
    assert cost == 0.0 and path.tolist() == [[0, 0], [1, 0], [2, 1], [3, 1]]
    cost, path = warp(column(2), column(0, 1, 2))
    assert cost == 3.0 and path.tolist() == [[0, 0], [0, 1], [0, 2]]
    assert warp(np.array([[0.0, 0.0]]), np.array([[3.0, 4.0]]))[0] == 5.0


@given(sequences(), sequences())
@settings(max_examples=150, deadline=None)
def test_warping_is_the_least_monotone_path(a, b):
    cost, path = warp(a, b)
    assert cost == pytest.approx(brute_force(a, b))
    assert path[0].tolist() == [0, 0] and path[-1].tolist() == [len(a) - 1, len(b) - 1]
    assert {tuple(step) for step in np.diff(path, axis=0)} <= {(0, 1), (1, 0), (1, 1)}
    assert sum(np.linalg.norm(a[i] - b[j]) for i, j in path) == pytest.approx(cost)
    assert warp(b, a)[0] == pytest.approx(cost)


@given(sequences(12))
@settings(max_examples=100, deadline=None)
def test_a_sequence_aligns_to_itself(a):
    cost, path = warp(a, a)
    assert cost == 0.0
    assert path.tolist() == [[i, i] for i in range(len(a))]
    assert match_frames(a, a).tolist() == list(range(len(a)))


@given(st.lists(st.integers(1, 4), min_size=2, max_size=9), st.data())
@settings(max_examples=100, deadline=None)
def test_a_stretched_copy_aligns_to_its_source(pauses, data):
    steps = data.draw(st.lists(st.integers(1, 5), min_size=len(pauses), max_size=len(pauses)))
    source = column(*np.cumsum(steps))  # no state comes twice, so the alignment is the only one
    stretched = np.repeat(source, pauses, axis=0)
    assert warp(stretched, source)[0] == 0.0
    assert (
        match_frames(stretched, source).tolist()
        == np.repeat(np.arange(len(pauses)), pauses).tolist()
    )


def test_a_frame_matched_to_several_takes_the_middle_one():
    assert match_frames(column(0, 7), column(0, 0, 0, 0, 0, 7)).tolist() == [2, 5]


def test_the_reference_is_the_least_odd():
    line = np.linspace(0, 1, 10)
    detour = np.concatenate([line, [9, 9, 9], line])
    assert (
        medoid([column(*detour), column(*(line + 0.02)), column(*line), column(*(line - 0.02))])
        == 2
    )
    assert medoid([column(*line), column(*line)]) == 0


def test_states_count_alike_and_constants_not_at_all():
    first, second = standardize(
        [np.array([[0, 1000, 5], [1, 3000, 5]]), np.array([[2, 5000, 5.0]])]
    )
    together = np.concatenate([first, second])
    assert together.mean(axis=0) == pytest.approx(0) and together.std(axis=0)[:2] == pytest.approx(
        1
    )
    assert (together[:, 2] == 0).all()
    with pytest.raises(RoboAlignError, match="not finite"):
        standardize([np.array([[np.nan]])])


def test_phases_are_equal_stretches():
    assert phase_of(np.arange(10), 10, 5).tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert phase_of(np.arange(7), 7, 3).tolist() == [0, 0, 0, 1, 1, 2, 2]


def test_labels_follow_the_state_not_the_clock():
    slow = np.repeat(np.arange(10.0), [1, 1, 1, 1, 1, 6, 6, 1, 1, 1])
    frames = label_frames(
        "t", [column(*np.arange(10.0)), column(*np.arange(10.0)), column(*slow)], 10, every=2
    )
    assert frames.reference == 0
    assert frames.label[frames.owner == 2].tolist() == slow[::2].astype(int).tolist()
    assert frames.step[frames.owner == 1].tolist() == [0, 2, 4, 6, 8]
    assert set(frames.length[frames.owner == 2]) == {20}


def ask_one(query, others, labels, k, metric="euclidean"):
    """The label given to a frame among the frames of one other episode."""
    features = np.concatenate([np.repeat(query, k, axis=0), others])
    owner = np.repeat([0, 1], [k, len(others)])
    return knn(features, np.array([0] * k + labels), owner, k=k, metric=metric)[0]


def test_neighbours_by_hand():
    line = column(1, 2, 3, 4)
    assert ask_one(column(0), line, [1, 2, 3, 4], 1) == 1
    assert ask_one(column(0), line, [1, 3, 3, 4], 3) == 3
    assert ask_one(column(0), line, [1, 2, 3, 4], 3) == 1  # one vote each: the nearest decides
    assert (
        ask_one(column(0), line, [7, 5, 5, 7], 4) == 7
    )  # two against two: the one with the nearest
    assert (
        ask_one(column(0), column(1, 1, -1, 5), [2, 4, 4, 2], 1) == 4
    )  # all three that are nearest vote


def test_the_cosine_counts_directions_seen_from_the_mean():
    others = np.array(
        [[7.0, 5.0], [5.0, 6.0], [3.0, 5.0], [5.0, 4.0]]
    )  # right, up, left, down of (5, 5)
    directions = [1, 2, 3, 4]
    assert ask_one(np.array([[5.1, 5.01]]), others, directions, 1, "cosine") == 1
    assert ask_one(np.array([[5.0, 99.0]]), others, directions, 1, "cosine") == 2
    assert ask_one(np.array([[-50.0, 4.0]]), others, directions, 1, "cosine") == 3
    assert (
        ask_one(np.array([[5.0, 5.0]]), others, directions, 1, "cosine") == 1
    )  # no direction: all as far


def test_the_common_part_of_features_does_not_hide_the_rest():
    rng = np.random.default_rng(0)
    labels, owner = np.tile(np.arange(4), 6), np.repeat(np.arange(6), 4)
    features = np.eye(4)[labels] + 0.1 * rng.normal(size=(24, 4))
    with_common = np.concatenate([features, np.full((24, 3), 1000.0)], axis=1)
    assert (knn(with_common, labels, owner, k=3) == labels).all()


def test_no_neighbour_is_of_the_same_episode():
    """Every episode has a place of its own and labels drawn at random: only leakage could know them."""
    rng = np.random.default_rng(0)
    episodes, steps = 12, 40
    owner = np.repeat(np.arange(episodes), steps)
    # runs of eight frames of one label: a frame's neighbours in time would tell its label
    labels = np.concatenate([np.repeat(rng.permutation(5), 8) for _ in range(episodes)])
    features = (
        10 * rng.normal(size=(episodes, 64))[owner]
        + 0.001 * (rng.normal(size=(episodes * 5, 64))[np.arange(len(owner)) // 8])
    )
    leaking = (
        np.arange(len(owner)) // 2
    )  # each pair of frames an episode of its own: neighbours in time are allowed
    assert (knn(features, labels, leaking, k=1) == labels).mean() == 1.0
    assert (knn(features, labels, owner, k=1) == labels).mean() < 0.35  # chance is 0.2


def test_majority_is_of_the_others():
    labels, owner = np.array([1, 1, 1, 2, 2, 0]), np.array([0, 0, 0, 1, 1, 1])
    assert majority(labels, owner).tolist() == [2, 2, 2, 1, 1, 1]
    with pytest.raises(RoboAlignError, match="single episode"):
        majority(labels, np.zeros(6, dtype=int))


def test_baselines_tell_a_clock_from_a_state():
    rng = np.random.default_rng(1)
    pauses = [
        np.concatenate([np.linspace(0, 1, 30), np.ones(n), np.linspace(1, 2, 30)])
        for n in (0, 20, 60, 100)
    ]
    frames = label_frames("t", [one[:, None] for one in pauses], 8)
    right = {
        name: (found == frames.label).mean()
        for name, found in baselines(frames, rng.normal(size=(len(frames.label), 20)), 3).items()
    }
    assert set(right) == {"majority", "step", "time", "pixels", "state"}
    assert right["state"] > 0.9 and right["time"] < right["state"] - 0.2
    assert right["pixels"] < right["state"] - 0.2  # these are noise


def test_an_interval_draws_episodes():
    correct = np.repeat([1.0, 0.0, 1.0, 0.0, 1.0, 0.0], 50)
    estimate = accuracy(correct, [f"e{i // 50}" for i in range(300)])
    assert estimate.value == 0.5 and estimate.low < 0.2 and estimate.high > 0.8


@pytest.mark.parametrize(
    ("work", "message"),
    [
        (lambda: label_frames("push", [column(0, 1)], 2), "1 demonstrations of push"),
        (lambda: label_frames("push", [column(0, 1), column(0, 1)], 5), "fewer than 5 phases"),
        (lambda: knn(column(0, 1), np.array([0, 1]), np.array([0, 1]), k=2), "fewer than k = 2"),
        (lambda: warp(column(0), np.zeros((0, 1))), "without steps"),
    ],
)
def test_what_cannot_be_probed_is_one_message(work, message):
    with pytest.raises(RoboAlignError, match=message):
        work()
