"""Episode: chunks, lazy frames, positions by name."""

import numpy as np
import pytest
from data_episodes import make_episode, overhead
from hypothesis import given
from hypothesis import strategies as st

from roboalign.core.errors import RoboAlignError
from roboalign.episodes.episode import content_id, encode_png


def test_a_chunk_begins_now_and_repeats_the_last_action():
    episode = make_episode(steps=5)
    episode.actions = np.arange(20, dtype=np.float32).reshape(5, 4)
    np.testing.assert_array_equal(episode.chunk(1, 3)[:, 0], [4, 8, 12])
    np.testing.assert_array_equal(episode.chunk(3, 4)[:, 0], [12, 16, 16, 16])


@given(st.integers(1, 12), st.integers(1, 9))
def test_all_chunks_are_the_single_chunks(steps, horizon):
    episode = make_episode(steps=max(steps, 5))
    stacked = np.stack([episode.chunk(t, horizon) for t in range(len(episode))])
    np.testing.assert_array_equal(episode.chunks(horizon), stacked)


def test_a_png_keeps_every_pixel():
    frame = np.random.default_rng(0).integers(0, 256, (7, 5, 3), dtype=np.uint8)
    episode = make_episode()
    episode.images = {"workspace": [encode_png(frame)]}
    np.testing.assert_array_equal(episode.frame("workspace", 0), frame)


def test_what_is_missing_is_named():
    episode = make_episode()
    with pytest.raises(RoboAlignError, match=r"no camera 'wrist'; it has \['workspace'\]"):
        episode.frame("wrist", 0)
    episode.images = {"workspace": [b"no image"]}
    with pytest.raises(RoboAlignError, match="frame 0 of camera workspace is not a readable image"):
        episode.frame("workspace", 0)
    assert episode.position("object2") is None
    np.testing.assert_array_equal(episode.position("object"), episode.privileged[:, 4:7])


def test_pixels_by_hand():
    assert overhead(32).pixels(np.array([0.25, 0.75, 0.4])).tolist() == [24.0, 8.0]


def test_an_id_depends_on_the_actions_alone():
    actions = np.arange(6, dtype=np.float32).reshape(3, 2)
    # sha256 of b"(3, 2)" and the 24 bytes, by sha256sum
    assert content_id("train/episode-000000", actions) == "train/episode-000000-88740844"
    assert content_id("a", actions.astype(np.float64)) == content_id("a", actions)
    assert content_id("a", actions.reshape(2, 3)) != content_id("a", actions)
    changed = actions.copy()
    changed[2, 1] += 1e-6
    assert content_id("a", changed) != content_id("a", actions)
