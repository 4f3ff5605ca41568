"""Frames of a video file: the right one in any order of access, few seeks, few open files, and broken files by name."""

import multiprocessing
import pickle
import random
import shutil
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from made_videos import FPS, LENGTH, SIZE, number_in, picture, write_video

from roboalign.core.errors import RoboAlignError
from roboalign.episodes import decoder
from roboalign.episodes.decoder import Decoder, close_videos
from roboalign.episodes.episode import Camera, Episode
from roboalign.episodes.video import VideoFrames

REAL = Path(__file__).parents[2].parent / "shared/data/lerobot_v2_picknplace/videos/chunk-000"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("video")
    for gop in (1, 2, 10, 250):
        write_video(folder / f"{gop}.mp4", range(LENGTH), gop=gop)
    write_video(
        folder / "open.mp4", range(LENGTH), options={"x264-params": "open-gop=1", "bf": "3"}
    )
    write_video(folder / "av1.mp4", range(LENGTH), gop=20, codec="libsvtav1", size=96)
    return folder


@pytest.fixture
def counts(monkeypatch) -> dict[str, int]:
    """How often a decoder seeks and decodes from here on."""
    close_videos()
    counts = {"_seek": 0, "_advance": 0}

    def counted(name):
        original = getattr(Decoder, name)

        def call(*arguments):
            counts[name] += 1
            return original(*arguments)

        monkeypatch.setattr(Decoder, name, call)

    for name in counts:
        counted(name)
    return counts


def test_the_pattern_can_be_read():
    assert [number_in(picture(number)) for number in range(512)] == list(range(512))


@pytest.mark.parametrize("name", ["1", "2", "10", "250", "open", "av1"])
@settings(max_examples=15, deadline=None)
@given(order=st.lists(st.integers(-LENGTH, LENGTH - 1), min_size=1, max_size=12))
@example(
    order=[299, 199, 189, 109, 29, 9]
)  # the last before a key frame, which an open group shows after it
def test_frames_are_found_in_any_order(folder, name, order):
    frames = VideoFrames(folder / f"{name}.mp4", 0, LENGTH, FPS)
    assert [number_in(frames.frame(t)) for t in order] == [t % LENGTH for t in order]


@settings(max_examples=15, deadline=None)
@given(first=st.integers(0, LENGTH - 2), data=st.data())
def test_a_part_of_a_file(folder, first, data):
    length = data.draw(st.integers(1, LENGTH - first))
    t = data.draw(st.integers(0, length - 1))
    shift = data.draw(st.floats(-0.02, 0.02))  # less than half a frame, which is 0.025 s
    frames = VideoFrames(folder / "10.mp4", max(first / FPS + shift, 0.0), length, FPS)
    frames.check()
    assert number_in(frames.frame(t)) == first + t


