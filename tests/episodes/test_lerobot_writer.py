"""The writer of LeRobot v3.0: a killed one resumes, a fault is refused by name, statistics and names by hand."""

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lerobot_writers import as_arguments, open_writer

from roboalign.core.errors import RoboAlignError
from roboalign.episodes.formats import lerobot_layout as layout
from roboalign.episodes.formats.feature_stats import image_stats, pool, vector_stats


def test_a_killed_writer_goes_on(tmp_path, episodes):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    writer = open_writer(whole, episodes[0])
    for episode in episodes[:5]:
        writer.add(**as_arguments(episode))
    writer.finalize()
    first = open_writer(killed, episodes[0])
    for episode in episodes[:3]:
        first.add(**as_arguments(episode))
    del first  # killed: the third episode was pending, and there are no meta files
    resumed = open_writer(killed, episodes[0])
    assert resumed.episode_ids == {episode.episode_id for episode in episodes[:2]}
    for episode in episodes[:5]:
        if episode.episode_id not in resumed.episode_ids:
            resumed.add(**as_arguments(episode))
    resumed.finalize()
    for path in sorted(p.relative_to(whole) for p in whole.rglob("*") if p.is_file()):
        assert (killed / path).read_bytes() == (whole / path).read_bytes(), path


def test_a_failed_write_leaves_no_episode(tmp_path, episodes, monkeypatch):
    writer = open_writer(tmp_path, episodes[0], episodes_per_file=1)
    monkeypatch.setattr(
        pq.ParquetWriter, "close", lambda self: (_ for _ in ()).throw(OSError("disk full"))
    )
    with pytest.raises(OSError, match="disk full"):
        writer.add(**as_arguments(episodes[0]))
    assert not list(tmp_path.rglob("*.parquet"))


def bad(values: np.ndarray, at: tuple[int, int], value: float) -> np.ndarray:
    values = values.copy()
    values[at] = value
    return values


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda e: {"actions": bad(e.actions, (3, 1), np.nan)},
            "action is not finite at step 3, dimension y",
        ),
        (lambda e: {"state": bad(e.state, (0, 0), np.inf)}, "observation.state is not finite"),
        (
            lambda e: {"actions": e.actions[:, :3]},
            r"action has shape \(30, 3\), expected \(30, 4\)",
        ),
        (lambda e: {"state": e.state[:-1]}, "observation.state has shape"),
        (lambda e: {"privileged": e.privileged[:-1]}, "privileged has 29 steps"),
        (
            lambda e: {"privileged_names": ("a", *e.privileged_names[1:])},
            "privileged state has 10 columns",
        ),
        (
            lambda e: {"frames": {"workspace": np.zeros((30, 16, 16, 3), np.uint8)}},
            "frames of workspace are",
        ),
        (lambda e: {"frames": {}}, "camera workspace is missing"),
    ],
)
def test_writer_refuses(tmp_path, one_episode, change, message):
    writer = open_writer(tmp_path, one_episode)
    with pytest.raises(RoboAlignError, match=message) as error:
        writer.add(**as_arguments(one_episode, **change(one_episode)))
    assert one_episode.episode_id in str(error.value)
    assert not writer.pending and not writer.episode_ids


@given(st.lists(st.integers(1, 6), min_size=1, max_size=5), st.integers(0, 99))
def test_pooled_statistics_are_those_of_the_whole(lengths, seed):
    parts = [np.random.default_rng([seed, i]).normal(size=(n, 3)) for i, n in enumerate(lengths)]
    whole, pooled = (
        vector_stats(np.concatenate(parts)),
        pool([vector_stats(part) for part in parts]),
    )
    for name in ("min", "max", "mean", "std", "count"):
        np.testing.assert_allclose(pooled[name], whole[name], atol=1e-9)


def test_image_statistics_by_hand():
    frames = np.zeros((2, 2, 2, 3), np.uint8)
    frames[1, ..., 0] = 255
    stats = image_stats(frames)
    assert (
        stats["mean"] == [[[0.5]], [[0.0]], [[0.0]]]
        and stats["std"][0] == [[0.5]]
        and stats["count"] == [2]
    )


@pytest.mark.parametrize(
    "stated, width, names",
    [
        (["x", "y"], 2, ("x", "y")),
        ({"motors": ["a", "b", "c"]}, 3, ("a", "b", "c")),  # as before v2.1
        ({"left": ["a", "b"], "right": ["c"]}, 3, ("a", "b", "c")),
        ({"delta_y": 1, "delta_x": 0}, 2, ("delta_x", "delta_y")),  # as teleoperation writes them
        (None, 2, ()),
        (["x"], 2, ()),
        (["x", 3], 2, ()),
        ([], 2, ()),
        ({}, 2, ()),
        ({"a": None}, 1, ()),
        (["state"], 4, ()),
    ],
)
def test_names_of_dimensions(stated, width, names):
    assert layout.dimension_names({"dtype": "float32", "shape": [width], "names": stated}) == names
