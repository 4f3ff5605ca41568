import itertools
import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from own_process import FORKED
from safetensors.torch import save_file
from synthetic_frames import CONFIG, make_head, synthetic

from roboalign.actions.normalize import ActionStats
from roboalign.core.errors import RoboAlignError
from roboalign.core.files import read_jsonl
from roboalign.vla import in_step
from roboalign.vla import train as training
from roboalign.vla.features import FeatureConfig, View, feature_bytes
from roboalign.vla.frames import Frames, batch_frames
from roboalign.vla.head import HeadConfig
from roboalign.vla.in_step import StatesInStep
from roboalign.vla.parallel import loss_module
from roboalign.vla.policy import Policy
from roboalign.vla.store import FeatureStore
from roboalign.vla.train import (
    HeadTrainConfig,
    decode_ahead,
    evaluate_head,
    fit,
    learning_rate_factor,
    train_head,
)

SMALL = HeadConfig(width=32, heads=2, layers=2, vlm_inner_width=32, vlm_heads=2)


def test_batches_pass_over_every_frame_once_an_epoch():
    drawn = np.concatenate([batch_frames(10, 4, step, seed=3) for step in range(5)])
    assert sorted(drawn[:10]) == list(range(10)) and sorted(drawn[10:]) == list(range(10))
    assert list(drawn[:10]) != list(drawn[10:])
    assert len(batch_frames(3, 8, 2, seed=0)) == 8  # a batch longer than the data
    np.testing.assert_array_equal(batch_frames(10, 4, 3, seed=3), drawn[12:16])
    assert list(batch_frames(10, 10, 0, seed=4)) != list(batch_frames(10, 10, 0, seed=3))


def test_learning_rate_rises_then_falls_as_a_cosine():
    config = CONFIG.model_copy(update={"steps": 100, "warmup": 0.1})
    factors = [learning_rate_factor(step, config) for step in range(100)]
    np.testing.assert_allclose(factors[:10], np.arange(1, 11) / 10)
    assert factors[10] == 1 and factors[55] == pytest.approx(0.5) and 0 < factors[99] < 0.001
    assert all(a > b for a, b in itertools.pairwise(factors[10:]))


def test_gather_matches_a_plain_loop(tmp_path):
    rng = np.random.default_rng(0)
    frames, paths = [], []
    for shard in range(3):
        lengths = rng.integers(1, 6, 4)
        parts = [torch.randn(length, 5).half() for length in lengths]
        frames += parts
        paths.append(tmp_path / f"{shard}.safetensors")
        save_file(
            {"tokens": torch.cat(parts), "lengths": torch.from_numpy(lengths)},
            paths[-1],
            {"format": "1"},
        )
    store = FeatureStore(paths)
    chosen = rng.permutation(12)[:7]
    states, mask = store.gather(chosen)
    for row, frame in enumerate(chosen):
        assert torch.equal(states[row][mask[row]], frames[frame])
        assert mask[row].sum() == len(frames[frame])


def test_training_learns_and_logs_held_out_metrics(tmp_path):
    train, heldout = synthetic(tmp_path, 1000, 0), synthetic(tmp_path, 32, 1)
    config = CONFIG.model_copy(update={"steps": 200, "eval_every": 50, "batch_size": 16})
    ledger = fit(make_head(), train, heldout, config, tmp_path / "run", seed=0)
    log = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    assert [record["step"] for record in log] == [50, 100, 150, 200]
    assert log[-1]["train_loss"] < 0.7 * log[0]["train_loss"]
    assert (
        log[-1]["heldout_l1"] < 0.7 * log[0]["heldout_l1"]
    )  # the rule holds on frames never trained on
    assert (
        ledger["steps"] == 200
        and ledger["samples"] == 3200
        and ledger["heldout_l1"] == log[-1]["heldout_l1"]
    )