def test_every_second_frame_of_a_video_that_is_twice_as_fast(folder):
    frames = VideoFrames(folder / "10.mp4", 0, LENGTH // 2, FPS / 2)
    assert [number_in(frames.frame(t)) for t in (0, 1, 70, 149)] == [0, 2, 140, 298]


def test_png_and_pixels_agree(folder):
    frames = VideoFrames(folder / "10.mp4", 0.5, 20, FPS)
    episode = Episode(
        "e",
        "",
        "",
        FPS,
        np.zeros((20, 1)),
        np.zeros((20, 0)),
        {"c": frames, "png": frames[:]},
        {"c": Camera("c", SIZE, SIZE)},
    )
    for t in (0, 19, -1):
        np.testing.assert_array_equal(episode.frame("c", t), episode.frame("png", t))
        assert number_in(episode.frame("c", t)) == 10 + t % 20
    assert len(frames) == 20 and len(frames[3:5]) == 2
    for t in (20, -21):
        with pytest.raises(IndexError):
            frames[t]
    with pytest.raises(RoboAlignError, match="no camera 'other'"):
        episode.frame("other", 0)


@pytest.mark.parametrize("name", ["1", "2", "10", "250", "av1"])
def test_frames_in_order_are_decoded_once(folder, name, counts):
    frames = VideoFrames(folder / f"{name}.mp4", 0, LENGTH, FPS)
    assert [number_in(frames.frame(t)) for t in range(LENGTH)] == list(range(LENGTH))
    assert counts == {"_seek": 1, "_advance": LENGTH}


def test_a_jump_costs_at_most_the_frames_from_the_key_frame(folder, counts):
    frames = VideoFrames(folder / "10.mp4", 0, LENGTH, FPS)
    for t in (295, 104, 250, 9):
        before = counts["_advance"]
        assert number_in(frames.frame(t)) == t
        # A key frame every 10, and one group more where the index is in the order of decoding.
        assert counts["_advance"] - before <= 21
    every = range(0, LENGTH, 20)
    sparse = VideoFrames(folder / "250.mp4", 0, LENGTH, FPS)
    counts["_advance"] = 0
    assert [number_in(sparse.frame(t)) for t in every] == list(every)
    assert (
        counts["_advance"] < 2 * LENGTH
    )  # going on, not from the only key frame each time, which would be 2000


def test_few_files_stay_open_and_all_can_be_closed(tmp_path, folder):
    close_videos()
    copies = [
        Path(shutil.copy(folder / "10.mp4", tmp_path / f"{n}.mp4"))
        for n in range(decoder.MAX_OPEN + 4)
    ]
    for copy in copies:
        VideoFrames(copy, 0, LENGTH, FPS).frame(0)
    opened = [link.resolve() for link in Path("/proc/self/fd").iterdir()]
    assert sum(copy in opened for copy in copies) == decoder.MAX_OPEN
    close_videos()
    assert not any(link.resolve() in copies for link in Path("/proc/self/fd").iterdir())


def test_a_replaced_file_is_opened_anew(tmp_path, folder):
    frames = VideoFrames(shutil.copy(folder / "10.mp4", tmp_path / "a.mp4"), 0, 30, FPS)
    assert number_in(frames.frame(3)) == 3
    write_video(tmp_path / "a.mp4", range(100, 130))
    assert number_in(frames.frame(3)) == 103


def read_in_worker(frames: VideoFrames, order: list[int], queue) -> None:
    queue.put([number_in(frames.frame(t)) for t in order])


def test_forked_and_pickled_readers_do_not_disturb_each_other(folder):
    frames = VideoFrames(folder / "10.mp4", 0, LENGTH, FPS)
    assert (
        number_in(pickle.loads(pickle.dumps(frames)).frame(40)) == 40
    )  # the decoder is open when the fork happens
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    orders = [random.Random(seed).sample(range(LENGTH), 60) for seed in range(2)]
    workers = [
        context.Process(target=read_in_worker, args=(frames, order, queue)) for order in orders
    ]
    for worker in workers:
        worker.start()
    own = [number_in(frames.frame(t)) for t in range(41, 101)]
    found = [queue.get(timeout=30) for _ in workers]
    for worker in workers:
        worker.join()
    assert own == list(range(41, 101)) and sorted(found) == sorted(orders)


def refused(frames: VideoFrames, t: int, message: str) -> None:
    with pytest.raises(RoboAlignError, match=message) as error:
        frames.frame(t)
    assert str(frames.path) in str(error.value) and " s: " in str(error.value)
    with pytest.raises(RoboAlignError, match=message) as error:
        frames.check()
    assert str(frames.path) in str(error.value)


def test_times_without_a_frame_are_refused(folder):
    path = folder / "10.mp4"
    with pytest.raises(
        RoboAlignError, match=r"at 15.000 s: no frame of step 300: the nearest frame is at 14.950 s"
    ):
        VideoFrames(path, 0, 301, FPS).frame(300)
    with pytest.raises(
        RoboAlignError, match=r"1 of 301 steps have no frame, the first of them step 300"
    ):
        VideoFrames(path, 0, 301, FPS).check()
    with pytest.raises(RoboAlignError, match="10 of 10 steps have no frame"):
        VideoFrames(path, 100, 10, FPS).check()
    with pytest.raises(RoboAlignError, match="no frame of step 1"):
        VideoFrames(path, 0, 10, FPS * 2.5).frame(1)  # at 0.02 s; the frames are at 0 and 0.05 s
    with pytest.raises(RoboAlignError, match="not a readable video"):
        VideoFrames(path, 1e300, 10, FPS).frame(0)


def test_a_frame_of_another_size_is_refused(folder):
    with pytest.raises(
        RoboAlignError, match=r"10.mp4, at 0.000 s: the frames are 48x48, described as 64x48"
    ):
        VideoFrames(folder / "10.mp4", 0, LENGTH, FPS, size=(64, 48)).frame(0)


def test_broken_files_are_named(folder, tmp_path):
    path = tmp_path / "a.mp4"
    refused(VideoFrames(path, 0, LENGTH, FPS), 0, "the file does not exist")
    path.write_bytes((folder / "10.mp4").read_bytes()[:-2000])  # the index is at the end
    refused(VideoFrames(path, 0, LENGTH, FPS), 0, "not a readable video")
    path.write_bytes(b"")
    refused(VideoFrames(path, 0, LENGTH, FPS), 0, "not a readable video")
    path.write_bytes(b"not a video" * 99)
    refused(VideoFrames(path, 0, LENGTH, FPS), 0, "not a readable video")
    with av.open(str(tmp_path / "sound.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        sound = av.AudioFrame(format="s16", layout="mono", samples=800)
        sound.sample_rate = 8000
        for packet in [*stream.encode(sound), *stream.encode()]:
            container.mux(packet)
    with pytest.raises(RoboAlignError, match="the file holds no video"):
        VideoFrames(tmp_path / "sound.wav", 0, LENGTH, FPS).frame(0)


@pytest.mark.parametrize("codec", ["libx264", "libsvtav1"])
def test_a_cut_file_with_its_index_in_front_gives_the_frames_that_it_has(tmp_path, codec):
    whole = write_video(
        tmp_path / "whole.mp4", range(120), codec=codec, size=96, movflags="faststart"
    )
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size * 3 // 4])
    frames = VideoFrames(cut, 0, 120, FPS)
    assert [number_in(frames.frame(t)) for t in (0, 50, 3)] == [0, 50, 3]
    for t in (119, 110):
        with pytest.raises(RoboAlignError, match=r"cut.mp4, at 5\.\d+ s: "):
            frames.frame(t)
    assert number_in(frames.frame(20)) == 20  # a fault does not spoil what is asked for after it
    with pytest.raises(RoboAlignError, match=r"cut.mp4.* of 120 steps have no frame"):
        frames.check()


@pytest.mark.parametrize("intact", [0.2, 0.7])  # the decoder gives up, or conceals what is missing
def test_damage_between_two_key_frames_costs_no_other_frame(tmp_path, intact):
    path = write_video(tmp_path / "a.mp4", range(60), gop=10, size=96, options={"bf": "0"})
    with av.open(str(path)) as container:
        packet = [packet for packet in container.demux(video=0) if packet.pts is not None][25]
        start, end = packet.pos + int(intact * packet.size), packet.pos + packet.size
    data = bytearray(path.read_bytes())
    data[start:end] = bytes([0xA5]) * (end - start)
    path.write_bytes(data)
    frames = VideoFrames(path, 0, 60, FPS)
    for order in (range(60), random.Random(0).sample(range(60), 60)):
        found = {}
        for t in order:
            try:
                found[t] = number_in(frames.frame(t))
            except RoboAlignError as error:
                assert str(path) in str(error)
        assert found == {t: t for t in [*range(25), *range(30, 60)]}


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 0.999999), st.integers(1, 255)), min_size=1, max_size=4),
    st.booleans(),
    st.floats(0.3, 1.0),
)
def test_flipped_bytes_give_a_frame_or_one_error(folder, tmp_path_factory, flips, av1, kept):
    data = bytearray((folder / ("av1.mp4" if av1 else "10.mp4")).read_bytes())
    for place, value in flips:
        data[int(place * len(data))] ^= value
    path = tmp_path_factory.mktemp("flipped") / "a.mp4"
    path.write_bytes(data[: int(kept * len(data))])
    frames = VideoFrames(path, 0, LENGTH, FPS)
    for action in (frames.check, *(lambda t=t: frames.frame(t) for t in (0, 299, 150, 151, 20))):
        try:
            action()
        except RoboAlignError as error:
            assert str(path) in str(error)


@pytest.mark.skipif(not REAL.is_dir(), reason="the real data is not here")
def test_real_video_in_any_order_is_that_of_a_decoder_from_the_start():
    path = REAL / "observation.images.ego_view/episode_000004.mp4"
    with av.open(str(path)) as container:
        expected = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    frames = VideoFrames(path, 0, 328, 20, size=(256, 256))
    frames.check()
    for t in random.Random(0).sample(range(328), 25):
        np.testing.assert_array_equal(frames.frame(t), expected[t])
