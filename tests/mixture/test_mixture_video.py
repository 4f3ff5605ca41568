"""A run's mixture over videos: each frame is decoded once, forward, and the mixture is the same."""

from collections import defaultdict
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from made_videos import write_video

from roboalign.actions.fast import FastTokenizer
from roboalign.actions.normalize import ActionStats
from roboalign.core.files import hash_file
from roboalign.episodes.decoder import Decoder, close_videos
from roboalign.episodes.episode import Camera, Episode
from roboalign.episodes.own_data import ChosenPixels
from roboalign.episodes.video import VideoFrames
from roboalign.mixture import demonstrations
from roboalign.mixture.packed import MixConfig

FPS = 20
FILES = {"long.mp4": (60, (0, 25, 55, 90)), "short.mp4": (10, (0, 30, 55))}
"""Name -> frames from one key frame to the next; where its episodes begin, and the last one ends."""
CONFIG = MixConfig(conversations=120, rl_share=0.009, heldout_actions=6, camera="front")


@pytest.fixture(scope="module")
def recorded(tmp_path_factory) -> list[Episode]:
    """Episodes of two files, in another order than in the files; one has lost its idle frames."""
    folder, rng, found = tmp_path_factory.mktemp("videos"), np.random.default_rng(0), []
    for name, (gop, bounds) in FILES.items():
        path = write_video(folder / name, range(bounds[-1]), gop=gop)
        for first, end in pairwise(bounds):
            frames = VideoFrames(path, first / FPS, end - first, FPS)
            if first == 25:
                frames = ChosenPixels(frames, list(range(0, end - first, 2)))
            actions = rng.normal(size=(len(frames), 3)).astype(np.float32)
            images, cameras = {"front": frames}, {"front": Camera("front", 48, 48)}
            facts = (f"{name}-{first}", "pick", "pick it", float(FPS))
            found.append(Episode(*facts, actions, actions, images, cameras))
    return found[::-1]


def built(episodes: list[Episode], out: Path, workers: int) -> dict[str, str]:
    """The sha256 of every file of the mixture."""
    stats = ActionStats.fit(np.concatenate([one.actions for one in episodes]))
    chunks = np.concatenate([stats.normalize(one.chunks(4)) for one in episodes])
    fast = FastTokenizer.fit(chunks, scale=4, vocab_size=128)
    split = (episodes[1:], episodes[:1])
    demonstrations.build_mixture(episodes, fast, stats, CONFIG, out, split=split, workers=workers)
    return {path.name: hash_file(path) for path in sorted(out.rglob("*"))}


def test_each_frame_is_decoded_once_and_the_mixture_is_the_same(recorded, tmp_path, monkeypatch):
    decoded: dict[str, list[float]] = defaultdict(list)
    advance = Decoder._advance

    def counted(self: Decoder) -> bool:
        found = advance(self)
        if found:
            decoded[self.container.name].append(self.current.time)
        return found

    monkeypatch.setattr(Decoder, "_advance", counted)
    close_videos()
    one = built(recorded, tmp_path / "one", 1)
    assert len(decoded) == len(FILES) and sum(map(len, decoded.values())) > 40
    for times in decoded.values():
        assert all(np.diff(times) > 0), "forward, and none twice"
    monkeypatch.undo()
    assert built(recorded, tmp_path / "two", 2) == one
    monkeypatch.setattr(demonstrations, "decoded_once", lambda episodes, *_: list(episodes))
    assert built(recorded, tmp_path / "from the videos", 1) == one
    assert {Path(name).suffix for name in one} == {".parquet", ".json"}
