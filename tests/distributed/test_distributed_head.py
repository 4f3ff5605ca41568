"""The head in two processes (gloo): the weights of one, and a run killed in two goes on in one, and the other way."""

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from synthetic_episodes import make_episodes, save_backbone
from two_ranks import two_ranks

from roboalign.actions.normalize import ActionStats
from roboalign.core.distributed import join_team, rank, world_size
from roboalign.core.errors import RoboAlignError
from roboalign.core.files import read_json, read_jsonl, write_json
from roboalign.mllm.load import load_mllm
from roboalign.vla import features
from roboalign.vla import train as training
from roboalign.vla.features import FeatureConfig, View
from roboalign.vla.head import FlowMatchingHead, HeadConfig, HeadShape
from roboalign.vla.train import HeadTrainConfig, train_head

HEAD = HeadConfig(width=32, heads=2, layers=2, vlm_inner_width=32, vlm_heads=2, proprioception=True)
# 7 frames a step do not divide over two; three held-out batches neither.
CONFIG = HeadTrainConfig(
    steps=12,
    batch_size=7,
    draws=2,
    learning_rate=5e-3,
    eval_every=5,
    checkpoint_every=4,
    ema=0.8,
    features=FeatureConfig(batch_size=4, shard_frames=5, variants=2),
)
VIEW = View(layer=2, cameras=("front", "wrist"), dtype="float8")


SEED, HORIZON = 3, 3


class Killed(BaseException):
    """Stands for a kill where there is one process."""


def train(
    folder: Path, backbone: Path, stop_at: int = -1, batch_size: int = CONFIG.batch_size
) -> dict[str, Any]:
    """`train_head`; where `stop_at` says so, it ends as a kill would, before that step."""
    torch.set_num_threads(1)
    compute, step = features._compute_shard, training.train_step

    def noted(path: Path, *rest: Any) -> None:
        with (folder / f"computed-by-{rank()}").open("a") as log:
            log.write(path.name + "\n")
        compute(path, *rest)

    def stopping(loss_of: torch.nn.Module, *rest: Any) -> float:
        assert isinstance(loss_of, torch.nn.parallel.DistributedDataParallel) == (world_size() > 1)
        if rest[3] == stop_at:
            if world_size() > 1:
                os._exit(9)
            raise Killed
        return step(loss_of, *rest)

    episodes = make_episodes()
    stats = ActionStats.fit(np.concatenate([episode.actions for episode in episodes]))
    config = CONFIG.model_copy(update={"batch_size": batch_size})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(features, "_compute_shard", noted)
        patch.setattr(training, "train_step", stopping)
        return train_head(
            load_mllm(backbone),
            episodes[:3],
            episodes[3:],
            HEAD,
            config,
            VIEW,
            stats,
            folder,
            horizon=HORIZON,
            seed=SEED,
        )


def command(folder: Path, *arguments: Any) -> int:
    """What `roboalign head` does on each rank."""
    team = join_team()
    assert team is not None
    try:
        with team.guarded():
            team.form_group(torch.device("cpu"), 60.0)
            write_json(folder / f"ledger-{team.rank}.json", train(folder, *arguments))
            team.part()
    except RoboAlignError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("backbone")
    save_backbone(folder, make_episodes())
    return folder


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, backbone: Path) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    write_json(folder / "ledger-0.json", train(folder, backbone))
    return folder


def assert_same_training(folder: Path, alone: Path) -> None:
    ours, theirs = (load_file(one / "policy" / "head.safetensors") for one in (folder, alone))
    torch.manual_seed(SEED)
    shape = HeadShape(vlm_width=48, action_dim=4, state_dim=3, horizon=HORIZON)
    start = FlowMatchingHead(HEAD, shape).state_dict()
    for weights in (ours, theirs, start):
        for name in weights:
            if name.endswith("key_value.bias"):
                # A bias of the keys moves all scores alike: its gradient is rounding, of which Adam makes whole steps.
                weights[name] = weights[name].chunk(2)[1]
    moved = max(float((theirs[name] - start[name]).abs().max()) for name in start)
    apart = max(float((ours[name] - theirs[name]).abs().max()) for name in start)
    assert moved > 1e-2
    assert apart < 1e-3 * moved, f"{apart} apart after moving by {moved}"
    for record, expected in zip(
        read_jsonl(folder / "metrics.jsonl"), read_jsonl(alone / "metrics.jsonl"), strict=True
    ):
        for name in ("step", "train_loss", "heldout_loss", "heldout_l1"):
            assert record[name] == pytest.approx(expected[name], rel=2e-3), (record["step"], name)


def test_two_processes_train_as_one(alone: Path, backbone: Path, tmp_path: Path) -> None:
    ended = two_ranks(command, tmp_path, backbone, logs=tmp_path / "logs")
    assert [one.status for one in ended] == [0, 0], ended
    assert_same_training(tmp_path, alone)
    one, *two = (
        read_json(path)
        for path in (alone / "ledger-0.json", *sorted(tmp_path.glob("ledger-*.json")))
    )
    for ledger in two:
        for name, value in one.items():
            if "seconds" not in name:
                assert ledger[name] == pytest.approx(value, rel=2e-3), name
    files = sorted(path.name for path in (alone / "features").iterdir())
    computed = [(tmp_path / f"computed-by-{number}").read_text().split() for number in (0, 1)]
    assert (
        sorted(computed[0] + computed[1]) == files and len(files) == 8
    )  # 3 x 2 copies, and 2 held out
    assert [len(one) for one in computed] == [4, 4]
    for name in files:
        assert (alone / "features" / name).read_bytes() == (
            tmp_path / "features" / name
        ).read_bytes()
    assert "hidden states of 5 episodes" in ended[0].stderr and ended[1].stdout == ""
    assert "[features]" in ended[0].stderr and "[head]" in ended[0].stderr
    assert "[features]" not in ended[1].stderr and "[head]" not in ended[1].stderr


def test_killed_in_two_processes_goes_on_in_one(
    alone: Path, backbone: Path, tmp_path: Path
) -> None:
    killed = two_ranks(command, tmp_path, backbone, 6, logs=tmp_path / "logs")
    assert {one.status for one in killed} <= {9, -15}, killed
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 4
    train(tmp_path, backbone)
    assert_same_training(tmp_path, alone)


def test_killed_in_one_process_goes_on_in_two(alone: Path, backbone: Path, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        train(tmp_path, backbone, 9)
    ended = two_ranks(command, tmp_path, backbone, logs=tmp_path / "logs")
    assert [one.status for one in ended] == [0, 0], ended
    assert_same_training(tmp_path, alone)
    assert not (tmp_path / "computed-by-1").exists()  # what one process had computed is used


def test_a_batch_smaller_than_the_team_is_one_message(backbone: Path, tmp_path: Path) -> None:
    ended = two_ranks(command, tmp_path, backbone, -1, 1, logs=tmp_path / "logs")
    assert [one.status for one in ended] == [2, 2]
    (line,) = [line for one in ended for line in one.errors]
    assert "head_training.batch_size: a batch of 1 cannot be shared by 2 processes" in line
