import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from synthetic_frames import CONFIG, make_head, synthetic

from roboalign.actions.normalize import ActionStats
from roboalign.errors import RoboAlignError
from roboalign.files import read_jsonl
from roboalign.vla.features import FeatureConfig, FeatureStore, View
from roboalign.vla.head import HeadConfig
from roboalign.vla.policy import Policy
from roboalign.vla.train import batch_frames, fit, learning_rate_factor, train_head

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
        save_file({"tokens": torch.cat(parts), "lengths": torch.from_numpy(lengths)}, paths[-1], {"format": "1"})
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
    assert log[-1]["heldout_l1"] < 0.7 * log[0]["heldout_l1"]  # the rule holds on frames never trained on
    assert ledger["steps"] == 200 and ledger["samples"] == 3200 and ledger["heldout_l1"] == log[-1]["heldout_l1"]


SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from synthetic_frames import CONFIG, make_head, synthetic
from roboalign.vla.train import fit
out = Path(sys.argv[1])
fit(make_head(), synthetic(out, 32, 0), synthetic(out, 8, 1), CONFIG, out / "run", seed=5)
"""


def test_a_killed_run_ends_with_the_same_bits(tmp_path):
    """SIGKILL after the first checkpoint; then the run is started again."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    fit(make_head(), synthetic(whole, 32, 0), synthetic(whole, 8, 1), CONFIG, whole / "run", seed=5)
    command = [sys.executable, "-c", SCRIPT, str(killed), str(Path(__file__).parent)]
    process = subprocess.Popen(command, env=os.environ | {"ROBOALIGN_TEST_SLOW": "0.3"})
    checkpoint = killed / "run" / "checkpoint.pt"
    deadline = time.monotonic() + 120
    while not checkpoint.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    reached = torch.load(checkpoint, weights_only=True)["step"]
    assert 0 < reached < CONFIG.steps
    fit(make_head(), synthetic(killed, 32, 0), synthetic(killed, 8, 1), CONFIG, killed / "run", seed=5)
    ends = [torch.load(folder / "run" / "checkpoint.pt", weights_only=True) for folder in (whole, killed)]
    assert all(torch.equal(ends[0]["head"][name], ends[1]["head"][name]) for name in ends[0]["head"])
    logs = [read_jsonl(folder / "run" / "metrics.jsonl") for folder in (whole, killed)]
    without_time = [[{k: v for k, v in record.items() if k != "seconds"} for record in log] for log in logs]
    assert without_time[0] == without_time[1]


def test_a_checkpoint_of_other_settings_or_cut_short_is_refused(tmp_path):
    train, heldout = synthetic(tmp_path, 32, 0), synthetic(tmp_path, 8, 1)
    fit(make_head(), train, heldout, CONFIG, tmp_path / "run", seed=0)
    with pytest.raises(RoboAlignError, match="of other settings or data"):
        fit(make_head(), train, heldout, CONFIG.model_copy(update={"learning_rate": 1e-4}), tmp_path / "run", seed=0)
    checkpoint = tmp_path / "run" / "checkpoint.pt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:2000])
    with pytest.raises(RoboAlignError, match=r"checkpoint\.pt: the checkpoint cannot be read"):
        fit(make_head(), train, heldout, CONFIG, tmp_path / "run", seed=0)


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
    ledger = train_head(mllm, episodes[:4], episodes[4:], head, config, view, stats, tmp_path / "run", horizon=3)
    assert ledger["train_frames"] == sum((len(episode) + 1) // 2 for episode in episodes[:4])
    assert ledger["feature_bytes"] > 0 and np.isfinite(ledger["heldout_l1"])
    json.dumps(ledger)
    assert "hidden states of 5 episodes" in capfd.readouterr().out
    policy = Policy.load(tmp_path / "run" / "policy")
    assert (policy.horizon, policy.view, policy.sampling_steps) == (3, view, 4)
    np.testing.assert_array_equal(policy.action_stats.q99, stats.q99)


def test_shared_or_missing_episodes_are_refused(mllm, episodes, tmp_path):
    stats = ActionStats.fit(episodes[0].actions)
    view = View(layer=2, cameras=("front",))
    for train, heldout, message in ((episodes, episodes[:1], "both trained on and held out"),
                                    ([], episodes, "no training episodes"),
                                    (episodes, [], "no held-out episodes")):  # fmt: skip
        with pytest.raises(RoboAlignError, match=message):
            train_head(mllm, train, heldout, SMALL, CONFIG, view, stats, tmp_path, horizon=3)