def fit_slowly(folder: Path, config: HeadTrainConfig) -> None:
    """In a process of its own."""
    torch.set_num_threads(1)
    os.environ["ROBOALIGN_TEST_SLOW"] = "0.3"
    frames = synthetic(folder, 32, 0), synthetic(folder, 8, 1)
    fit(make_head(), *frames, config, folder / "run", seed=5)


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_a_killed_run_ends_with_the_same_bits(tmp_path, ema):
    """SIGKILL after the first checkpoint; then the run is started again."""
    config = CONFIG.model_copy(update={"ema": ema})
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    fit(make_head(), synthetic(whole, 32, 0), synthetic(whole, 8, 1), config, whole / "run", seed=5)
    process = FORKED.Process(target=fit_slowly, args=(killed, config))
    process.start()
    checkpoint = killed / "run" / "checkpoint.pt"
    deadline = time.monotonic() + 120
    while not checkpoint.exists() and process.is_alive() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    reached = torch.load(checkpoint, weights_only=True)["step"]
    assert 0 < reached < CONFIG.steps
    fit(
        make_head(),
        synthetic(killed, 32, 0),
        synthetic(killed, 8, 1),
        config,
        killed / "run",
        seed=5,
    )
    ends = [
        torch.load(folder / "run" / "checkpoint.pt", weights_only=True)
        for folder in (whole, killed)
    ]
    assert all(
        torch.equal(ends[0][part][name], ends[1][part][name])
        for part in (("head", "average") if ema else ("head",))
        for name in ends[0][part]
    )
    logs = [read_jsonl(folder / "run" / "metrics.jsonl") for folder in (whole, killed)]
    without_time = [
        [{k: v for k, v in record.items() if k != "seconds"} for record in log] for log in logs
    ]
    assert without_time[0] == without_time[1]


def test_a_checkpoint_of_other_settings_or_cut_short_is_refused(tmp_path):
    train, heldout = synthetic(tmp_path, 32, 0), synthetic(tmp_path, 8, 1)
    fit(make_head(), train, heldout, CONFIG, tmp_path / "run", seed=0)
    with pytest.raises(RoboAlignError, match="of other settings or data"):
        fit(
            make_head(),
            train,
            heldout,
            CONFIG.model_copy(update={"learning_rate": 1e-4}),
            tmp_path / "run",
            seed=0,
        )
    checkpoint = tmp_path / "run" / "checkpoint.pt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:2000])
    with pytest.raises(RoboAlignError, match=r"checkpoint\.pt: the checkpoint cannot be read"):
        fit(make_head(), train, heldout, CONFIG, tmp_path / "run", seed=0)


