"""LeRobot's own code opens what we write, and we read what it writes: images and video, in v3.0 (lerobot 0.4) and in
v2.1 (lerobot 0.3). Skipped where lerobot is not installed.

Videos are compared with a decoder that knows nothing of times: frame n is the n-th picture that comes out of the file.
"""

import functools
import inspect
import random
from pathlib import Path

import av
import numpy as np
import pyarrow.parquet as pq
import pytest
from data_episodes import make_episode

from roboalign.episodes.formats.lerobot import LeRobotWriter, read_lerobot
from roboalign.episodes.open import open_robot_data
from roboalign.episodes.rewrite import rewrite
from roboalign.episodes.video import VideoFrames

peer = pytest.importorskip("lerobot.datasets.lerobot_dataset", reason="lerobot is not installed")
V3 = peer.CODEBASE_VERSION == "v3.0"
needs_v3 = pytest.mark.skipif(not V3, reason="this lerobot does not open v3.0")
FPS, LENGTHS = (
    20,
    (23, 12, 40, 17),
)  # an episode of one frame is refused by lerobot 0.4 itself, with h264
REAL = Path(__file__).parents[3] / "shared/data/lerobot_v2_picknplace/videos/chunk-000"
VECTORS = {
    "observation.state": {"dtype": "float32", "shape": (3,), "names": ["a", "b", "c"]},
    "action": {"dtype": "float32", "shape": (2,), "names": ["x", "y"]},
}


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))


def write(folder: Path, episodes: list[list[dict]], **cameras: dict):
    """Let lerobot write the rows of `episodes`; `cameras` describe the images in them."""
    features = VECTORS | {f"observation.images.{name}": camera for name, camera in cameras.items()}
    videos = any(camera["dtype"] == "video" for camera in cameras.values())
    written = peer.LeRobotDataset.create(
        "local/own", fps=FPS, features=features, root=folder, use_videos=videos
    )
    with_task = "task" in inspect.signature(written.add_frame).parameters  # lerobot 0.3
    for episode in episodes:
        for row in episode:
            values = {key: value for key, value in row.items() if key != "task"}
            written.add_frame(values, task=row["task"]) if with_task else written.add_frame(
                dict(row)
            )
        written.save_episode()
    if hasattr(written, "finalize"):
        written.finalize()
    return written


def make_rows(number: int, frames: dict[str, np.ndarray]) -> list[dict]:
    """The rows of one episode: random numbers beside the frames uint8 [T, H, W, 3] of each camera."""
    rng = np.random.default_rng(number)
    length = len(next(iter(frames.values())))
    return [
        {
            "observation.state": rng.normal(size=3).astype(np.float32),
            "action": rng.normal(size=2).astype(np.float32),
            "task": f"do {number % 2}",
        }
        | {f"observation.images.{name}": images[t] for name, images in frames.items()}
        for t in range(length)
    ]


