import itertools
import shutil

import numpy as np
import pytest
import torch
from conftest import make_episode

from roboalign.data.prompts import action_question
from roboalign.errors import RoboAlignError
from roboalign.mllm.encode import Prompt
from roboalign.mllm.hidden import hidden_states
from roboalign.vla import features
from roboalign.vla.features import FeatureConfig, FeatureStore, View, backbone_hash, compute_features, feature_bytes

VIEW = View(layer=2, cameras=("front",))
CONFIG = FeatureConfig(batch_size=4, shard_frames=10)


def test_stored_states_are_the_models(mllm, episodes, tmp_path):
    store = compute_features(mllm, episodes, VIEW, CONFIG, tmp_path)
    assert len(store) == sum(len(episode) for episode in episodes)
    assert len(list(tmp_path.iterdir())) > 1
    frames = np.array([3, len(store) - 1, 0])  # from several shards, with prompts of different lengths
    got, mask = store.gather(frames)
    where = [(episode, t) for episode in episodes for t in range(len(episode))]
    for row, frame in enumerate(frames):
        episode, t = where[frame]
        prompt = Prompt(action_question(episode.instruction, "direct"), episode.frame("front", t))
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
    torch.testing.assert_close(thin.gather(np.arange(len(thin)))[0], whole.gather(kept)[0], rtol=1e-2, atol=1e-2)


def test_size_is_known_beforehand(mllm, episodes, tmp_path):
    told = feature_bytes(mllm, episodes, VIEW, CONFIG)
    store = compute_features(mllm, episodes, VIEW, CONFIG, tmp_path)
    assert told == sum(tokens.numel() * 2 for tokens in store.tokens)


def test_a_killed_run_computes_only_what_is_missing(mllm, episodes, tmp_path, monkeypatch):
    whole = compute_features(mllm, episodes, VIEW, CONFIG, tmp_path).gather(np.arange(20))[0]
    removed = sorted(tmp_path.iterdir())[0]
    removed.unlink()
    written = []
    write = features._write_shard
    monkeypatch.setattr(features, "_write_shard", lambda path, *rest: (written.append(path), write(path, *rest)))
    again = compute_features(mllm, episodes, VIEW, CONFIG, tmp_path).gather(np.arange(20))[0]
    assert written == [removed]
    assert torch.equal(again, whole)


@pytest.mark.parametrize("changes", [{"layer": 1}, {"cameras": ("wrist",)}, {"blind": True}, {"dtype": "bfloat16"}])
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
    images = [{"front": np.random.default_rng(n).integers(0, 256, (32, 32, 3), np.uint8)} for n in range(2)]
    for blind, differs in ((False, True), (True, False)):
        view = VIEW.model_copy(update={"blind": blind})
        states, mask = view.encode(mllm, [view.prompt(one, "open the drawer") for one in images])
        assert torch.equal(states[0], states[1]) != differs
        assert mask.all()
    view = VIEW.model_copy(update={"blind": True})
    states, mask = view.encode(mllm, [view.prompt(images[0], text) for text in ("open the drawer", "close it")])
    length = mask[1].sum()
    assert not torch.equal(states[0][:length], states[1][:length])  # the instruction still counts


def test_cameras_are_laid_side_by_side():
    left, right = np.zeros((4, 6, 3), np.uint8), np.ones((4, 2, 3), np.uint8)
    image = View(layer=1, cameras=("b", "a")).prompt({"a": right, "b": left}, "go").image
    np.testing.assert_array_equal(image, np.concatenate([left, right], axis=1))
    with pytest.raises(RoboAlignError, match="no image of camera 'c'"):
        View(layer=1, cameras=("a", "c")).prompt({"a": left}, "go")
    with pytest.raises(RoboAlignError, match="differ in height"):
        View(layer=1, cameras=("a", "b")).prompt({"a": left, "b": right[:2]}, "go")


def test_an_overflow_is_refused_not_stored(mllm, episodes, tmp_path, monkeypatch):
    huge = (torch.full((1, 4, 48), 1e5), torch.ones(1, 4, dtype=torch.bool))
    monkeypatch.setattr(features, "hidden_states", lambda *args, **kwargs: huge)
    with pytest.raises(RoboAlignError, match="not finite as float16"):
        compute_features(mllm, episodes[:1], VIEW, FeatureConfig(batch_size=1), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_truncated_file_is_refused_by_name(mllm, episodes, tmp_path):
    compute_features(mllm, episodes[:1], VIEW, CONFIG, tmp_path)
    path = next(tmp_path.iterdir())
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(RoboAlignError, match=path.name):
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