def test_copies_are_drawn_anew_at_every_step_and_held_out_frames_have_none(
    mllm, episodes, tmp_path
):
    drawn = np.concatenate([batch_frames(10, 10, step, 3, copies=4) for step in range(200)])
    plain = np.concatenate([batch_frames(10, 10, step, 3) for step in range(200)])
    np.testing.assert_array_equal(drawn % 10, plain)  # the same frames as without copies
    counts = np.bincount(drawn // 10, minlength=4)
    assert len(counts) == 4 and counts.min() > 400  # 500 expected of each, standard deviation 19
    np.testing.assert_array_equal(batch_frames(10, 10, 7, 3, copies=4), drawn[70:80])
    config = CONFIG.model_copy(update={"steps": 1, "features": FeatureConfig(variants=3)})
    stats, view = ActionStats.fit(episodes[0].actions), View(layer=2, cameras=("front",))
    ledger = train_head(
        mllm, episodes[:2], episodes[2:], SMALL, config, view, stats, tmp_path, horizon=3
    )
    assert ledger["train_frames"] == len(episodes[0]) + len(episodes[1])
    kept = feature_bytes(mllm, episodes[:2], view, config.features) * 3
    assert ledger["feature_bytes"] == kept + feature_bytes(
        mllm, episodes[2:], view, config.features
    )


def test_frames_have_their_own_actions_whatever_the_copy(tmp_path):
    one, two = synthetic(tmp_path, 6, 0), synthetic(tmp_path, 6, 1)
    shards = [tmp_path / f"frames-6-{seed}.safetensors" for seed in (0, 1)]
    both = Frames(FeatureStore(shards), one.actions, None)
    assert both.copies == 2 and len(both) == 6
    states, mask, _, actions = both.batch(np.array([4, 10]), torch.device("cpu"))
    assert torch.equal(actions[0], actions[1]) and torch.equal(actions[0], one.actions[4])
    for row, store in enumerate((one.store, two.store)):
        assert torch.equal(states[row][mask[row]], store.gather(np.array([4]))[0][0].float())


def test_the_average_is_that_of_the_weights_after_each_step_and_is_measured_and_saved(
    tmp_path, monkeypatch
):
    train, heldout = synthetic(tmp_path, 32, 0), synthetic(tmp_path, 8, 1)
    config = CONFIG.model_copy(update={"steps": 7, "ema": 0.75, "eval_every": 7})
    after, step = [], training.train_step

    def noting(loss_of, trained, *rest):
        value = step(loss_of, trained, *rest)
        after.append({name: weight.clone() for name, weight in trained.head.state_dict().items()})
        return value

    monkeypatch.setattr(training, "train_step", noting)
    head = make_head()
    ledger = fit(head, train, heldout, config, tmp_path / "run", seed=0)
    saved = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    for name, weight in head.state_dict().items():
        expected = after[0][name].double()
        for weights in after[1:]:
            expected = 0.75 * expected + 0.25 * weights[name]
        torch.testing.assert_close(weight, expected.float(), rtol=1e-5, atol=1e-6)
        assert torch.equal(saved["head"][name], after[-1][name])
    assert ledger["heldout_l1"] == evaluate_head(head, heldout, config, 0)["heldout_l1"]
    plain = make_head()
    fit(plain, train, heldout, config.model_copy(update={"ema": 0.0}), tmp_path / "plain", seed=0)
    assert all(
        torch.equal(plain.state_dict()[name], after[-1][name]) for name in after[-1]
    )  # training is the same


@pytest.mark.skipif(
    "ROBOALIGN_TEST_COMPILE" not in os.environ,
    reason="ROBOALIGN_TEST_COMPILE=1 runs it, in minutes",
)
@pytest.mark.usefixtures("shapes_unchecked")  # torch.compile does not trace the checks
def test_the_compiled_loss_is_the_eager_one(tmp_path):
    """Lengths differ from batch to batch: the second one compiles for all lengths."""
    head, train = make_head().eval(), synthetic(tmp_path, 12, 0)
    eager, compiled = loss_module(head, compiled=False), loss_module(head, compiled=True)
    for start in (0, 4, 8):
        states, mask, _, actions = train.batch(np.arange(start, start + 4), torch.device("cpu"))
        noise, t = torch.randn(8, 3, 2), torch.rand(8)
        results = []
        for loss_of in (eager, compiled):
            loss = loss_of(states, mask, None, actions, noise=noise, t=t)
            head.zero_grad()
            loss.backward()
            results.append(
                (loss.detach(), {name: p.grad.clone() for name, p in head.named_parameters()})
            )
        torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-5)


def test_a_nan_loss_stops_the_training(tmp_path):
    train, heldout = synthetic(tmp_path, 32, 0), synthetic(tmp_path, 8, 1)
    train.actions[:] = float("nan")
    with pytest.raises(RoboAlignError, match="the loss is nan"):
        fit(make_head(), train, heldout, CONFIG, tmp_path / "run", seed=0)
    assert not (tmp_path / "run" / "checkpoint.pt").exists()