def drawn(seed: int, length: int, height: int = 96, width: int = 128) -> np.ndarray:
    """uint8 [T, H, W, 3]: a square wanders over smooth noise, differently in each episode."""
    rng = np.random.default_rng(seed)
    ground = np.kron(
        rng.integers(40, 160, (height // 8, width // 8, 3)), np.ones((8, 8, 1))
    ).astype(np.uint8)
    frames = np.repeat(ground[None], length, axis=0)
    for t, frame in enumerate(frames):
        y, x = (13 * seed + 5 * t) % (height - 20), (7 * t) % (width - 20)
        frame[y : y + 20, x : x + 20] = (255, 230, 40 * (t % 6))
    return frames


def filmed(number: int, length: int) -> np.ndarray:
    """uint8 [T, 256, 256, 3] from a real data set's camera, every fourth frame so that neighbours differ."""
    path = next(REAL.glob(f"*/episode_{number:06d}.mp4"))
    frames = VideoFrames(path, 0.0, 4 * length, 20.0)
    return np.stack([frames.frame(4 * t) for t in range(length)])


def pictures(path: Path) -> np.ndarray:
    """uint8 [N, H, W, 3]: all pictures of a video file in the order in which they come out, their times ignored."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def camera(frames: np.ndarray, dtype: str) -> dict:
    return {"dtype": dtype, "shape": frames.shape[1:], "names": ["height", "width", "channels"]}


def check_numbers(found: list, episodes: list[list[dict]]) -> None:
    """Everything but the frames is what lerobot was given."""
    assert [(e.instruction, len(e), e.fps) for e in found] == [
        (rows[0]["task"], len(rows), FPS) for rows in episodes
    ]
    for episode, rows in zip(found, episodes, strict=True):
        np.testing.assert_array_equal(episode.actions, [row["action"] for row in rows])
        np.testing.assert_array_equal(episode.state, [row["observation.state"] for row in rows])


def check_own_step(frame: np.ndarray, originals: np.ndarray, t: int) -> None:
    """The frame is the compressed step t: no other of `originals` is as near, and it is near."""
    apart = np.abs(originals.astype(np.int16) - frame).mean(axis=(1, 2, 3))
    assert apart[t] < 10 and apart.argmin() == t, (t, apart.argmin(), apart[t])


@needs_v3
def test_lerobot_opens_what_we_write(tmp_path):
    episodes = [
        make_episode(task, seed) for task in ("puck-push", "plate-slide") for seed in range(2)
    ]
    writer = LeRobotWriter(
        tmp_path / "set",
        fps=10,
        cameras={"workspace": (32, 32)},
        action_names="xyzg",
        state_names="xyzg",
        privileged_names=episodes[0].privileged_names,
        episodes_per_file=3,
    )
    for e in episodes:
        frames = {"workspace": np.stack([e.frame("workspace", t) for t in range(len(e))])}
        writer.add(
            episode_id=e.episode_id,
            task=e.task,
            instruction=e.instruction,
            actions=e.actions,
            state=e.state,
            frames=frames,
            cameras=e.cameras,
            privileged=e.privileged,
            privileged_names=e.privileged_names,
        )
    writer.finalize()
    found = peer.LeRobotDataset(
        "local/set", root=tmp_path / "set", delta_timestamps={"action": [0.0, 0.1, 0.2]}
    )
    assert (found.num_episodes, len(found), found.fps) == (4, 120, 10)
    for index in (0, 45, 119):
        episode, t = episodes[index // 30], index % 30
        item = found[index]
        assert item["task"] == episode.instruction and item["episode_index"] == index // 30
        np.testing.assert_array_equal(item["action"].numpy(), episode.chunk(t, 3))
        np.testing.assert_array_equal(item["observation.state"].numpy(), episode.state[t])
        pixels = (
            (item["observation.images.workspace"].permute(1, 2, 0).numpy() * 255)
            .round()
            .astype(np.uint8)
        )
        np.testing.assert_array_equal(pixels, episode.frame("workspace", t))


def test_we_read_the_images_that_lerobot_writes(tmp_path):
    episodes = [
        make_rows(number, {"front": drawn(number, 4 + number, 24, 32)}) for number in range(3)
    ]
    write(
        tmp_path / "own",
        episodes,
        front=camera(episodes[0][0]["observation.images.front"][None], "image"),
    )
    found = read_lerobot(tmp_path / "own")
    check_numbers(found, episodes)
    for episode, rows in zip(found, episodes, strict=True):
        for t, row in enumerate(rows):
            np.testing.assert_array_equal(
                episode.frame("front", t), row["observation.images.front"]
            )


@pytest.fixture(params=["libsvtav1", "h264"])
def codec(request, monkeypatch) -> str:
    """lerobot's default codec and the other common one; only lerobot's own encoder is called."""
    if "vcodec" not in inspect.signature(peer.LeRobotDataset.create).parameters:
        encode = functools.partial(peer.encode_video_frames, vcodec=request.param)
        monkeypatch.setattr(peer, "encode_video_frames", encode)
    else:
        create = functools.partial(peer.LeRobotDataset.create, vcodec=request.param)
        monkeypatch.setattr(peer.LeRobotDataset, "create", create)
    return request.param


@pytest.mark.parametrize("source", [drawn, filmed])
def test_we_read_the_videos_that_lerobot_writes(codec, source, tmp_path):
    if source is filmed and not REAL.exists():
        pytest.skip("the real data set is not here")
    films = [
        {"front": source(n, length), "wrist": drawn(n + 10, length)}
        for n, length in enumerate(LENGTHS)
    ]
    episodes = [make_rows(number, frames) for number, frames in enumerate(films)]
    write(
        tmp_path / "own",
        episodes,
        **{name: camera(frames, "video") for name, frames in films[0].items()},
    )
    found = read_lerobot(tmp_path / "own")
    check_numbers(found, episodes)
    seen = {}
    for number, (episode, frames) in enumerate(zip(found, films, strict=True)):
        for name, originals in frames.items():
            for t in range(len(originals)):
                seen[number, name, t] = episode.frame(name, t)
                check_own_step(seen[number, name, t], originals, t)
    for name in films[0]:  # v2.1: a file for each episode; v3.0: one file for all
        paths = sorted((tmp_path / "own" / "videos").rglob(f"*{name}/**/*.mp4"))
        assert len(paths) == (1 if V3 else len(LENGTHS))
        stored = np.concatenate([pictures(path) for path in paths])
        np.testing.assert_array_equal(stored, [seen[key] for key in seen if key[1] == name])
    keys = list(seen)
    random.Random(0).shuffle(keys)
    for number, name, t in keys:
        np.testing.assert_array_equal(found[number].frame(name, t), seen[number, name, t])


def test_the_times_that_lerobot_writes_are_those_that_we_go_by(tmp_path):
    frames = [{"front": drawn(n, length)} for n, length in enumerate(LENGTHS)]
    write(
        tmp_path / "own",
        [make_rows(n, one) for n, one in enumerate(frames)],
        front=camera(drawn(0, 1), "video"),
    )
    tables = [
        pq.read_table(path, columns=["timestamp", "episode_index"])
        for path in sorted((tmp_path / "own/data").rglob("*.parquet"))
    ]
    times, owners = (
        np.concatenate([table[key].to_numpy().reshape(-1) for table in tables])
        for key in ("timestamp", "episode_index")
    )
    for number, length in enumerate(LENGTHS):
        np.testing.assert_array_equal(
            times[owners == number], (np.arange(length) / FPS).astype(np.float32)
        )


@needs_v3
def test_videos_in_several_files_are_found(tmp_path):
    """Each episode's video in a file of its own, as when they are large."""
    films = [{"front": drawn(n, length)} for n, length in enumerate(LENGTHS)]
    features = VECTORS | {"observation.images.front": camera(films[0]["front"], "video")}
    written = peer.LeRobotDataset.create(
        "local/own", fps=FPS, features=features, root=tmp_path / "own"
    )
    written.meta.info["video_files_size_in_mb"] = 1e-4
    for number, frames in enumerate(films):
        for row in make_rows(number, frames):
            written.add_frame(row)
        written.save_episode()
    written.finalize()
    assert len(list((tmp_path / "own/videos").rglob("*.mp4"))) == len(LENGTHS)
    for episode, frames in zip(read_lerobot(tmp_path / "own"), films, strict=True):
        episode.images["front"].check()
        for t in range(len(episode)):
            check_own_step(episode.frame("front", t), frames["front"], t)


@needs_v3
def test_lerobot_opens_its_own_videos_after_our_conversion(tmp_path):
    films = [{"front": drawn(n, length)} for n, length in enumerate(LENGTHS)]
    episodes = [make_rows(n, frames) for n, frames in enumerate(films)]
    write(tmp_path / "own", episodes, front=camera(films[0]["front"], "video"))
    source = open_robot_data(tmp_path / "own")
    rewrite(source, tmp_path / "converted")
    found = peer.LeRobotDataset("local/converted", root=tmp_path / "converted")
    assert (found.num_episodes, len(found), found.fps) == (len(LENGTHS), sum(LENGTHS), FPS)
    index = 0
    for episode, rows in zip(source, episodes, strict=True):
        for t, row in enumerate(rows):
            item = found[index]
            assert item["task"] == row["task"] and item["timestamp"].item() == np.float32(t / FPS)
            np.testing.assert_array_equal(item["action"].numpy(), row["action"])
            np.testing.assert_array_equal(
                item["observation.state"].numpy(), row["observation.state"]
            )
            pixels = (
                (item["observation.images.front"].permute(1, 2, 0).numpy() * 255)
                .round()
                .astype(np.uint8)
            )
            np.testing.assert_array_equal(pixels, episode.frame("front", t))
            index += 1
