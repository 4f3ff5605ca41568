import itertools
import os
import shutil
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from synthetic_episodes import make_episode

from roboalign.conversations.styles.registry import STYLES
from roboalign.core.errors import RoboAlignError
from roboalign.episodes.episode import Episode
from roboalign.episodes.own_data import ChosenPixels
from roboalign.episodes.video import VideoFrames
from roboalign.mllm.encode import Prompt
from roboalign.mllm.hidden import hidden_states
from roboalign.vla import features
from roboalign.vla.augment import AugmentConfig, augment
from roboalign.vla.features import (
    FeatureConfig,
    View,
    backbone_hash,
    compute_features,
    describe_features,
    feature_bytes,
)
from roboalign.vla.store import FeatureStore

LABELLED = STYLES["labelled"]

VIEW = View(layer=2, cameras=("front",))
CONFIG = FeatureConfig(batch_size=4, shard_frames=10)


def write_video(path: Path, levels: range) -> None:
    """Frames of 32 x 32 pixels, of these brightnesses times ten, 20 a second."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=20)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        for level in levels:
            frame = np.full((32, 32, 3), 10 * level, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def test_frames_of_a_video_are_decoded_once_in_order(mllm, episodes, tmp_path, monkeypatch):
    """Not for the name of the stored file, and not at all where it exists; another video has another."""
    write_video(tmp_path / "a.mp4", range(20))
    write_video(tmp_path / "b.mp4", range(1, 21))

    def shown(name: str) -> list[Episode]:
        frames = VideoFrames(tmp_path / name, 0, 7, 20)
        late = VideoFrames(tmp_path / name, 0.35, 6, 20)
        idle = ChosenPixels(late, [0, 1, 3, 4, 5])
        return [replace(episodes[0], images={"front": one}) for one in (frames.part(0, 5), idle)]

    decoded = []
    original = VideoFrames.frame
    monkeypatch.setattr(
        VideoFrames, "frame", lambda self, t: decoded.append((self, t)) or original(self, t)
    )
    monkeypatch.setattr(VideoFrames, "file", None)  # no PNG on the way
    store = compute_features(mllm, shown("a.mp4"), VIEW, CONFIG, tmp_path / "store")
    assert [t for _, t in decoded] == [0, 1, 2, 3, 4, 0, 1, 3, 4, 5]
    again = compute_features(mllm, shown("a.mp4"), VIEW, CONFIG, tmp_path / "store")
    assert len(decoded) == 10 and torch.equal(again.tokens[0], store.tokens[0])
    other = compute_features(mllm, shown("b.mp4"), VIEW, CONFIG, tmp_path / "store")
    assert len(decoded) == 20 and not torch.equal(other.tokens[0], store.tokens[0])


def test_stored_states_are_the_models(mllm, episodes, tmp_path):
    store = compute_features(mllm, episodes, VIEW, CONFIG, tmp_path)
    assert len(store) == sum(len(episode) for episode in episodes)
    assert len(list(tmp_path.iterdir())) > 1
    frames = np.array(
        [3, len(store) - 1, 0]
    )  # from several shards, with prompts of different lengths
    got, mask = store.gather(frames)
    where = [(episode, t) for episode in episodes for t in range(len(episode))]
    for row, frame in enumerate(frames):
        episode, t = where[frame]
        prompt = Prompt(
            LABELLED.action_question(episode.instruction, "direct"), (episode.frame("front", t),)
        )
        expected, _ = hidden_states(mllm, [prompt], 2)
        assert mask[row].sum() == expected.shape[1]
        # float16 keeps 11 bits; the batch's shape moves float32 by less.
        torch.testing.assert_close(got[row][mask[row]].float(), expected[0], rtol=2e-3, atol=2e-3)
    assert len(set(mask.sum(1).tolist())) > 1


def test_every_nth_frame(mllm, episodes, tmp_path):
    every = FeatureConfig(every=3, batch_size=4)
    whole = compute_features(mllm, episodes, VIEW, CONFIG, tmp_path)
    thin = compute_features(mllm, episodes, VIEW, every, tmp_path)
    offsets = np.cumsum([0, *(len(episode) for episode in episodes)])
    kept = np.concatenate([np.arange(a, b, 3) for a, b in itertools.pairwise(offsets)])
    assert len(thin) == len(kept)
    torch.testing.assert_close(
        thin.gather(np.arange(len(thin)))[0], whole.gather(kept)[0], rtol=1e-2, atol=1e-2
    )


@pytest.mark.parametrize("dtype", ["float16", "float8"])
@pytest.mark.parametrize("variants", [0, 3])
def test_size_is_known_beforehand(mllm, episodes, tmp_path, dtype, variants):
    view, config = (
        VIEW.model_copy(update={"dtype": dtype}),
        CONFIG.model_copy(update={"variants": variants}),
    )
    told = feature_bytes(mllm, episodes, view, config, augmented=True)
    compute_features(mllm, episodes, view, config, tmp_path, augmented=True)
    kept = [
        value
        for path in tmp_path.iterdir()
        for name, value in load_file(path).items()
        if name != "lengths"
    ]
    assert told == sum(value.numel() * value.element_size() for value in kept)


def test_what_it_takes_and_gains_is_told_beforehand(mllm, episodes, tmp_path, monkeypatch):
    monkeypatch.setattr(features, "_seconds_a_frame", lambda *args: 2.0)
    config = CONFIG.model_copy(update={"variants": 2})
    size = feature_bytes(mllm, episodes[:4], VIEW, config, augmented=True)
    size += feature_bytes(mllm, episodes[4:], VIEW, config)
    short = describe_features(
        mllm, episodes[:4], episodes[4:], VIEW, config, tmp_path, size=size, drawn=500
    )
    assert short == f"hidden states of 5 episodes: {size / 2**20:.1f} MiB, about 2:02"
    monkeypatch.setattr(features, "LARGE", size)
    told = describe_features(
        mllm, episodes[:4], episodes[4:], VIEW, config, tmp_path, size=size, drawn=500
    )
    frames = 2 * (5 + 6 + 7 + 8) + 9
    assert (
        f"hidden states of 5 episodes: {frames} frames (2 augmented copies of each training frame)"
        in told
    )
    assert (
        f"{size / 2**20:.1f} MiB as float16" in told
        and f"{size / 2**21 * 49 / 48:.1f} as float8" in told
    )
    assert (
        "computing them once takes about 2:02, for each of the 500 frames drawn it would take 16:40"
        in told
    )
    assert list(tmp_path.iterdir()) == []


def test_float8_is_the_halves_rounded_further(mllm, episodes, tmp_path):
    whole = compute_features(mllm, episodes, VIEW, CONFIG, tmp_path)
    eight = compute_features(
        mllm, episodes, VIEW.model_copy(update={"dtype": "float8"}), CONFIG, tmp_path
    )
    frames = np.array([len(whole) - 1, 0, 7])
    (expected, mask), (got, same) = whole.gather(frames), eight.gather(frames)
    assert torch.equal(mask, same) and got.dtype == torch.float32
    error = (got - expected.float())[mask].abs() / expected.float()[mask].abs().amax(
        dim=-1, keepdim=True
    )
    assert 0 < error.max() <= 1 / 16  # half a step of a 3-bit mantissa


def test_augmented_copies_are_of_the_augmented_images(mllm, episodes, tmp_path):
    config = CONFIG.model_copy(update={"variants": 2, "augment": AugmentConfig(crop=0.7)})
    plain = compute_features(mllm, episodes, VIEW, config, tmp_path)
    store = compute_features(mllm, episodes, VIEW, config, tmp_path, augmented=True)
    count = len(plain)
    assert len(store) == 2 * count
    (first, second), _ = store.gather(np.array([3, count + 3]))
    assert not torch.equal(first, second) and not torch.equal(
        first, plain.gather(np.array([3]))[0][0]
    )
    shown = augment(
        episodes[0].frame("front", 3), config.augment, episodes[0].episode_id, "front", 3, 2
    )
    expected, _ = VIEW.encode(mllm, [VIEW.prompt({"front": shown}, episodes[0].instruction)])
    torch.testing.assert_close(second[: expected.shape[1]], expected[0], rtol=2e-3, atol=2e-3)
    other = config.model_copy(update={"augment": AugmentConfig(crop=0.8)})
    before = len(list(tmp_path.iterdir()))
    compute_features(mllm, episodes, VIEW, other, tmp_path, augmented=True)
    assert len(list(tmp_path.iterdir())) > before


def test_a_blind_view_is_not_augmented(mllm, episodes, tmp_path):
    view, config = (
        VIEW.model_copy(update={"blind": True}),
        CONFIG.model_copy(update={"variants": 2}),
    )
    assert len(compute_features(mllm, episodes[:1], view, config, tmp_path, augmented=True)) == len(
        episodes[0]
    )


def test_a_killed_run_computes_only_what_is_missing(mllm, episodes, tmp_path, monkeypatch):
    whole = compute_features(mllm, episodes, VIEW, CONFIG, tmp_path).gather(np.arange(20))[0]
    removed = sorted(tmp_path.iterdir())[0]
    removed.unlink()
    written = []
    write = features._compute_shard
    monkeypatch.setattr(
        features, "_compute_shard", lambda path, *rest: (written.append(path), write(path, *rest))
    )
    again = compute_features(mllm, episodes, VIEW, CONFIG, tmp_path).gather(np.arange(20))[0]
    assert written == [removed]
    assert torch.equal(again, whole)


@pytest.mark.parametrize(
    "changes", [{"layer": 1}, {"cameras": ("wrist",)}, {"blind": True}, {"dtype": "bfloat16"}]
)
def test_other_settings_are_other_files(mllm, episodes, tmp_path, changes):
    compute_features(mllm, episodes[:1], VIEW, CONFIG, tmp_path)
    compute_features(mllm, episodes[:1], VIEW.model_copy(update=changes), CONFIG, tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_other_frames_are_other_files(mllm, tmp_path):
    one, other = make_episode(0), make_episode(1)
    other.episode_id = one.episode_id
    for episode in (one, other):
        compute_features(mllm, [episode], VIEW, CONFIG, tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_blind_view_knows_nothing_of_the_scene(mllm, episodes):
    images = [
        {"front": np.random.default_rng(n).integers(0, 256, (32, 32, 3), np.uint8)}
        for n in range(2)
    ]
    for blind, differs in ((False, True), (True, False)):
        view = VIEW.model_copy(update={"blind": blind})
        states, mask = view.encode(mllm, [view.prompt(one, "open the drawer") for one in images])
        assert torch.equal(states[0], states[1]) != differs
        assert mask.all()
    view = VIEW.model_copy(update={"blind": True})
    states, mask = view.encode(
        mllm, [view.prompt(images[0], text) for text in ("open the drawer", "close it")]
    )
    length = mask[1].sum()
    assert not torch.equal(states[0][:length], states[1][:length])  # the instruction still counts


def test_cameras_are_laid_side_by_side():
    left, right = np.zeros((4, 6, 3), np.uint8), np.ones((4, 2, 3), np.uint8)
    both = {"a": right, "b": left}
    joined = View(layer=1, cameras=("b", "a"), cameras_as="side_by_side")
    (image,) = joined.prompt(both, "go").images
    np.testing.assert_array_equal(image, np.concatenate([left, right], axis=1))
    with pytest.raises(RoboAlignError, match="no image of camera 'c'"):
        View(layer=1, cameras=("a", "c")).prompt({"a": left}, "go")
    with pytest.raises(RoboAlignError, match="differ in height"):
        joined.prompt({"a": left, "b": right[:2]}, "go")


def test_cameras_are_images_in_the_order_of_the_view():
    left, right = np.zeros((4, 6, 3), np.uint8), np.ones((8, 2, 3), np.uint8)
    for cameras, wanted in ((("b", "a"), [left, right]), (("a", "b"), [right, left])):
        view = View(layer=1, cameras=cameras)
        prompt = view.prompt({"a": right, "b": left}, "go")
        assert all(np.array_equal(*pair) for pair in zip(prompt.images, wanted, strict=True))
        blind = view.model_copy(update={"blind": True}).prompt({"a": right, "b": left}, "go")
        assert [one.shape for one in blind.images] == [one.shape for one in wanted]
        assert {int(one.min()) for one in blind.images} == {features.GRAY}


def test_an_overflow_is_refused_not_stored(mllm, episodes, tmp_path, monkeypatch):
    huge = (torch.full((1, 4, 48), 1e5), torch.ones(1, 4, dtype=torch.bool))
    monkeypatch.setattr(features, "hidden_states", lambda *args, **kwargs: huge)
    with pytest.raises(RoboAlignError, match="not finite as float16"):
        compute_features(mllm, episodes[:1], VIEW, FeatureConfig(batch_size=1), tmp_path)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(RoboAlignError, match="not finite as float8"):
        huge[0][0, 2, 5] = float("inf")
        VIEW.model_copy(update={"dtype": "float8"}).encode(mllm, [None])


def test_a_truncated_file_is_refused_by_name(mllm, episodes, tmp_path):
    compute_features(mllm, episodes[:1], VIEW, CONFIG, tmp_path)
    path = next(tmp_path.iterdir())
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(RoboAlignError, match=path.name):
        FeatureStore([path])


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_what_is_no_file_is_refused_by_name(tmp_path, make):
    path = tmp_path / "features-0.safetensors"
    make(path)
    with pytest.raises(RoboAlignError) as caught:
        FeatureStore([path])
    assert (caught.value.where, caught.value.problem) == (str(path), "this is not a plain file")
    assert caught.value.fix == "remove the file; it is computed again"


def test_a_file_of_float8_without_its_exponents_is_refused(tmp_path):
    path = tmp_path / "features-0.safetensors"
    tokens = torch.ones(3, 8).to(torch.float8_e4m3fn)
    save_file({"tokens": tokens, "lengths": torch.tensor([3])}, path, {"format": "1"})
    with pytest.raises(
        RoboAlignError, match=r"features-0\.safetensors: not a feature file of this version"
    ):
        FeatureStore([path])


def test_backbone_hash_sees_weights_and_not_logs(backbone, tmp_path):
    folder = shutil.copytree(backbone, tmp_path / "copy")
    assert backbone_hash(folder) == backbone_hash(backbone)
    (folder / "metrics.jsonl").write_text("{}")
    (folder / "stage.json").write_text("{}")
    assert backbone_hash(folder) == backbone_hash(backbone)
    weights = next(folder.glob("*.safetensors"))
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.write_bytes(raw)
    assert backbone_hash(folder) != backbone_hash(backbone)