def test_train_head_from_episodes_to_a_policy_that_loads(mllm, episodes, tmp_path, capfd):
    config = CONFIG.model_copy(update={"steps": 4, "features": FeatureConfig(every=2)})
    stats = ActionStats.fit(np.concatenate([episode.actions for episode in episodes]))
    view = View(layer=2, cameras=("front", "wrist"))
    head = SMALL.model_copy(update={"proprioception": True})
    ledger = train_head(
        mllm, episodes[:4], episodes[4:], head, config, view, stats, tmp_path / "run", horizon=3
    )
    assert ledger["train_frames"] == sum((len(episode) + 1) // 2 for episode in episodes[:4])
    assert ledger["feature_bytes"] > 0 and np.isfinite(ledger["heldout_l1"])
    json.dumps(ledger)
    assert "hidden states of 5 episodes" in capfd.readouterr().err
    policy = Policy.load(tmp_path / "run" / "policy")
    assert (policy.horizon, policy.view, policy.sampling_steps) == (3, view, 4)
    np.testing.assert_array_equal(policy.action_stats.q99, stats.q99)


def test_shared_or_missing_episodes_are_refused(mllm, episodes, tmp_path):
    stats = ActionStats.fit(episodes[0].actions)
    view = View(layer=2, cameras=("front",))
    for train, heldout, message in (
        (episodes, episodes[:1], "both trained on and held out"),
        ([], episodes, "no training episodes"),
        (episodes, [], "no held-out episodes"),
    ):
        with pytest.raises(RoboAlignError, match=message):
            train_head(mllm, train, heldout, SMALL, CONFIG, view, stats, tmp_path, horizon=3)


@pytest.mark.parametrize("variants", [0, 2])
def test_a_head_learns_the_same_without_a_store(mllm, episodes, tmp_path, capfd, variants):
    """Losses and weights are those of the stored states: same frames, copies, noise and times."""
    stats = ActionStats.fit(np.concatenate([episode.actions for episode in episodes]))
    view = View(layer=2, cameras=("front", "wrist"), dtype="bfloat16")
    head = SMALL.model_copy(update={"proprioception": True})
    ledgers, weights = {}, {}
    for name, limit in (("stored", 200.0), ("in step", 0.0)):
        features = FeatureConfig(every=2, variants=variants, most_gb=limit)
        config = CONFIG.model_copy(update={"steps": 6, "eval_every": 3, "features": features})
        ledgers[name] = train_head(
            mllm, episodes[:4], episodes[4:], head, config, view, stats, tmp_path / name, horizon=3
        )
        weights[name] = Policy.load(tmp_path / name / "policy").head.state_dict()
    told = capfd.readouterr().err
    assert "more than features.most_gb (0), so none are stored" in told
    assert not (tmp_path / "in step" / "features").exists()
    assert ledgers["stored"]["feature_bytes"] > 0 == ledgers["in step"]["feature_bytes"]
    one, other = (read_jsonl(tmp_path / name / "metrics.jsonl") for name in ledgers)
    for key in ("train_loss", "heldout_loss", "heldout_l1"):
        np.testing.assert_allclose([r[key] for r in one], [r[key] for r in other], rtol=2e-5)
    for name, value in weights["stored"].items():
        torch.testing.assert_close(weights["in step"][name], value, rtol=1e-3, atol=1e-4)


def test_pictures_are_decoded_forward_and_kept(mllm, episodes, monkeypatch):
    """Within the steps that are decoded together, no picture is decoded twice or out of order."""
    store = StatesInStep(mllm, episodes, View(layer=2, cameras=("front",)), FeatureConfig())
    seen = []
    asked = StatesInStep.prompt
    monkeypatch.setattr(
        StatesInStep, "prompt", lambda self, frame: (seen.append(frame), asked(self, frame))[1]
    )
    config = CONFIG.model_copy(update={"batch_size": 4, "steps": 5})
    train = Frames(store, torch.zeros(len(store), 3, 2), None)
    monkeypatch.setattr(in_step, "MOST_STEPS_AHEAD", 3)
    assert store.steps_ahead(4) == 3
    decoded = []
    for step in range(config.steps):
        seen.clear()
        decode_ahead(train, store, config, step, 0, seed=0)
        decoded.append([*seen])
        seen.clear()
        store.gather(batch_frames(len(train), 4, step, seed=0))
        assert not seen
    assert [len(one) for one in decoded] == [12, 0, 0, 8, 0]
    assert all(one == sorted(one) for one in decoded)
    monkeypatch.setattr(in_step, "KEPT_BYTES", 1)
    assert store.steps_ahead(4) == 1
