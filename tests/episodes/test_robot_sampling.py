"""What a survey keeps of a stream: moments, drawn rows, repeats, extremes and whole episodes, in bounded memory."""

import weakref
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_episodes import data_of, plain

from roboalign.core.outcomes import Fault
from roboalign.episodes.episode import Episode
from roboalign.episodes.robot_data import RobotData
from roboalign.episodes.survey.sampling import Highest, Moments, Reservoir, SeenContents
from roboalign.episodes.survey.statistics import keep_episodes, survey_episodes


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=6), min_size=1, max_size=6),
    st.floats(-1e6, 1e6),
)
def test_moments_do_not_depend_on_the_batches(batches, shift):
    moments = Moments(1)
    for batch in batches:
        moments.add(np.array(batch)[:, None] + shift)
    values = np.concatenate(batches) + shift
    assert moments.count == len(values)
    assert moments.mean[0] == pytest.approx(values.mean(), rel=1e-9, abs=1e-6)
    assert moments.std[0] == pytest.approx(values.std(), rel=1e-6, abs=1e-4)
    assert (moments.minimum[0], moments.maximum[0]) == (values.min(), values.max())


def test_a_reservoir_keeps_every_row_with_the_same_chance():
    times = np.zeros(60)
    for seed in range(1_500):
        reservoir = Reservoir(6, (), np.random.default_rng(seed))
        for start in range(0, 60, 20):
            kept, places = reservoir.places(20)
            reservoir.store[places] = start + kept
        assert len(set(reservoir.rows.tolist())) == 6
        times[reservoir.rows.astype(int)] += 1
    assert np.abs(times - 150).max() < 5 * np.sqrt(
        150 * 0.9
    )  # each row 1500 * 6 / 60 times, five deviations


def test_repeats_are_found_within_the_limit_and_none_by_halves_beyond():
    contents = [str(i).encode() for i in range(500)]
    small, large = SeenContents(64), SeenContents(10_000)
    numbers = []
    for owner in ("a", "b", "c", "d"):
        for content in contents:
            small.add(content, owner)
            numbers.append(large.add(content, owner))
    assert numbers[:500] == list(range(500)) == numbers[500:1000]
    found = large.duplicates()
    assert (found.contents, found.copies, found.watched) == (500, 1500, 1.0)
    assert found.examples[0] == ["a", "b", "c"] and len(found.examples) == 5
    part = small.duplicates()
    assert len(small.known) <= 64 and part.watched <= 64 / 500 * 2
    assert part.copies == 3 * part.contents  # of each content all four or none
    assert part.contents / part.watched == pytest.approx(500, rel=0.5)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(-5, 5), min_size=1, max_size=30))
def test_the_highest_are_those_of_a_sort(values):
    highest = Highest(1)
    for i, value in enumerate(values):
        highest.add(np.array([value], dtype=float), str(i))
    assert [value for value, _ in highest.found[0]] == sorted(values, reverse=True)[:3]
    assert all(values[int(owner)] == value for value, owner in highest.found[0])


def test_memory_holds_few_episodes_whatever_their_number():
    alive: weakref.WeakSet = weakref.WeakSet()
    most = 0

    def read():
        nonlocal most
        for i in range(60):
            episode = Living(**vars(plain(i, np.random.default_rng(i).normal(size=(10, 2)))))
            alive.add(episode)
            most = max(most, len(alive))
            yield episode

    kept: list[Episode] = []
    survey_episodes(keep_episodes(RobotData("made", "memory", read), kept))
    assert most <= 6 + 3  # those kept and those on their way
    assert len(kept) == 6


class Living(Episode):
    """Hashed by identity, for a weak set."""

    __hash__ = object.__hash__
    __eq__ = object.__eq__


def test_kept_episodes_are_drawn_evenly_in_order_and_faults_pass():
    episodes = [plain(i, [[1.0]]) for i in range(12)]
    times = dict.fromkeys([episode.episode_id for episode in episodes], 0)
    for seed in range(400):
        kept: list[Episode] = []
        watched = keep_episodes(
            data_of(*episodes[:6], Fault("a", "torn"), *episodes[6:]), kept, count=3, seed=seed
        )
        assert len(list(watched)) == 12 and len(watched.faults) == 1
        assert [e.episode_id for e in kept] == [
            e.episode_id for e in episodes if e in kept
        ] and len(kept) == 3
        for episode in kept:
            times[episode.episode_id] += 1
    assert max(abs(n - 100) for n in times.values()) < 5 * np.sqrt(75)


def of_tasks(*numbers: int) -> list[Episode]:
    """An episode for each number, which is that of its instruction."""
    return [replace(plain(i, [[1.0]]), instruction=f"do {n}") for i, n in enumerate(numbers)]


def kept_of(episodes: list[Episode], **settings) -> list[str]:
    kept: list[Episode] = []
    list(keep_episodes(data_of(*episodes), kept, **settings))
    return [episode.instruction for episode in kept]


def test_kept_episodes_are_of_as_many_instructions_as_there_are():
    in_blocks = of_tasks(*(n for n in range(15) for _ in range(20)))
    assert all(len(set(kept_of(in_blocks, seed=seed))) == 6 for seed in range(50))
    first, last = (
        sum(f"do {n}" in kept_of(in_blocks, seed=seed) for seed in range(200)) for n in (0, 14)
    )
    assert min(first, last) > 200 * 6 / 15 - 5 * np.sqrt(
        200 * 0.4 * 0.6
    )  # no place in the stream is favoured
    few = of_tasks(*[0] * 90, *[1] * 5, 2)
    assert sorted(kept_of(few)) in (
        ["do 0"] * 3 + ["do 1"] * 2 + ["do 2"],
        ["do 0"] * 2 + ["do 1"] * 3 + ["do 2"],
    )
    assert kept_of(of_tasks(3, 1, 2)) == ["do 3", "do 1", "do 2"]
    assert len(kept_of(of_tasks(*range(40)), count=4)) == 4
